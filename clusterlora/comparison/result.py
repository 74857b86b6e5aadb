"""The outcome of a comparison as values."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

ShownOutcome = Literal["better", "worse", "equivalent", "undecided"]
"""How a method stands to another: shown to be better or worse, or not told apart. Then it is either equivalent, the difference lying
within the margin by two one-sided tests, or undecided: too few people and items to know."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedDifference:
    """A method against another on the headline metric: method minus other, persona by persona.

    `ci_low` and `ci_high` bound the mean difference, personas taken as independent; `robust_low` and `robust_high` bound it when those of
    a cluster depend on each other (None with one cluster). `p_holm` is `p` corrected for the number of tests in its family. A
    persona is won when the method is better by more than rounding; `win_low` and `win_high` bound the win rate. `outcome` is better or
    worse when interval and corrected test both say so. `detectable` is the smallest gain that a study with this variance, number of
    personas and tests shows four times in five; None when it could show none.
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
    outcome: ShownOutcome
    detectable: float | None
    robust_low: float | None
    robust_high: float | None
    by_cluster: Mapping[int, float]

    @property
    def loss_rate(self) -> float:
        """Share of the personas for whom the method is worse."""
        return max(0.0, 1.0 - self.win_rate - self.tie_rate)

    @property
    def clusters_disagree(self) -> bool:
        """Whether the method gains in some clusters and loses in others."""
        return min(self.by_cluster.values()) < 0 < max(self.by_cluster.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingBrackets:
    """Where a method that chooses among the others can end: `random` is the expected score of a blind choice, `oracle` of a perfect one.

    Both are means over personas of the headline metric; the oracle picks each persona's best on one half of the compared items and is
    scored on the other. Controls are no choice.
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
    """A method against another that is not the reference: method minus other, persona by persona.

    The other is a control, which differs from what it controls in one thing, or the runner-up behind a champion.
    """

    method: str
    other: str
    is_control: bool
    difference: PairedDifference


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """All methods on identical items, the best first.

    Bounds, not methods, in units of the headline: `oracle` is the mean of each persona's best method, picked on one half of its items and
    scored on the other; `ceiling` is that of each item's best method, picked on the same items; `floor` is what somebody else's
    reference scores, `floor_same_prompt` what it scores when they asked for the most similar thing. `routing` is None without a method
    that chooses, or others to choose from. `contrasts` are of the champion and of `cluster` with the controls that took part, and of
    the champion with the runner-up. `margin` is the difference that makes no difference. `gate` says how the gate ended, in a
    sentence; None without one.
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
    n_seeds: int
    draws: int
    margin: float
    gate: str | None
    sentence: str

    def method(self, name: str) -> MethodResult:
        """Return the result of the method of this name."""
        return next(result for result in self.methods if result.method == name)

    def contrast(self, method: str, other: str) -> Contrast | None:
        """Return the contrast of these two; None when it was not tested."""
        return next((contrast for contrast in self.contrasts if (contrast.method, contrast.other) == (method, other)), None)
