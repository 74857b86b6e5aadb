"""Criterion: the cluster gains more than a random group as large does, which its people's being few does not explain.

One adapter stands against one. What is luck of an adapter, which all of its people share, two adapters cannot tell.
"""

import numpy as np

from clusterlora.evaluation.statistics import RESOLUTION
from clusterlora.gate.random_group import against_random_group
from clusterlora.gate.trial import Trial
from clusterlora.settings import GateSettings
from clusterlora.values import Criterion


def above_random_group(trial: Trial, settings: GateSettings, _rng: np.random.Generator) -> Criterion | None:
    """Return whether the mean gain is shown to exceed that of a random group, by the lower end of the interval.

    It is None when the gate does not ask, and where so few people and items show no gain that would matter: then a note says so.
    """
    if settings.above_random_group is False or trial.random_group is None:
        return None
    compared = against_random_group(trial.gains, trial.random_group.gains, trial.metric)
    if not compared.has_power:
        return None
    passed = compared.low > RESOLUTION
    return Criterion(
        name="above_random_group",
        value=compared.difference,
        threshold=0.0,
        passed=passed,
        ci_low=compared.low,
        ci_high=compared.high,
        percent=trial.metric.percent,
        explanation=f"The cluster gains {trial.metric.difference(float(trial.gains.mean()))} over unified, a random group as large "
        f"{trial.metric.format(float(trial.random_group.gains.mean()), signed=True)} on its own people; the interval of the difference "
        f"over people {'is above' if passed else 'is not above'} zero. It does not know the luck of one adapter against one.",
    )
