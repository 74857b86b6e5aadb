"""Leaks between splits: train or val dialogues that a later split repeats, and what is counted of leaks that stay."""

from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet

from clusterlora.data.conversations import related_groups
from clusterlora.data.twins import nameless_text, own_words, twins_note
from clusterlora.data.written_labels import written_labels_note
from clusterlora.values import Dialogue, Persona, Split

_PROTECTION: dict[Split, int] = {"train": 0, "val": 1, "test": 2}


def find_leaks(personas: Iterable[Persona], own: AbstractSet[str] | None = None, *, labelled: bool = False) -> frozenset[tuple[str, str]]:
    """Return (persona id, dialogue id) of the dialogues in train or val that have a duplicate in val or test.

    Across personas these are texts that are equal but for names; within a persona, near duplicates and dialogues that share turns as parts
    of one conversation do. Where answers are labels, nothing is a leak across personas: many label the same things.

    Args:
        own: what counts as a name, by default the `own_words` of these personas. After dialogues were dropped, more words are only one
            persona's, and more texts would look equal: give those of all that was read.
    """
    personas = tuple(personas)
    own = own_words(personas) if own is None else own
    most_protected: dict[str, int] = {}
    for persona in () if labelled else personas:
        for dialogue in persona.dialogues:
            text = nameless_text(dialogue, own)
            most_protected[text] = max(most_protected.get(text, 0), _protection(dialogue))
    leaking: set[tuple[str, str]] = set()
    for persona in personas:
        for group in related_groups(persona.dialogues, labelled=labelled):
            members = [persona.dialogues[position] for position in group]
            highest = max(_protection(member) for member in members)
            leaking |= {(persona.id, d.id) for d in members if _protection(d) < max(highest, most_protected.get(nameless_text(d, own), 0))}
    return frozenset(leaking)


def leak_note(personas: Sequence[Persona], *, labelled: bool = False) -> str | None:
    """Return in a sentence what leaks from train to test in these splits and is used all the same; None if nothing is found."""
    return written_labels_note(personas) if labelled else twins_note(personas)


def _protection(dialogue: Dialogue) -> int:
    return _PROTECTION[dialogue.split] if dialogue.split else 0
