"""Criterion: the candidate scores higher than the unified adapter on the second headline, too."""

import numpy as np

from clusterlora.evaluation.statistics import RESOLUTION, bootstrap_interval, paired_bootstrap
from clusterlora.gate.trial import DRAWS, Trial
from clusterlora.settings import GateSettings
from clusterlora.values import Criterion


def second_headline(trial: Trial, settings: GateSettings, rng: np.random.Generator) -> Criterion | None:
    """Return whether the mean paired difference on the second headline exceeds rounding; None when the gate does not ask for it."""
    second = trial.second
    if not settings.second_headline or second is None:
        return None
    value = float(second.gains.mean())
    low = high = None
    if len(second.persona_ids) > 1:
        gain = second.item_gains[:, None]
        low, high = bootstrap_interval(paired_bootstrap(gain, second.persona, draws=DRAWS, rng=rng)[:, 0], second.gains)
    return Criterion(
        name="second_headline",
        value=value,
        threshold=0.0,
        passed=value > RESOLUTION,
        ci_low=low,
        ci_high=high,
        percent=second.metric.percent,
        explanation=f"{second.metric.difference(second.metric.gain(value))} against unified on the second headline, on the same items.",
    )
