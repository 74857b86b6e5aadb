"""Criterion: the worst persona's mean similarity exceeds a threshold."""

import numpy as np

from clusterlora.errors import counted
from clusterlora.evaluation.statistics import bootstrap_interval, paired_bootstrap
from clusterlora.gate.trial import DRAWS, Trial
from clusterlora.settings import GateSettings
from clusterlora.values import Criterion


def worst_persona(trial: Trial, settings: GateSettings, rng: np.random.Generator) -> Criterion | None:
    """Return whether the lowest persona mean exceeds the threshold; None when no threshold is set.

    The interval is over that persona's items; a single item gives none.
    """
    if settings.worst_persona is None:
        return None
    worst = int(np.argmin(trial.candidate_means))
    value = float(trial.candidate_means[worst])
    scores = trial.candidate[trial.persona == worst]
    low = high = None
    if len(scores) > 1:
        same_persona = np.zeros(len(scores), dtype=np.int64)
        low, high = bootstrap_interval(paired_bootstrap(scores[:, None], same_persona, draws=DRAWS, rng=rng)[:, 0], scores)
        high = max(value, min(high, 1.0))  # With few items the interval is wide, but no similarity exceeds 1.
    passed = value > settings.worst_persona
    return Criterion(
        name="worst_persona",
        value=value,
        threshold=settings.worst_persona,
        passed=passed,
        ci_low=low,
        ci_high=high,
        explanation=f"The lowest persona mean is {value:.2%} ({trial.persona_ids[worst]}, {counted(len(scores), 'item')}), "
        f"{'above' if passed else 'not above'} the threshold of {settings.worst_persona:.2%}.",
    )
