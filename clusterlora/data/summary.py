"""Summary of a data set: counts and distributions."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil

_BINS = 16
_DECADES = 100
"""From this ratio of the largest to the smallest value, bins have equal ratios instead of equal widths."""


@dataclass(frozen=True, slots=True)
class Distribution:
    """Distribution of a count: percentiles, range, and a histogram.

    `bins[i]` is how many values are at least `edges[i]` and less than `edges[i + 1]`. Bins are equally wide, or of equal ratio
    (`logarithmic`) where the values span two decades or more.
    """

    p5: int
    median: int
    p95: int
    maximum: int
    minimum: int = 0
    bins: tuple[int, ...] = ()
    edges: tuple[float, ...] = ()
    logarithmic: bool = False

    @classmethod
    def of(cls, values: Iterable[int]) -> "Distribution":
        """Return the distribution of these counts; of none, that of a 0."""
        ordered = sorted(values) or [0]
        lowest, highest = ordered[0], ordered[-1]
        logarithmic = lowest > 0 and highest >= _DECADES * lowest
        edges = _edges(lowest, highest + 1, logarithmic=logarithmic)
        counts = Counter(bisect_right(edges, value) - 1 for value in ordered)
        bins = tuple(counts[number] for number in range(len(edges) - 1))
        p5, median, p95 = (ordered[round(share * (len(ordered) - 1))] for share in (0.05, 0.5, 0.95))
        return cls(p5, median, p95, highest, lowest, bins, edges, logarithmic)


def _edges(start: int, end: int, *, logarithmic: bool) -> tuple[float, ...]:
    """Return the edges of the bins of whole numbers from `start` to below `end`; each bin has at least one of them."""
    if not logarithmic:
        n_bins = min(_BINS, end - start)
        return tuple(start + number * (end - start) / n_bins for number in range(n_bins + 1))
    ratio = end / start
    return tuple(sorted({*(ceil(start * ratio ** (number / _BINS)) for number in range(_BINS)), end}))


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSummary:
    """How a data set fits a base model's tokens: an example is an assistant turn with its prompt.

    `max_length` and `max_new_tokens` are those of the study. `over_length` counts the examples that lose turns or cannot be asked under the
    first, `answers_cut` the answers that are longer than the second; the `needed_` ones hold 95 % of the train examples and answers, as
    far as base model and memory allow: `needed_holds_examples` and `needed_holds_answers` are the shares of train that they do hold, and
    `needed_asks_all` says whether every example can be asked, at least without its history.
    """

    base: str
    prompt_tokens: Distribution
    answer_tokens: Distribution
    max_length: int
    max_new_tokens: int
    over_length: int
    answers_cut: int
    needed_max_length: int
    needed_max_new_tokens: int
    needed_holds_examples: float
    needed_holds_answers: float
    needed_asks_all: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSummary:
    """Counts over a data set. An example is an assistant turn; lengths are in characters.

    Of the dialogues `read`, those that are used are in `train`, `val` and `test`, and `unused` says how many others there are and why;
    `other_shares` says who gets other shares than asked for.
    `duplicates` counts the dialogues of a persona beyond the first of each group of (near) duplicates, `leaks` the train and val dialogues
    that a later split repeats, in the splits of the input or, after splitting, in the remaining data. `beginnings` counts the dialogues
    left out because a longer one begins with all of their turns, `overlapping` those of the others that repeat turns of one another, in
    `messages`, prompt or system text, which makes them one conversation, and `near_twins` the test dialogues that nearly repeat a train
    dialogue of somebody else, or share an exchange with one: a leak for the methods that learn from several people. `repetitive` names the
    personas with the most duplicates, `similar_ids` the groups of personas whose ids look alike, `number_and_text` ids that stand as a
    number and as a text for one person, `unread` the columns and fields that nothing reads.
    `refusal` is the reason why the data cannot be trained on, if there is one. For a given base model, `lose_turns` counts the dialogues
    whose oldest turns do not fit, `do_not_fit` those that it cannot be asked.

    Where answers are labels, `labels` has each with its number of answers, `similar_labels` the groups that look alike, and
    `written_labels` counts the test dialogues whose label is written out in a train prompt of the same person.
    """

    read: int
    unused: tuple[tuple[str, int], ...] = ()
    personas: int
    described: int
    dialogues: int
    examples: int
    train: int
    val: int
    test: int
    dialogues_per_persona: Distribution
    dialogue_characters: Distribution
    response_characters: Distribution
    duplicates: int
    leaks: int
    beginnings: int = 0
    overlapping: int = 0
    near_twins: int = 0
    written_labels: int | None = None
    repetitive: tuple[tuple[str, int], ...] = ()
    similar_ids: tuple[tuple[str, ...], ...] = ()
    number_and_text: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    refusal: str | None = None
    lose_turns: int | None = None
    do_not_fit: int | None = None
    other_shares: tuple[str, ...] = ()
    tokens: TokenSummary | None = None
    labels: tuple[tuple[str, int], ...] = ()
    similar_labels: tuple[tuple[str, ...], ...] = ()
