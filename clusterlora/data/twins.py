"""Dialogues that different people have in common, but for names or a few words, and those that have an exchange in common.

What unified or a cluster's adapter learns from one of them is scored on the other: for these methods, a leak.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from itertools import chain

from clusterlora.data.duplicates import normalised_text, pieces
from clusterlora.data.near_sets import FewApart, NearSets, WordNumbers, WordSet
from clusterlora.data.shared_exchanges import sharing_dialogues
from clusterlora.data.words import is_character
from clusterlora.values import Dialogue, Persona, Split

_LEAST_WORDS = 3
_ENOUGH_OWNERS = 2


def own_words(personas: Sequence[Persona]) -> frozenset[str]:
    """Return the words that only one persona's dialogues hold, names among them."""
    n_personas = Counter(word for persona in personas for word in {word for d in persona.dialogues for word in normalised_text(d).split()})
    return frozenset(word for word, n in n_personas.items() if n == 1)


def nameless_text(dialogue: Dialogue, own: AbstractSet[str]) -> str:
    """Return the normalised text with a blank for each word in `own`; as it is where these are most of it, or fewer than 3 would remain."""

    def is_own_character(word: str) -> bool:
        return word in own and is_character(word)

    words = normalised_text(dialogue).split(" ")
    n_common = sum(word not in own for word in words)
    if n_common < max(_LEAST_WORDS, len(words) / 2):
        return " ".join(words)
    # A name of several characters is one, however many they are.
    within_name = (is_own_character(before) and is_own_character(word) for before, word in zip(("", *words), words, strict=False))
    return " ".join("" if word in own else word for word, is_rest in zip(words, within_name, strict=True) if not is_rest)


def twins_words(n: int, of: int, split: Split) -> str:
    """Return in a sentence that so many of a later split's dialogues are near twins, and what follows."""
    repeats, shares = ("repeats", "shares") if n == 1 else ("repeat", "share")
    twins = f"nearly {repeats} a train dialogue of somebody else, or {shares} an exchange with one"
    consequence = "a leak for unified and clusters, which learn from several people, and none for per_persona"
    if split == "val":
        consequence = "the gate, and what else they decide, may favour unified and clusters, which learn from several people"
    return f"{n} of {of} {split} dialogues {twins}: {consequence}."


def near_twins(personas: Sequence[Persona]) -> Mapping[Split, Sequence[tuple[str, str]]]:
    """Return the test and val dialogues, as (persona id, dialogue id), that are nearly in somebody else's train split, or in an exchange.

    Near is a Jaccard similarity of 0.9 of the sets of words, as for near duplicates within a persona, or that each has at most two words
    that the other lacks, and both have five in common: names and small words; of pairs of neighbouring characters, six and ten.
    What exchanges count: `sharing_dialogues`.
    """
    sharing = sharing_dialogues(personas)
    words = WordNumbers()
    owners_by_set: dict[WordSet, set[str]] = {}
    for persona in personas:
        for dialogue in persona.of_split("train"):
            owners = owners_by_set.setdefault(words.numbers(pieces(normalised_text(dialogue))), set())
            # Two are enough: whoever asks is one of them at most.
            if len(owners) < _ENOUGH_OWNERS:
                owners.add(persona.id)
    later = [(p.id, d, words.numbers(pieces(normalised_text(d)))) for p in personas for d in p.dialogues if d.split in ("val", "test")]
    learnt = tuple(owners_by_set)
    frequencies = Counter(chain.from_iterable((*learnt, *(asked for _, _, asked in later))))
    indices = NearSets(learnt), FewApart(learnt, frequencies, words.pairs)

    def somebody_else_learns(persona_id: str, asked: WordSet) -> bool:
        near = chain.from_iterable(index.near(asked) for index in indices)
        return any(owners_by_set[learnt[position]] - {persona_id} for position in near)

    twins: dict[Split, list[tuple[str, str]]] = {"test": [], "val": []}
    for persona_id, dialogue, asked in later:
        if (persona_id, dialogue.id) in sharing or somebody_else_learns(persona_id, asked):
            twins["val" if dialogue.split == "val" else "test"].append((persona_id, dialogue.id))
    return twins
