"""The result of a comparison as values."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from clusterlora.errors import counted
from clusterlora.evaluation.cut import CutAnswers
from clusterlora.evaluation.metrics import METRICS
from clusterlora.evaluation.shown import ShownExchanges

ShownOutcome = Literal["better", "worse", "equivalent", "undecided"]
"""Outcome of comparing two methods: shown to be better or worse; equivalent, the difference lying within the margin by two one-sided
tests; or undecided, for too few personas and items."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedDifference:
    """The difference between two methods on the headline metric: method minus other, paired by persona.

    `ci_low` and `ci_high` bound the mean difference if personas are independent; `robust_low` and `robust_high` bound it if those
    whom the same adapters answer are dependent (None if nobody shares one with some of the others alone). `p_holm` is `p` corrected for the
    number of tests in its family. A persona is a win when the method is better by more than rounding; `win_low` and `win_high` bound
    the win rate. `outcome` is better or worse when interval and corrected test agree. `detectable` is the smallest gain that a study
    with this variance, number of personas and tests detects with 80 % power; None when it detects none. `margin` is that of equivalence.
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
    margin: float
    robust_low: float | None
    robust_high: float | None
    by_cluster: Mapping[int, float]

    @property
    def loss_rate(self) -> float:
        """Share of personas for which the method is worse."""
        return max(0.0, 1.0 - self.win_rate - self.tie_rate)

    @property
    def win_tie_loss(self) -> tuple[str, str, str]:
        """Shares of personas in percent, to a tenth: equal shares read alike, and few personas are not none."""
        # The third share is a difference of the others, and off by their rounding.
        win, tie, loss = (f"{round(100 * share, 9):.1f}" for share in (self.win_rate, self.tie_rate, self.loss_rate))
        return win, tie, loss

    @property
    def may_be_luck(self) -> bool:
        """Whether the difference may be that of a few adapters' luck: its direction is open if people who share adapters are dependent."""
        return self.robust_low is not None and self.robust_high is not None and self.robust_low <= 0 <= self.robust_high

    @property
    def clusters_disagree(self) -> bool:
        """Whether the method gains in some clusters and loses in others."""
        return min(self.by_cluster.values()) < 0 < max(self.by_cluster.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class NoChampion:
    """Why no method is champion, and `method`, the one that came nearest.

    `too few`: fewer personas or items than a verdict needs. `floor`: the method is not shown to be better than the floor. `base model`: it
    is not shown to beat the base model; `difference` is method minus base model. `second headline`: it is shown to be worse than the
    reference there; `difference` is on that metric. `lowest`: nothing is shown to beat the reference, whose mean is the worst of all. `no
    candidate`: only the base model and controls were compared. `no reference`: the reference was not.
    """

    reason: Literal["too few", "floor", "base model", "second headline", "lowest", "no candidate", "no reference"]
    method: str | None = None
    difference: PairedDifference | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingBrackets:
    """Bounds of a method that routes to the others: `random` is the expected score of a random choice, `oracle` that of a perfect one.

    Both are means over personas of the headline metric; the oracle picks each persona's best method on one half of their dialogues and is
    scored on the other half. Controls cannot be chosen.
    """

    method: str
    random: float
    oracle: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodResult:
    """The results of one method. `means` has every metric, averaged over personas; all else is in units of the headline metric.

    `vs_reference` is None for the reference itself and without a reference. `worst_shrunken` is the mean of the worst persona after
    shrinking means for their few items. `normalised` is 0 at the floor and 1 at the ceiling, negative where it is worse than the floor;
    None without a floor, and where the scale has no room: the ceiling is not better than the floor by more than the margin of equivalence.
    `beside` has the differences to the reference on the metrics that stand beside the headline, in units of each of these.
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
    beside: Mapping[str, PairedDifference]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrast:
    """The difference between a method and another that is not the reference: method minus other, paired by persona.

    The other is a control, which differs in one thing from the method it controls, or the runner-up to the champion.
    """

    method: str
    other: str
    is_control: bool
    difference: PairedDifference


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """All methods on identical items, the best first. The headline decides; the metrics `beside` it are compared in the same way and told.

    Bounds, not methods, in units of the headline: `oracle` is the mean of each persona's best method, controls excluded, picked on one half
    of its dialogues and scored on the other, where `n_with_one_dialogue` people have no halves and count with the mean of the methods;
    `ceiling` is the mean of each item's best method, picked on the same items; `floor` is the score of another
    persona's reference or, of a likelihood, that of a uniform guess, `floor_same_prompt` that of another persona's reference for the most
    similar prompt. `routing` is None without a routing method or without methods to choose from. `contrasts` compare the champion
    with all controls that took part, other methods with their own, and the champion with the runner-up. Differences below `margin` count
    as equivalent. `gate` is a sentence on the outcome of the gate; None without one. `champion` is None where `no_champion` says why;
    where it says "too few", that of a refreshed study stays. `same_answers` are the methods that score on every item as another does, with
    that other: the reference or the champion under another name.
    """

    headline: str
    metrics: tuple[str, ...]
    beside: tuple[str, ...]
    second_headline: str | None
    reference: str | None
    methods: tuple[MethodResult, ...]
    champion: str | None
    no_champion: NoChampion | None
    same_answers: Mapping[str, str]
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
    sentence: str = ""
    cut: Mapping[str, CutAnswers] = field(default_factory=dict[str, CutAnswers])
    """By method, where it is known: the answers that were cut at `max_new_tokens`."""

    shown: Mapping[str, ShownExchanges] = field(default_factory=dict[str, ShownExchanges])
    """By method with retrieval: what was chosen for its prompts on val."""

    obstacles: Mapping[str, NoChampion] = field(default_factory=dict[str, NoChampion])
    """By method: the first thing that every champion must have and this method lacks."""

    n_with_one_dialogue: int = 0
    """People whose test items are all of one dialogue."""

    tuning: str | None = None
    """A sentence on what the methods were tuned by; None where none was."""

    def method(self, name: str) -> MethodResult:
        """Return the result of a method by name."""
        return next(result for result in self.methods if result.method == name)

    @property
    def lead(self) -> str | None:
        """The champion, else the reference: what the others are measured by; None without either."""
        return self.champion or self.reference

    @property
    def oracle_is(self) -> str:
        """What the oracle is, as a phrase, with how many people have no halves to pick and to score on."""
        n = self.n_with_one_dialogue
        has = "has one test dialogue and counts" if n == 1 else "have one test dialogue and count"
        undivided = f"; {n} of {counted(self.n_personas, 'persona')} {has} with the mean of the methods" if n else ""
        return f"each persona's best method, picked on half of its test dialogues and scored on the others{undivided}"

    @property
    def has_verdict(self) -> bool:
        """Whether there are personas and items enough for a verdict."""
        return self.no_champion is None or self.no_champion.reason != "too few"

    def recorded(self, outcome: ShownOutcome) -> ShownOutcome | Literal["too few"]:
        """Return what an outcome is called in records: without a verdict nothing is shown, whatever the tests say."""
        return outcome if self.has_verdict else "too few"

    @property
    def has_room(self) -> bool:
        """Whether floor and ceiling are further apart than the margin, so that positions between them mean something."""
        return any(result.normalised is not None for result in self.methods)

    def is_worse_than_floor(self, result: MethodResult) -> bool:
        """Return whether a method scores worse on average than what sets the floor does."""
        return self.floor is not None and METRICS[self.headline].is_better(self.floor, than=result.means[self.headline])

    def is_ahead(self, contrast: Contrast) -> bool:
        """Return whether the other method of a contrast has the better mean."""
        own, others = (self.method(name).means[self.headline] for name in (contrast.method, contrast.other))
        return METRICS[self.headline].is_better(others, than=own)

    @property
    def bar_start(self) -> float:
        """The score at which a drawing's bars start, so that a longer bar is a better method.

        That is the floor, the score without any personalisation; 0 without a floor, where a method is worse: its bar would grow
        leftwards, the longer the worse; and where lower is better, so that no longer bar is.
        """
        worse = any(self.is_worse_than_floor(result) for result in self.methods)
        return 0.0 if self.floor is None or worse or not METRICS[self.headline].higher_is_better else self.floor

    def contrast(self, method: str, other: str) -> Contrast | None:
        """Return the contrast of two methods; None when it was not tested."""
        return next((contrast for contrast in self.contrasts if (contrast.method, contrast.other) == (method, other)), None)
