"""The labels or ratings of a study whose answers are chosen among a few: which there are, and whether all that is scored is one of them."""

import logging
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from clusterlora.chat.encoder import PromptEncoder
from clusterlora.data.problems import Problems, SourceLocation
from clusterlora.errors import counted, printable
from clusterlora.settings import DataSettings, Task
from clusterlora.values import Persona, Split, Turn

log = logging.getLogger(__name__)

MOST_LABELS = 100
"""Labels beyond which a study is refused: every one of them is scored for every item and method."""

_LISTED = 5


def label_set(settings: DataSettings, personas: Sequence[Persona]) -> tuple[str, ...]:
    """Return the labels that an answer is chosen from, ratings by their value: those given, else all of the train split.

    It is empty where answers are text.
    """
    if settings.task == "text":
        return ()
    labels = {_plain(label, settings.task) for label in settings.labels} or set(_answers(personas, "train"))
    return tuple(sorted(labels, key=lambda label: (float(label) if is_number(label) else 0.0, label)))


def longest_label(settings: DataSettings, personas: Sequence[Persona], encoder: PromptEncoder) -> tuple[str, int]:
    """Return the longest label that a question of these people may be scored with, and its tokens; ("", 0) where answers are text.

    Before the split it is not known what train will hold: where no labels are given, all answers count.
    """
    if settings.task == "text":
        return "", 0
    every = (turn.text for person in personas for dialogue in person.dialogues for turn in dialogue.turns if turn.role == "assistant")
    labels = sorted({_plain(label, settings.task) for label in settings.labels} or set(every))
    lengths = encoder.n_response_tokens(labels)
    return max(zip(labels, lengths, strict=True), key=lambda label: label[1], default=("", 0))


def is_number(text: str) -> bool:
    """Return whether a text is a finite number, as people write it: `1_0` is none."""
    try:
        return "_" not in text and math.isfinite(float(text))
    except ValueError:
        return False


def plain_labels(personas: Sequence[Persona], task: Task) -> tuple[Persona, ...]:
    """Return the personas with labels as they are compared: without space around them, ratings in their shortest form."""

    def plain(turn: Turn) -> Turn:
        if turn.role != "assistant":
            return turn
        return replace(turn, text=_plain(turn.text, task))

    return tuple(
        replace(person, dialogues=tuple(replace(d, turns=tuple(map(plain, d.turns))) for d in person.dialogues)) for person in personas
    )


def _plain(text: str, task: Task) -> str:
    """Return a label without space around it; a rating in its shortest form, so that 4 and 4.0 are one."""
    if task != "rating" or not is_number(text):
        return text.strip()
    number = float(text) + 0.0  # -0 is 0
    return repr(number).removesuffix(".0")


def check_labels(settings: DataSettings, personas: Sequence[Persona], problems: Problems) -> None:
    """Add a problem for labels that cannot be scored: too few, too many, no numbers, or found in val or test alone.

    Where labels are given, train may hold other answers: they are learnt and never scored.
    """
    if settings.task == "text" or problems.count:
        return
    place, labels = SourceLocation(settings.path or settings.source), label_set(settings, personas)
    field = f"data.task = {settings.task!r}"
    numbers = [label for label in labels if is_number(label)]
    if len(labels) < 2:
        problems.add(place, field, f"the train split has {counted(len(labels), 'different answer')}", "two are needed to choose from")
    elif len(labels) > MOST_LABELS:
        what = f"the train split has {len(labels)} different answers, more than the {MOST_LABELS} that are scored for every item"
        problems.add(place, field, what, "use data.task=text, or list those that count in data.labels")
    elif settings.task == "rating" and len(numbers) < len(labels):
        others = [label for label in labels if label not in numbers]
        problems.add(place, field, f"{_listed(others)} {_are(others)} no number", "use data.task=label, or correct them")
    else:
        _check_scored(settings, personas, labels, (place, field), problems)


def _check_scored(
    settings: DataSettings, personas: Sequence[Persona], labels: Sequence[str], where: tuple[SourceLocation, str], problems: Problems
) -> None:
    for split in ("val", "test"):
        answers = Counter(_answers(personas, split))
        if unknown := sorted(answers.keys() - set(labels)):
            n_items = sum(answers[label] for label in unknown)
            known = "data.labels" if settings.labels else "the train split"
            what = f"{_listed(unknown)} {_are(unknown)} in {split} ({counted(n_items, 'answer')}) and not in {known}"
            problems.add(*where, what, f"list all labels in data.labels, give {split} other dialogues, or correct them")
    others = sum(answer not in labels for answer in _answers(personas, "train")) if settings.labels else 0
    if others:
        log.warning("%d train answers are none of the labels given: they are learnt and never scored", others)


def _answers(personas: Sequence[Persona], split: Split) -> Iterator[str]:
    """Yield every assistant turn in a split."""
    for persona in personas:
        for dialogue in persona.of_split(split):
            yield from (turn.text for turn in dialogue.turns if turn.role == "assistant")


def _listed(labels: Sequence[str]) -> str:
    shown = ", ".join(repr(printable(label[:60])) for label in labels[:_LISTED])
    return shown if len(labels) <= _LISTED else f"{shown} and {len(labels) - _LISTED} more"


def _are(labels: Sequence[str]) -> str:
    return "is" if len(labels) == 1 else "are"
