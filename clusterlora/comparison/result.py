"""The outcome of a comparison as values."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedDifference:
    """A method against the reference on the headline metric: method minus reference, persona by persona.

    `ci_low` and `ci_high` bound the mean difference; `p_holm` is `p` corrected for the number of methods tested. A persona is won
    when the method is better by more than rounding; `win_low` and `win_high` bound the win rate.
    """

    mean: float
    ci_low: float
    ci_high: float
    p: float
    p_holm: float
    win_rate: float
    win_low: float
    win_high: float
    tie_rate: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodResult:
    """One method. `means` has every metric, averaged over personas; the rest is about the headline metric, in its units.

    `vs_reference` is None for the reference itself, and when there is none.
    """

    method: str
    means: Mapping[str, float]
    mean_low: float
    mean_high: float
    vs_reference: PairedDifference | None
    worst_persona_id: str
    worst_persona: float
    p5: float
    by_persona: Mapping[str, float]
    by_cluster: Mapping[int, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """All methods on identical items, the best first.

    `oracle` is the mean of each persona's best method, picked on the same items: a bound, not a method.
    `floor` is what somebody else's reference scores.
    """

    headline: str
    metrics: tuple[str, ...]
    reference: str | None
    methods: tuple[MethodResult, ...]
    champion: str
    oracle: float
    floor: float | None
    cluster_sizes: Mapping[int, int]
    n_personas: int
    n_personas_left_out: int
    n_items: int
    draws: int
    sentence: str

    def method(self, name: str) -> MethodResult:
        """Return the result of the method of this name."""
        return next(result for result in self.methods if result.method == name)
