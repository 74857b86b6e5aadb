"""Exchanges of a persona, with the words of the prompt masked in the answer."""

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

from clusterlora.data.duplicates import duplicate_groups, normalize
from clusterlora.values import Dialogue, Persona, Split, Turn

MASK = "…"


@dataclass(frozen=True, slots=True)
class MaskedExchange:
    """A prompt with its situation, and the answer with `MASK` for each word that occurred before. `dialogue` is the dialogue's index."""

    prompt: str
    answer: str
    dialogue: int


def masked_exchanges(persona: Persona, split: Split, *, limit: int, labelled: bool = False) -> tuple[MaskedExchange, ...]:
    """Return the exchanges of the first `limit` dialogues of a persona in a split, without (near) duplicates.

    Answers that are labels are not masked: the prompt may name every label.
    """
    dialogues = persona.of_split(split)
    distinct = [dialogues[group[0]] for group in duplicate_groups(dialogues, labelled=labelled)][:limit]
    exchanges = (exchange for number, dialogue in enumerate(distinct) for exchange in _of_dialogue(dialogue, number, labelled=labelled))
    return tuple(exchanges)


def _of_dialogue(dialogue: Dialogue, number: int, *, labelled: bool) -> Iterator[MaskedExchange]:
    situation = ", ".join(value.replace("_", " ") for _, value in dialogue.context)
    for index, turn in enumerate(dialogue.turns):
        if turn.role != "assistant":
            continue
        before = dialogue.turns[:index]
        previous_text = " ".join(t.text for t in before)
        yield MaskedExchange(
            prompt=f"{_last_user_text(before)}\n{situation}",
            answer=turn.text if labelled else masked(turn.text, given=f"{situation} {previous_text}"),
            dialogue=number,
        )


def _last_user_text(turns: tuple[Turn, ...]) -> str:
    return next((turn.text for turn in reversed(turns) if turn.role == "user"), "")


def masked(text: str, *, given: str) -> str:
    """Return the text with `MASK` for every word that `given` contains, regardless of case.

    Where no spaces separate words, a run of characters is masked if `given` contains all of them.
    """
    given_words = set(normalize(given).split())
    runs = ((is_word, "".join(characters)) for is_word, characters in groupby(text, _is_of_word))
    return "".join(MASK if is_word and given_words.issuperset(normalize(run).split()) else run for is_word, run in runs)


def _is_of_word(character: str) -> bool:
    return character.isalnum() or character == "_" or unicodedata.category(character).startswith("M")
