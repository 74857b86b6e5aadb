"""What is in a data set, in numbers."""

from collections.abc import Iterable
from dataclasses import dataclass

from clusterlora.data.duplicates import duplicate_groups
from clusterlora.data.leaks import leaks
from clusterlora.data.load import limited, read, split
from clusterlora.data.problems import Problems
from clusterlora.errors import BadData
from clusterlora.settings import DataSettings
from clusterlora.values import Dataset


@dataclass(frozen=True, slots=True)
class Quartet:
    """How a count is distributed: 5th percentile, median, 95th percentile and maximum."""

    p5: int
    median: int
    p95: int
    maximum: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSummary:
    """Counts over a data set. An example is an assistant turn; lengths are in characters.

    `duplicates` counts the dialogues of a persona beyond the first of each group of (near) equals, `leaks` those that straddle
    splits. `refusal` says why the data cannot be trained on, if it cannot.
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
    refusal: str | None = None


def examine(settings: DataSettings) -> DataSummary:
    """Return what is in the source: after splitting, or, when it can be read but not trained on, as it is and why not.

    Raises:
        BadData: every problem of the input itself.
    """
    reading = read(settings)
    problems = Problems()
    dataset = split(limited(reading, settings, problems), settings, problems)
    try:
        problems.raise_any()
    except BadData as refusal:
        return summarise(reading.dataset, refusal=str(refusal))
    return summarise(dataset)


def summarise(dataset: Dataset, *, refusal: str | None = None) -> DataSummary:
    """Return the counts of a data set, split or not."""
    dialogues = [dialogue for persona in dataset.personas for dialogue in persona.dialogues]
    splits = [dialogue.split for dialogue in dialogues]
    responses = [len(turn.text) for dialogue in dialogues for turn in dialogue.turns if turn.role == "assistant"]
    return DataSummary(
        personas=len(dataset.personas),
        described=sum(persona.description is not None for persona in dataset.personas),
        dialogues=len(dialogues),
        examples=len(responses),
        train=splits.count("train"),
        val=splits.count("val"),
        test=splits.count("test"),
        dialogues_per_persona=_quartet(len(persona.dialogues) for persona in dataset.personas),
        dialogue_characters=_quartet(sum(len(turn.text) for turn in dialogue.turns) for dialogue in dialogues),
        response_characters=_quartet(responses),
        duplicates=sum(len(group) - 1 for persona in dataset.personas for group in duplicate_groups(persona.dialogues)),
        leaks=len(leaks(dataset.personas)),
        refusal=refusal,
    )


def _quartet(values: Iterable[int]) -> Quartet:
    ordered = sorted(values) or [0]
    return Quartet(*(ordered[round(share * (len(ordered) - 1))] for share in (0.05, 0.5, 0.95, 1.0)))
