"""Which dialogues of a persona are for training, for choices on the way, and for the final scores.

The order is a stable hash of (seed, persona, dialogue), so it depends on neither the order of the input nor on other personas.
Duplicates always stay together; dialogues cut from one conversation do where a persona has at least three conversations.
"""

import hashlib
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace

from clusterlora.data.duplicates import Partition, duplicate_groups, folded
from clusterlora.values import Dialogue, Persona, Split

SPLITS: tuple[Split, ...] = ("train", "val", "test")

_Groups = Sequence[Sequence[int]]


@dataclass(frozen=True, slots=True)
class SplitPlan:
    """What is asked of every persona: dialogues per split, the seed, and the texts that several personas share.

    Shared texts come first and in the same order for everybody, so that one person's test is not in another's training.
    """

    wanted: Mapping[Split, int]
    seed: int
    shared: AbstractSet[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a persona cannot be split, and what to do."""

    what: str
    fix: str = "give it at least 3 different dialogues, 1 for each split, or remove it"


@dataclass(frozen=True, slots=True)
class SplitPersona:
    """A persona with the dialogues it keeps, or the reason why it cannot be split; `by_row` says that conversations were cut."""

    persona: Persona
    refusal: Refusal | None = None
    by_row: bool = False


def split_persona(persona: Persona, plan: SplitPlan, conversations: Mapping[str, str]) -> SplitPersona:
    """Return the persona's dialogues with their splits, in their order; those not needed are left out.

    Args:
        conversations: what a dialogue was cut from, by dialogue id.
    """
    dialogues = persona.dialogues
    if any(dialogue.split for dialogue in dialogues):
        return _with_given_splits(persona, plan)
    if len(dialogues) < len(SPLITS):
        return SplitPersona(persona, Refusal(f"has {len(dialogues)} dialogue{'s' * (len(dialogues) != 1)}"))
    duplicates = duplicate_groups(dialogues)
    if len(duplicates) < len(SPLITS):
        return SplitPersona(persona, Refusal(f"has {len(dialogues)} dialogues but {len(duplicates)} after (near) duplicates"))
    groups = _with_conversations(duplicates, [conversations.get(dialogue.id) for dialogue in dialogues])
    by_row = len(groups) < len(SPLITS)
    assigned = _assign(_ordered(duplicates if by_row else groups, persona, plan), apportion(len(dialogues), plan.wanted))
    return SplitPersona(_kept(persona, assigned), by_row=by_row)


def apportion(n: int, wanted: Mapping[Split, int]) -> dict[Split, int]:
    """Return how many of n >= 3 dialogues go where: as wanted, or the same shares of what there is with at least 1 each."""
    total = sum(wanted.values())
    if n >= total:
        return dict(wanted)
    counts: dict[Split, int] = {split: max(1, n * share // total) for split, share in wanted.items()}
    while sum(counts.values()) != n:
        # The split furthest below (or above) its exact share gives way first; ties go to the first named.
        step = 1 if sum(counts.values()) < n else -1
        open_to: list[Split] = [split for split in counts if step > 0 or counts[split] > 1]
        counts[max(open_to, key=lambda split: step * (wanted[split] * n / total - counts[split]))] += step
    return counts


def _with_given_splits(persona: Persona, plan: SplitPlan) -> SplitPersona:
    unsaid = sum(dialogue.split is None for dialogue in persona.dialogues)
    if unsaid:
        what = f"has {unsaid} of {len(persona.dialogues)} dialogues without a split"
        return SplitPersona(persona, Refusal(what, "fill the split column for all rows or for none of a persona"))
    absent = [split for split in SPLITS if not persona.of_split(split)]
    if absent:
        return SplitPersona(
            persona, Refusal(f"has no {' and no '.join(absent)} dialogue", "put at least 1 into each split, or leave the column out")
        )
    assigned: dict[int, Split] = {}
    for split in SPLITS:
        singles = [(i,) for i, dialogue in enumerate(persona.dialogues) if dialogue.split == split]
        assigned |= {i: split for (i,) in _ordered(singles, persona, plan)[: plan.wanted[split]]}
    return SplitPersona(_kept(persona, assigned))


def _with_conversations(duplicates: _Groups, conversations: Sequence[str | None]) -> _Groups:
    joined = Partition(len(conversations))
    first_of: dict[str, int] = {}
    for group in duplicates:
        for position in group:
            joined.join(group[0], position)
            conversation = conversations[position]
            if conversation is not None:
                joined.join(first_of.setdefault(conversation, position), position)
    return joined.groups()


def _ordered(groups: _Groups, persona: Persona, plan: SplitPlan) -> list[list[int]]:
    """Return the groups in the order they are given out: shared texts, then the largest, then by hash."""

    def rank(position: int) -> tuple[bool, str]:
        dialogue: Dialogue = persona.dialogues[position]
        text = folded(dialogue) if plan.shared else ""
        own = text not in plan.shared
        return own, _hash(plan.seed, persona.id, dialogue.id) if own else _hash(plan.seed, text)

    ranked = [sorted((rank(position), position) for position in group) for group in groups]
    ranked.sort(key=lambda group: (group[0][0][0], -len(group), group[0][0][1]))
    return [[position for _, position in group] for group in ranked]


def _assign(groups: _Groups, counts: Mapping[Split, int]) -> dict[int, Split]:
    """Return the split of each position kept; of a group that fits nowhere, what fits."""
    room = dict(counts)
    assigned: dict[int, Split] = {}
    for index, group in enumerate(groups):
        empty: list[Split] = [name for name in SPLITS if room[name] == counts[name]]
        # The last groups are reserved for splits that have nothing yet.
        target = _roomiest(len(group), room, preferred=empty, reserved=len(groups) - index <= len(empty))
        taken = group[: room[target]]
        assigned |= dict.fromkeys(taken, target)
        room[target] -= len(taken)
    return assigned


def _roomiest(size: int, room: Mapping[Split, int], *, preferred: Sequence[Split], reserved: bool) -> Split:
    """Return the first split that a group fits in whole, else a preferred one, else the one with most room."""
    for name in preferred if reserved else SPLITS:
        if room[name] >= size:
            return name
    return max(preferred or SPLITS, key=lambda name: room[name])


def _kept(persona: Persona, assigned: Mapping[int, Split]) -> Persona:
    dialogues = tuple(replace(d, split=assigned[i]) for i, d in enumerate(persona.dialogues) if i in assigned)
    return replace(persona, dialogues=dialogues)


def _hash(*parts: object) -> str:
    return hashlib.sha256("\x1f".join(map(str, parts)).encode()).hexdigest()
