"""Summary of a data set: counts and distributions."""

from dataclasses import dataclass


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


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSummary:
    """Counts over a data set. An example is an assistant turn; lengths are in characters.

    `duplicates` counts the dialogues of a persona beyond the first of each group of (near) duplicates, `leaks` the train and val dialogues
    that a later split repeats, in the splits of the input or, after splitting, in the remaining data. `beginnings` counts the dialogues
    left out because a longer one begins with all of their turns, `near_twins` the test dialogues that nearly repeat a train dialogue of
    somebody else: a leak for the methods that learn from several people. `repetitive` names the personas with the most duplicates.
    `refusal` is the reason why the data cannot be trained on, if there is one. For a given base model, `lose_turns` counts the dialogues
    whose oldest turns do not fit, `do_not_fit` those that it cannot be asked.
    """

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
    near_twins: int = 0
    repetitive: tuple[tuple[str, int], ...] = ()
    refusal: str | None = None
    lose_turns: int | None = None
    do_not_fit: int | None = None
