"""What is said of a data set: counts and distributions."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Quartet:
    """How a count is distributed: 5th percentile, median, 95th percentile and maximum.

    `bins` are how many there are in each of equally wide stretches from `minimum` to `maximum`.
    """

    p5: int
    median: int
    p95: int
    maximum: int
    minimum: int = 0
    bins: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSummary:
    """Counts over a data set. An example is an assistant turn; lengths are in characters.

    `duplicates` counts the dialogues of a persona beyond the first of each group of (near) equals, `leaks` those in train or val that
    a later split repeats: of the splits that the input gives, or, once the data is split, of what is left. `repetitive` names the
    personas with the most duplicates. `refusal` says why the data cannot be trained on, if it cannot.
    """

    personas: int
    described: int
    dialogues: int
    examples: int
    train: int
    val: int
    test: int
    dialogues_per_persona: Quartet
    dialogue_characters: Quartet
    response_characters: Quartet
    duplicates: int
    leaks: int
    repetitive: tuple[tuple[str, int], ...] = ()
    refusal: str | None = None
