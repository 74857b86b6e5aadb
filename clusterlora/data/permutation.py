"""People whose dialogues are anybody's: the null hypothesis that nothing in a dialogue says whose it is, made of the study's own data."""

from collections import defaultdict
from dataclasses import replace
from random import Random

from clusterlora.data.conversations import related_groups
from clusterlora.data.source import SourceData
from clusterlora.values import Dataset, Dialogue, Split

_Unit = tuple[str, tuple[Dialogue, ...]]
"""The person that dialogues are of, and those that belong on one side of a split."""


def permuted(reading: SourceData, seed: int, *, labelled: bool = False) -> SourceData:
    """Return the data with everybody's dialogues exchanged at random, so that labels say nothing; names and descriptions stay.

    What belongs on one side of a split stays together and changes places with as many dialogues of somebody else, of the same split if the
    input gives splits. Everybody has as many dialogues as before. `labelled` says that answers are labels.
    """
    units: dict[tuple[int, Split | None], list[_Unit]] = defaultdict(list)
    slots: dict[tuple[int, Split | None], list[str]] = defaultdict(list)
    for persona in reading.dataset.personas:
        for unit in _units(reading, persona.id, persona.dialogues, labelled=labelled):
            kind = (len(unit), unit[0].split)
            units[kind].append((persona.id, unit))
            slots[kind].append(persona.id)
    dealt: dict[str, list[Dialogue]] = {persona.id: [] for persona in reading.dataset.personas}
    conversations: dict[tuple[str, str], str] = {}
    rng = Random(seed)
    for kind in sorted(units, key=str):
        shuffled = list(units[kind])
        rng.shuffle(shuffled)
        for persona_id, (origin, unit) in zip(slots[kind], shuffled, strict=True):
            for dialogue in unit:
                # Dialogues of two people may have the same id.
                moved = replace(dialogue, id=f"{origin}/{dialogue.id}")
                dealt[persona_id].append(moved)
                conversation = reading.conversation_by_dialogue.get((origin, dialogue.id))
                if conversation is not None:
                    conversations[persona_id, moved.id] = f"{origin}/{conversation}"
    personas = tuple(replace(persona, dialogues=tuple(dealt[persona.id])) for persona in reading.dataset.personas)
    return replace(reading, dataset=Dataset(personas), conversation_by_dialogue=conversations)


def _units(reading: SourceData, persona_id: str, dialogues: tuple[Dialogue, ...], *, labelled: bool) -> list[tuple[Dialogue, ...]]:
    """Return a person's dialogues in groups of the same split that are one conversation, repeat each other, or share turns."""
    groups = related_groups(dialogues, labelled=labelled)
    group_by_position = {position: number for number, group in enumerate(groups) for position in group}
    units: dict[object, list[Dialogue]] = {}
    for position, dialogue in enumerate(dialogues):
        conversation = reading.conversation_by_dialogue.get((persona_id, dialogue.id))
        key = ("conversation", conversation) if conversation is not None else ("group", group_by_position.get(position, -1 - position))
        units.setdefault((key, dialogue.split), []).append(dialogue)
    return [tuple(unit) for unit in units.values()]
