"""The outcome of a comparison as values."""

from collections.abc import Mapping
from dataclasses import dataclass

SIGNIFICANCE = 0.05


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

    def is_shown(self, sign: float) -> bool:
        """Return whether interval and corrected test both say that the method is better; `sign` is -1 where less is better."""
        return min(sign * self.ci_low, sign * self.ci_high) > 0 and self.p_holm < SIGNIFICANCE


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingBrackets:
    """Where a method that chooses among the others can end: `random` is the expected score of a blind choice, `oracle` of a perfect one.

    Both are means over personas of the headline metric; the oracle picks each persona's best on the compared items. Controls are no choice.
    """

    method: str
    random: float
    oracle: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodResult:
    """One method. `means` has every metric, averaged over personas; the rest is about the headline metric, in its units.

    `vs_reference` is None for the reference itself, and when there is none. `worst_shrunken` is the worst persona once the means are
    shrunk for their few items. `normalised` is 0 at the floor and 1 at the ceiling; None when there is no floor below the ceiling.
    """

    method: str
    means: Mapping[str, float]
    mean_low: float
    mean_high: float
    vs_reference: PairedDifference | None
    worst_persona_id: str
    worst_persona: float
    worst_shrunken: float
    p5: float
    normalised: float | None
    by_persona: Mapping[str, float]
    by_cluster: Mapping[int, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrast:
    """A method against a control that differs from it in one thing: method minus control, persona by persona."""

    method: str
    control: str
    difference: PairedDifference


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """All methods on identical items, the best first.

    Bounds, not methods, in units of the headline: `oracle` is the mean of each persona's best method and `ceiling` of each item's,
    both picked on the same items; `floor` is what somebody else's reference scores, `floor_same_prompt` what it scores when they
    asked for the most similar thing. `routing` is None without a method that chooses, or others to choose from. `contrasts` are with the
    controls that took part.
    """

    headline: str
    metrics: tuple[str, ...]
    reference: str | None
    methods: tuple[MethodResult, ...]
    champion: str
    oracle: float
    ceiling: float
    floor: float | None
    floor_same_prompt: float | None
    routing: RoutingBrackets | None
    contrasts: tuple[Contrast, ...]
    cluster_sizes: Mapping[int, int]
    cluster_by_persona: Mapping[str, int]
    n_items_by_persona: Mapping[str, int]
    n_personas: int
    n_personas_left_out: int
    n_items: int
    draws: int
    sentence: str

    def method(self, name: str) -> MethodResult:
        """Return the result of the method of this name."""
        return next(result for result in self.methods if result.method == name)
