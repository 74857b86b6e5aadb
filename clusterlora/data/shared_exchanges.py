"""Exchanges that several people have in common inside dialogues that are not alike as wholes, such as spans of one group conversation."""

from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from clusterlora.data.duplicates import n_words, normalize
from clusterlora.data.quoted_history import TELLING
from clusterlora.values import Dialogue, Persona

_FORMULA = 3
"""So many different turns before an exchange, or after it: a greeting or thanks, as in any dialogue."""
_LONG = 40
"""Words of question and answer beyond which they are none."""

_Words = tuple[str, str]
"""Question and answer, normalised."""


@dataclass(frozen=True, slots=True)
class _Exchange:
    """An exchange of a dialogue, with the turns before and after it."""

    dialogue: Dialogue
    words: _Words
    before: str
    after: str


def sharing_dialogues(personas: Sequence[Persona]) -> frozenset[tuple[str, str]]:
    """Return (persona id, dialogue id) of the val and test dialogues that have an exchange in common with somebody else's train split.

    Question and answer are equal but for case and punctuation, and have six words together, without those that the first questions of all
    of the person's dialogues share. An exchange that stands again and again amid other things, whoever has it, is a formula and does not
    count; in spans of one conversation it stands amid the same.
    """
    around: dict[tuple[_Words, bool], set[str]] = {}
    learners: dict[_Words, set[str]] = {}
    tested: list[tuple[str, str, _Words]] = []
    for persona in personas:
        for one in _telling_exchanges(persona):
            for is_after, turn in ((False, one.before), (True, one.after)):
                turns = around.setdefault((one.words, is_after), set()) if turn else set[str]()
                if len(turns) < _FORMULA and n_words(" ".join(one.words).split()) <= _LONG:
                    turns.add(turn)
            if one.dialogue.split == "train":
                learners.setdefault(one.words, set()).add(persona.id)
            else:
                tested.append((persona.id, one.dialogue.id, one.words))
    formulas = {words for (words, _), turns in around.items() if len(turns) >= _FORMULA}
    return frozenset(
        (persona_id, dialogue_id)
        for persona_id, dialogue_id, words in tested
        if words not in formulas and learners.get(words, set[str]()) - {persona_id}
    )


def _telling_exchanges(persona: Persona) -> Iterator[_Exchange]:
    """Yield the exchanges of a person's dialogues that have words enough."""
    spoken = [[(turn.role, normalize(turn.text)) for turn in dialogue.turns if turn.role != "system"] for dialogue in persona.dialogues]
    first, *others = {next((text for role, text in turns if role == "user"), ""): None for turns in spoken} or [""]
    template = set(first.split()).intersection(*(text.split() for text in others)) if others else set[str]()
    for dialogue, turns in zip(persona.dialogues, spoken, strict=True):
        texts = ["", *(text for _, text in turns), ""]
        for number in range(1, len(turns)):
            before, question, answer, after = texts[number - 1 : number + 3]
            if (turns[number - 1][0], turns[number][0]) == ("user", "assistant") and _is_telling(question, answer, template):
                yield _Exchange(dialogue, (question, answer), before, after)


def _is_telling(question: str, answer: str, template: AbstractSet[str]) -> bool:
    return n_words([*(word for word in question.split() if word not in template), *answer.split()]) >= TELLING
