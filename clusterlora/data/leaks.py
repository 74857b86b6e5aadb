"""Leaks between splits: train or val dialogues that a later split repeats, and what is counted of leaks that stay."""

from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet

from clusterlora.data.conversations import related_groups
from clusterlora.data.quoted_history import wholly_quoting_pairs
from clusterlora.data.twins import nameless_text, near_twins, own_words, twins_words
from clusterlora.data.written_labels import written_labels, written_words
from clusterlora.values import Dialogue, Persona, Split

_PROTECTION: dict[Split, int] = {"train": 0, "val": 1, "test": 2}


def find_leaks(personas: Iterable[Persona], own: AbstractSet[str] | None = None, *, labelled: bool = False) -> frozenset[tuple[str, str]]:
    """Return (persona id, dialogue id) of the dialogues in train or val that have a duplicate in val or test.

    Across personas these are texts that are equal but for names; within a persona, near duplicates and dialogues that share turns as parts
    of one conversation do. Where answers are labels, nothing is a leak across personas: many label the same things; and of two dialogues of
    which one quotes the other the later one may, as in a list of what was labelled so far.

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
        dialogues = persona.dialogues
        for quoted, quoting in wholly_quoting_pairs(dialogues) if labelled else ():
            if _protection(dialogues[quoting]) < _protection(dialogues[quoted]):
                leaking.add((persona.id, dialogues[quoting].id))
        for group in related_groups(persona.dialogues, labelled=labelled, quoted=not labelled):
            members = [persona.dialogues[position] for position in group]
            highest = max(_protection(member) for member in members)
            leaking |= {(persona.id, d.id) for d in members if _protection(d) < max(highest, most_protected.get(nameless_text(d, own), 0))}
    return frozenset(leaking)


def leak_note(personas: Sequence[Persona], *, labelled: bool = False) -> str | None:
    """Return in a sentence or two what leaks from train to later splits and is used all the same; None if nothing is found."""
    return " ".join(sentence for sentence, _ in counted_leaks(personas, labelled=labelled)) or None


def counted_leaks(personas: Sequence[Persona], *, labelled: bool = False) -> Iterator[tuple[str, tuple[str, str]]]:
    """Yield what leaks to test, and to val, in a sentence each, with the first (persona id, dialogue id)."""
    in_words = written_words if labelled else twins_words
    for split, leaking in (written_labels(personas) if labelled else near_twins(personas)).items():
        if leaking:
            yield in_words(len(leaking), sum(len(persona.of_split(split)) for persona in personas), split), leaking[0]


def _protection(dialogue: Dialogue) -> int:
    return _PROTECTION[dialogue.split] if dialogue.split else 0
