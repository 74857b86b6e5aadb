"""Rows whose label stands in a prompt that is trained on: a list of what the person rated so far tells their rating of this thing."""

from collections.abc import Mapping, Sequence

from clusterlora.data.listed_things import ListedThings
from clusterlora.data.quoted_history import wholly_quoting_pairs
from clusterlora.values import Persona, Split


def written_words(n: int, of: int, split: Split) -> str:
    """Return in a sentence that a train prompt answers so many of a later split's dialogues, and what helps."""
    answered = "is answered" if n == 1 else "are answered"
    leak = "a leak" if split == "test" else "the gate, and what else they decide, may favour what has learnt from it"
    return (
        f"{n} of {of} {split} dialogues {answered} in a train prompt of the same person, as in a list of what was rated so far: {leak}. "
        "Let prompts list only what no other row asks about, or give a split column in order of time."
    )


def written_labels(personas: Sequence[Persona]) -> Mapping[Split, Sequence[tuple[str, str]]]:
    """Return the test and val dialogues, as (persona id, dialogue id), whose label is written out in a train prompt of the same person.

    It stands there in a list (`ListedThings`), or after their question (`wholly_quoting_pairs`).
    """
    written: dict[Split, list[tuple[str, str]]] = {"test": [], "val": []}
    for persona in personas:
        train = {position for position, dialogue in enumerate(persona.dialogues) if dialogue.split == "train"}
        quoted = {position for position, quoting in wholly_quoting_pairs(persona.dialogues) if quoting in train}
        for position in sorted(quoted | ListedThings(persona.dialogues, sorted(train)).answered()):
            dialogue = persona.dialogues[position]
            if dialogue.split in ("test", "val"):
                written["val" if dialogue.split == "val" else "test"].append((persona.id, dialogue.id))
    return written
