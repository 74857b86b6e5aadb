"""The gain of the judged cluster over unified beside that of random people: with little to train on, both differ from it."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from clusterlora.errors import counted
from clusterlora.evaluation.metric import Metric
from clusterlora.evaluation.metrics.embedding_similarity import EMBEDDING_SIMILARITY
from clusterlora.evaluation.statistics import welch_interval
from clusterlora.gate.power import NOTABLE_GAIN, WANTED_POWER, amount


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupDifference:
    """The cluster's mean gain minus that of a random group, in units of `metric`.

    `low` and `high` bound it with 95 % over people; how much of it is the luck of two adapters, they cannot tell. `detectable` is the
    smallest true difference whose interval is above zero four times in five, by the variance of the gains; infinite for a group of one.
    """

    n_personas: tuple[int, int]
    difference: float
    low: float
    high: float
    detectable: float
    metric: Metric = EMBEDDING_SIMILARITY

    @property
    def has_power(self) -> bool:
        """Whether a difference of five points would be shown four times in five."""
        return self.detectable <= NOTABLE_GAIN

    @property
    def sentence(self) -> str:
        """Whether the gate asks for the difference, and what the groups would show."""
        of, group = self.n_personas
        size = f"With {counted(of, 'persona')} in the cluster and {group} in the random group"
        if not np.isfinite(self.detectable):
            return f"{size} the gate cannot ask whether the cluster gains more than the group: that takes two in each."
        shown = f"a true difference of {amount(self.metric, self.detectable)} is shown {WANTED_POWER:.0%} of the time"
        if self.has_power:
            return f"{size} {shown}; the gate asks the cluster to gain more than the group."
        return (
            f"{size} {shown}, so the gate does not ask whether the cluster gains more than the group, which would refuse gains of "
            f"{amount(self.metric, NOTABLE_GAIN)}: raise data.val or put more personas into the judged cluster."
        )


def against_random_group(
    cluster: Float[np.ndarray, " persona"], group: Float[np.ndarray, " member"], metric: Metric = EMBEDDING_SIMILARITY
) -> GroupDifference:
    """Return the difference of two mean gains over unified, with Welch's interval.

    The groups are of different people, so what is compared is gains, each over the same items of its own people. Somebody who is in
    both correlates them, which makes the interval too wide rather than too narrow.
    """
    sizes = (len(cluster), len(group))
    low, high, detectable = (float(bound) for bound in welch_interval(cluster, group, power=WANTED_POWER))
    difference = float(cluster.mean() - group.mean())
    return GroupDifference(n_personas=sizes, difference=difference, low=low, high=high, detectable=detectable, metric=metric)
