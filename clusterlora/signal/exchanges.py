"""What is measured: prompts and what was said to them, without the words that the prompt had already."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from clusterlora.data.duplicates import duplicate_groups, fold
from clusterlora.values import Dialogue, Persona, Split, Turn

MASK = "…"
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class MaskedExchange:
    """What somebody asked in some situation, and the answer with `MASK` for each word of the dialogue before it. `dialogue` numbers it."""

    prompt: str
    answer: str
    dialogue: int


def exchanges(persona: Persona, split: Split, *, most: int) -> tuple[MaskedExchange, ...]:
    """Return the exchanges of a persona's first `most` different dialogues of one split; of (near) equal dialogues the first counts."""
    spoken = persona.of_split(split)
    different = [spoken[group[0]] for group in duplicate_groups(spoken)][:most]
    return tuple(found for number, dialogue in enumerate(different) for found in _of_dialogue(dialogue, number))


def _of_dialogue(dialogue: Dialogue, number: int) -> Iterator[MaskedExchange]:
    situation = ", ".join(value.replace("_", " ") for _, value in dialogue.context)
    for index, turn in enumerate(dialogue.turns):
        if turn.role != "assistant":
            continue
        before = dialogue.turns[:index]
        said = " ".join(t.text for t in before)
        yield MaskedExchange(
            prompt=f"{_last_words(before)}\n{situation}", answer=masked(turn.text, given=f"{situation} {said}"), dialogue=number
        )


def _last_words(turns: tuple[Turn, ...]) -> str:
    return next((turn.text for turn in reversed(turns) if turn.role == "user"), "")


def masked(text: str, *, given: str) -> str:
    """Return the text with every word that `given` has replaced, whatever its case."""
    known = set(fold(given).split())
    return _WORD.sub(lambda word: MASK if fold(word[0]) in known else word[0], text)
