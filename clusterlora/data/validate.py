"""What is in a data set, in numbers."""

from collections import Counter
from dataclasses import replace
from typing import Any

from clusterlora.data.conversations import n_overlapping
from clusterlora.data.duplicates import duplicate_groups
from clusterlora.data.labels import check_labels
from clusterlora.data.leaks import find_leaks
from clusterlora.data.load import fitted, limited, read, split
from clusterlora.data.problems import Problems
from clusterlora.data.prompt_fit import PromptFit
from clusterlora.data.similar_ids import similar_ids
from clusterlora.data.summary import DataSummary, Distribution
from clusterlora.data.twins import near_twins
from clusterlora.data.written_labels import written_labels
from clusterlora.errors import BadData
from clusterlora.settings import DataSettings
from clusterlora.values import Dataset

_MOST_NAMED = 5


def examine(settings: DataSettings, fit: PromptFit | None = None) -> DataSummary:
    """Return what is in the source: after splitting, or, when it can be read but not trained on, as it is and why not.

    Args:
        fit: counts how the dialogues fit a base model, too.

    Raises:
        BadData: every problem of the input itself.
    """
    reading = read(settings)
    problems = Problems()
    chosen = limited(reading, settings, problems)
    labelled = settings.task != "text"
    done = split(fitted(chosen, fit, settings, problems) if fit else chosen, settings, problems)
    check_labels(settings, done.dataset.personas, problems)
    counts: dict[str, Any] = {"lose_turns": fit.n_losing_turns, "do_not_fit": fit.n_unfit} if fit else {}
    counts["beginnings"] = reading.n_beginnings
    counts["overlapping"] = sum(n_overlapping(persona.dialogues, quoted=not labelled) for persona in reading.dataset.personas)
    alike: dict[str, Any] = {
        "similar_ids": similar_ids(persona.id for persona in reading.dataset.personas),
        "number_and_text": reading.number_and_text,
        "unread": reading.unread,
    }
    try:
        problems.raise_any()
    except BadData as refusal:
        unused = tuple(reading.unused.items())
        return replace(
            summarise(reading.dataset, labelled=labelled, refusal=str(refusal)),
            read=reading.n_read,
            unused=unused,
            **alike,
            **counts,
        )
    # Splitting leaves leaking dialogues out; what the input's own splits leak must be told all the same.
    leaks = len(find_leaks(reading.dataset.personas, labelled=labelled))
    unused = tuple(done.unused.items())
    return replace(
        summarise(done.dataset, labelled=labelled),
        read=done.n_read,
        unused=unused,
        other_shares=done.uneven,
        leaks=leaks,
        **alike,
        **counts,
    )


def summarise(dataset: Dataset, *, labelled: bool = False, refusal: str | None = None) -> DataSummary:
    """Return the counts of a data set, split or not; `labelled` says that its answers are labels."""
    dialogues = [dialogue for persona in dataset.personas for dialogue in persona.dialogues]
    splits = [dialogue.split for dialogue in dialogues]
    repeated = Counter(
        {
            persona.id: sum(len(group) - 1 for group in duplicate_groups(persona.dialogues, labelled=labelled))
            for persona in dataset.personas
        }
    )
    answers = [turn.text for dialogue in dialogues for turn in dialogue.turns if turn.role == "assistant"]
    labels = Counter(answers) if labelled else Counter[str]()
    return DataSummary(
        read=dataset.n_dialogues,
        personas=len(dataset.personas),
        described=sum(persona.description is not None for persona in dataset.personas),
        dialogues=len(dialogues),
        examples=len(answers),
        train=splits.count("train"),
        val=splits.count("val"),
        test=splits.count("test"),
        dialogues_per_persona=Distribution.of(len(persona.dialogues) for persona in dataset.personas),
        dialogue_characters=Distribution.of(sum(len(turn.text) for turn in dialogue.turns) for dialogue in dialogues),
        response_characters=Distribution.of(map(len, answers)),
        duplicates=repeated.total(),
        leaks=len(find_leaks(dataset.personas, labelled=labelled)),
        near_twins=0 if labelled else len(near_twins(dataset.personas)["test"]),
        written_labels=len(written_labels(dataset.personas)["test"]) if labelled else None,
        repetitive=tuple((persona_id, n) for persona_id, n in repeated.most_common(_MOST_NAMED) if n),
        refusal=refusal,
        labels=tuple(labels.most_common()),
        similar_labels=similar_ids(labels),
    )
