"""Criterion: the worst persona's mean similarity exceeds a threshold."""

import numpy as np

from clusterlora.errors import counted
from clusterlora.evaluation.statistics import cluster_robust_interval
from clusterlora.gate.trial import Trial
from clusterlora.settings import GateSettings
from clusterlora.values import Criterion


def worst_persona(trial: Trial, settings: GateSettings, _rng: np.random.Generator) -> Criterion | None:
    """Return whether the lowest persona mean exceeds the threshold; None when no threshold is set.

    The interval is over that persona's dialogues, whose turns depend on each other; a single dialogue gives none.
    """
    if settings.worst_persona is None:
        return None
    worst = int(np.argmin(trial.candidate_means))
    value = float(trial.candidate_means[worst])
    own = trial.persona == worst
    scores = trial.candidate[own]
    interval = cluster_robust_interval(scores, [trial.dialogue[own]])
    low, high = interval or (None, None)
    if high is not None:
        high = max(value, min(high, 1.0))  # With few dialogues the interval is wide, but no similarity exceeds 1.
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
