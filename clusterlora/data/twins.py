"""Dialogues that different people have in common, but for a name or a few words.

What unified or a cluster's adapter learns from one of them is scored on the other: for these methods, a leak.
"""

from collections import Counter
from collections.abc import Sequence
from collections.abc import Set as AbstractSet

from clusterlora.data.duplicates import NEAR, normalised_text
from clusterlora.values import Dialogue, Persona

_LEAST_WORDS = 3
_BLOCK = 512
"""Dialogues compared at a time: a block of 512 with 10,000 others takes 20 MB."""


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
    import numpy as np  # imported late: --help and reading data need neither
    from scipy.sparse import csr_array

    test = [(persona.id, d) for persona in personas for d in persona.of_split("test")]
    train = [(persona.id, d) for persona in personas for d in persona.of_split("train")]
    if not test or not train:
        return ()
    number_by_word: dict[str, int] = {}

    def matrix(dialogues: Sequence[tuple[str, Dialogue]]) -> "csr_array":
        rows = [sorted({number_by_word.setdefault(w, len(number_by_word)) for w in normalised_text(d).split()}) for _, d in dialogues]
        ends = np.cumsum([0, *map(len, rows)])
        columns = np.array([number for row in rows for number in row], dtype=np.int64)
        return csr_array((np.ones(len(columns), np.float32), columns, ends), shape=(len(rows), len(number_by_word)))

    learnt, scored = matrix(train), matrix(test)
    learnt.resize(len(train), len(number_by_word))
    n_learnt, n_scored = (np.asarray(m.sum(axis=1)).ravel() for m in (learnt, scored))
    owner = np.array([persona_id for persona_id, _ in train])
    found: list[tuple[str, str]] = []
    for start in range(0, len(test), _BLOCK):
        common = (scored[start : start + _BLOCK] @ learnt.T).toarray()
        union = n_scored[start : start + _BLOCK, None] + n_learnt - common
        other = owner != np.array([persona_id for persona_id, _ in test[start : start + _BLOCK]])[:, None]
        hits = ((common >= NEAR * union - 1e-6) & other).any(axis=1)
        found += [(persona_id, d.id) for (persona_id, d), hit in zip(test[start : start + _BLOCK], hits, strict=True) if hit]
    return tuple(found)
