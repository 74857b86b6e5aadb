"""Criterion: the candidate's mean similarity exceeds a threshold."""

import numpy as np

from clusterlora.errors import counted
from clusterlora.evaluation.statistics import bootstrap_interval, paired_bootstrap
from clusterlora.gate.trial import DRAWS, Trial
from clusterlora.settings import GateSettings
from clusterlora.values import Criterion


def mean_similarity(trial: Trial, settings: GateSettings, rng: np.random.Generator) -> Criterion | None:
    """Return whether the mean over personas exceeds the threshold; None when no threshold is set.

    The interval is over personas; a single one gives none.
    """
    if settings.mean_similarity is None:
        return None
    value = float(trial.candidate_means.mean())
    low = high = None
    if len(trial.persona_ids) > 1:
        draws = paired_bootstrap(trial.candidate[:, None], trial.persona, draws=DRAWS, rng=rng)[:, 0]
        low, high = bootstrap_interval(draws, trial.candidate_means)
        high = max(value, min(high, 1.0))  # With few personas the interval is wide, but no similarity exceeds 1.
    passed = value > settings.mean_similarity
    return Criterion(
        name="mean_similarity",
        value=value,
        threshold=settings.mean_similarity,
        passed=passed,
        ci_low=low,
        ci_high=high,
        explanation=f"The mean over {counted(len(trial.persona_ids), 'persona')} is {value:.2%}, "
        f"{'above' if passed else 'not above'} the threshold of {settings.mean_similarity:.2%}.",
    )
