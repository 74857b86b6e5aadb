"""Dialogues that different people have in common, but for a name or a few words.

What unified or a cluster's adapter learns from one of them is scored on the other: for these methods, a leak.
"""

from collections import Counter
from collections.abc import Sequence
from collections.abc import Set as AbstractSet

from clusterlora.data.duplicates import normalised_text
from clusterlora.data.near_sets import NearSets, WordNumbers, WordSet
from clusterlora.values import Dialogue, Persona

_LEAST_WORDS = 3
_ENOUGH_OWNERS = 2


def own_words(personas: Sequence[Persona]) -> frozenset[str]:
    """Return the words that only one persona's dialogues hold, names among them."""
    n_personas = Counter(word for persona in personas for word in {word for d in persona.dialogues for word in normalised_text(d).split()})
    return frozenset(word for word, n in n_personas.items() if n == 1)


def nameless_text(dialogue: Dialogue, own: AbstractSet[str]) -> str:
    """Return the normalised text with a blank for each word in `own`; as it is where these are most of it, or fewer than 3 would remain."""
    words = normalised_text(dialogue).split(" ")
    n_common = sum(word not in own for word in words)
    if n_common < max(_LEAST_WORDS, len(words) / 2):
        return " ".join(words)
    return " ".join("" if word in own else word for word in words)


def twins_note(personas: Sequence[Persona]) -> str | None:
    """Return in a sentence how many test dialogues have a near twin in somebody else's train split; None without any."""
    twins = near_twins(personas)
    if not twins:
        return None
    n_test = sum(len(persona.of_split("test")) for persona in personas)
    return (
        f"{len(twins)} of {n_test} test dialogues nearly repeat a train dialogue of somebody else: a leak for unified and clusters, which "
        "learn from several people, and none for per_persona."
    )


def near_twins(personas: Sequence[Persona]) -> tuple[tuple[str, str], ...]:
    """Return (persona id, dialogue id) of the test dialogues that nearly repeat a train dialogue of somebody else.

    Near is a Jaccard similarity of 0.9 of the sets of words, as for near duplicates within a persona.
    """
    words = WordNumbers()
    owners_by_set: dict[WordSet, set[str]] = {}
    for persona in personas:
        for dialogue in persona.of_split("train"):
            owners = owners_by_set.setdefault(words.numbers(normalised_text(dialogue).split()), set())
            # Two are enough: whoever asks is one of them at most.
            if len(owners) < _ENOUGH_OWNERS:
                owners.add(persona.id)
    learnt = tuple(owners_by_set)
    index = NearSets(learnt)

    def somebody_else_learns(persona_id: str, dialogue: Dialogue) -> bool:
        near = index.near(words.numbers(normalised_text(dialogue).split()))
        return any(owners_by_set[learnt[position]] - {persona_id} for position in near)

    return tuple((p.id, d.id) for p in personas for d in p.of_split("test") if somebody_else_learns(p.id, d))
