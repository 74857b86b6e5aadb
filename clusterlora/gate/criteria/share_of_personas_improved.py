"""Criterion: enough personas score higher than with unified, so the gain does not come from a few."""

import numpy as np

from clusterlora.errors import counted
from clusterlora.evaluation.statistics import RESOLUTION, wilson_interval
from clusterlora.gate.trial import Trial
from clusterlora.settings import GateSettings
from clusterlora.values import Criterion


def share_of_personas_improved(trial: Trial, settings: GateSettings, _rng: np.random.Generator) -> Criterion:
    """Return whether enough personas do better than with unified; a persona that ties is not improved."""
    n_personas = len(trial.persona_ids)
    n_improved = int(np.sum(trial.gains > RESOLUTION))
    n_equal = int(np.sum(np.abs(trial.gains) <= RESOLUTION))
    value = n_improved / n_personas
    low, high = wilson_interval(n_improved, n_personas)
    passed = value >= settings.share_improved
    return Criterion(
        name="share_of_personas_improved",
        value=value,
        threshold=settings.share_improved,
        passed=passed,
        ci_low=low,
        ci_high=high,
        explanation=f"{n_improved} of {counted(n_personas, 'persona')} {'does' if n_improved == 1 else 'do'} better than with unified"
        f"{f' and {n_equal} equally well' if n_equal else ''}, "
        f"{'at least' if passed else 'fewer than'} the {settings.share_improved:.2%} asked.",
    )
