"""Criterion: the candidate scores better than the unified adapter on the same items."""

import numpy as np

from clusterlora.evaluation.statistics import RESOLUTION, bootstrap_interval, paired_bootstrap
from clusterlora.gate.trial import DRAWS, Trial
from clusterlora.settings import GateSettings
from clusterlora.values import Criterion


def above_unified(trial: Trial, _settings: GateSettings, rng: np.random.Generator) -> Criterion:
    """Return whether the mean paired difference exceeds rounding, so an adapter that changes nothing fails."""
    value = float(trial.gains.mean())
    gain = trial.item_gains[:, None]
    passed = value > RESOLUTION
    low = high = None
    less = "" if trial.metric.higher_is_better else ", where less is better"
    certainty = "one persona has no interval, so this may be chance"
    if len(trial.persona_ids) > 1:
        low, high = bootstrap_interval(paired_bootstrap(gain, trial.persona, draws=DRAWS, rng=rng)[:, 0], trial.gains)
        certainty = f"the interval {'includes zero, so this may be chance' if low <= 0 <= high else 'excludes zero'}"
    return Criterion(
        name="above_unified",
        value=value,
        threshold=0.0,
        passed=passed,
        ci_low=low,
        ci_high=high,
        percent=trial.metric.percent,
        explanation=f"{trial.metric.difference(trial.metric.gain(value))} against unified on the same items{less}; {certainty}.",
    )
