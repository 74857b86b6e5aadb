"""Split of a persona's dialogues into train, val (for choices) and test (for the final scores).

The order is a hash of (seed, persona, dialogue), so it depends neither on the order of the input nor on other personas. Duplicates and
dialogues that share turns always get the same split; so do those of one conversation if the persona has at least three conversations.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from itertools import permutations

from clusterlora.data.conversations import related_groups
from clusterlora.data.duplicates import UnionFind, duplicate_groups
from clusterlora.data.twins import nameless_text
from clusterlora.values import Dialogue, Persona, Split

SPLITS: tuple[Split, ...] = ("train", "val", "test")
ENOUGH_TEST = 4
"""Test dialogues that a person with few dialogues keeps, if that many are requested and half of all are left to train on: a
person's mean over one or two items says little."""

BEYOND = "more than train + val + test ask of a person (data.dialogues=all uses them)"
"""Why dialogues of people who have more than enough are not used."""

_Groups = Sequence[Sequence[int]]


@dataclass(frozen=True, slots=True)
class SplitPlan:
    """Dialogues per split and persona, the seed, and the texts that several personas share but for their `own_words`.

    Shared texts are assigned first and in the same order for every persona, so that no persona's test text is in another's train split.
    With `use_all` the counts are proportions of all of a persona's dialogues. `labelled` says that answers are labels.
    """

    counts: Mapping[Split, int]
    seed: int
    shared: AbstractSet[str] = frozenset()
    own_words: AbstractSet[str] = frozenset()
    use_all: bool = False
    labelled: bool = False

    def counts_of(self, n: int) -> dict[Split, int]:
        """Return the dialogues per split of a persona with n of them."""
        return _proportional(n, self.counts) if self.use_all else apportion(n, self.counts)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a persona cannot be split, and how to fix it."""

    what: str
    fix: str = "give it at least 3 different dialogues, 1 for each split, or remove it"


@dataclass(frozen=True, slots=True)
class SplitPersona:
    """A persona with split dialogues, or the reason why it cannot be split.

    `by_row`: conversations were divided between splits; `lists_divided`: rows were that list each other's. `has_shares`: every split
    has as many dialogues as it should. `n_beyond` counts those that are left out because the splits ask for fewer.
    """

    persona: Persona
    refusal: Refusal | None = None
    by_row: bool = False
    lists_divided: bool = False
    has_shares: bool = True
    n_beyond: int = 0


def split_persona(persona: Persona, plan: SplitPlan, conversations: Mapping[str, str]) -> SplitPersona:
    """Return the persona with its dialogues' splits, in their order; dialogues beyond the counts are dropped.

    Args:
        conversations: conversation that a dialogue is a part of, by dialogue id.
    """
    dialogues = persona.dialogues
    if any(dialogue.split for dialogue in dialogues):
        return replace(_with_input_splits(persona, plan), lists_divided=plan.labelled)
    if len(dialogues) < len(SPLITS):
        return SplitPersona(persona, Refusal(f"has {len(dialogues)} dialogue{'s' * (len(dialogues) != 1)}"))
    whole = _split_groups(persona, plan, conversations, related_groups(dialogues, labelled=plan.labelled))
    if plan.labelled and (whole.refusal or not whole.has_shares):
        # Rows may list what was labelled before them: what that answers in rows to train on is counted.
        divided = _split_groups(persona, plan, conversations, related_groups(dialogues, labelled=True, quoted=False))
        if not divided.refusal and (whole.refusal or divided.has_shares):
            return replace(divided, lists_divided=True)
    return whole


def _split_groups(persona: Persona, plan: SplitPlan, conversations: Mapping[str, str], related: _Groups) -> SplitPersona:
    """Return the persona with splits, to which whole groups of related dialogues are assigned as far as possible."""
    dialogues = persona.dialogues
    if len(related) < len(SPLITS):
        different = duplicate_groups(dialogues, labelled=plan.labelled)
        what = f"{len(different)} after (near) duplicates"
        if len(different) > len(related):
            what = f"{len(related)} conversation{'s' * (len(related) != 1)}, since they share turns"
        return SplitPersona(persona, Refusal(f"has {len(dialogues)} dialogues but {what}"))
    groups = _with_conversations(related, [conversations.get(dialogue.id) for dialogue in dialogues])
    by_row = len(groups) < len(SPLITS)
    ordered = _ordered(related if by_row else groups, persona, plan)
    counts = plan.counts_of(len(dialogues))
    assigned = _assign(ordered, counts)
    if len(assigned) < sum(counts.values()) and not any(_is_shared(dialogue, plan) for dialogue in dialogues):
        limits = dict.fromkeys(SPLITS, len(dialogues)) if plan.use_all else plan.counts
        assigned = max(assigned, _assign_whole(ordered, counts, limits), key=len)
    split = _with_splits(persona, assigned)
    has_shares = all(len(split.of_split(name)) == n for name, n in counts.items())
    n_beyond = min(len(dialogues) - len(assigned), len(dialogues) - sum(counts.values()))
    return SplitPersona(split, by_row=by_row, has_shares=has_shares, n_beyond=n_beyond)


def partly_split(persona: Persona) -> Refusal | None:
    """Return why a persona cannot be split some of whose dialogues the input has split, and others not."""
    n_missing = sum(dialogue.split is None for dialogue in persona.dialogues)
    if n_missing in (0, len(persona.dialogues)):
        return None
    what = f"has {n_missing} of {len(persona.dialogues)} dialogues without a split"
    return Refusal(what, "fill the split column for all rows or for none of a persona")


def apportion(n: int, requested: Mapping[Split, int]) -> dict[Split, int]:
    """Return the number of dialogues per split: as requested, or if n >= 3 is less, in the same proportions with at least 1 each.

    Where the proportions leave fewer than `ENOUGH_TEST` to test, they are filled up from val and train, as long as val keeps 1 and train
    half of all.
    """
    if n >= sum(requested.values()):
        return dict(requested)
    counts = _proportional(n, requested)
    while counts["test"] < min(ENOUGH_TEST, requested["test"]) and (spare := _spare(counts, n)) is not None:
        counts[spare] -= 1
        counts["test"] += 1
    return counts


def _proportional(n: int, requested: Mapping[Split, int]) -> dict[Split, int]:
    """Return n >= 3 dialogues in these proportions, at least 1 in each split."""
    total = sum(requested.values())
    counts: dict[Split, int] = {split: max(1, n * share // total) for split, share in requested.items()}
    while sum(counts.values()) != n:
        # Adjust the split that is furthest below (or above) its exact share; the first of equals.
        step = 1 if sum(counts.values()) < n else -1
        adjustable: list[Split] = [split for split in counts if step > 0 or counts[split] > 1]
        counts[max(adjustable, key=lambda split: step * (requested[split] * n / total - counts[split]))] += step
    return counts


def _spare(counts: Mapping[Split, int], n: int) -> Split | None:
    """Return the split that can give a dialogue to test: val while it has more than 2, then train while it has more than half.

    Val gives its second one only where test has fewer than 3.
    """
    if counts["val"] > 2:
        return "val"
    if counts["train"] - 1 >= n / 2:
        return "train"
    return "val" if counts["val"] > 1 and counts["test"] < ENOUGH_TEST - 1 else None


def _with_input_splits(persona: Persona, plan: SplitPlan) -> SplitPersona:
    if (refusal := partly_split(persona)) is not None:
        return SplitPersona(persona, refusal)
    empty = [split for split in SPLITS if not persona.of_split(split)]
    if empty:
        return SplitPersona(
            persona,
            Refusal(
                f"has no {' and no '.join(empty)} dialogue",
                "give this person at least 1 for each split; a table may also leave its column split out",
            ),
        )
    assigned: dict[int, Split] = {}
    for split in SPLITS:
        singles = [(i,) for i, dialogue in enumerate(persona.dialogues) if dialogue.split == split]
        assigned |= {i: split for (i,) in _ordered(singles, persona, plan)[: None if plan.use_all else plan.counts[split]]}
    split_persona = _with_splits(persona, assigned)
    has_shares = plan.use_all or all(len(split_persona.of_split(split)) == n for split, n in plan.counts.items())
    return SplitPersona(split_persona, has_shares=has_shares, n_beyond=len(persona.dialogues) - len(assigned))


def _with_conversations(related: _Groups, conversations: Sequence[str | None]) -> _Groups:
    sets = UnionFind(len(conversations))
    first_position: dict[str, int] = {}
    for group in related:
        for position in group:
            sets.union(group[0], position)
            conversation = conversations[position]
            if conversation is not None:
                sets.union(first_position.setdefault(conversation, position), position)
    return sets.groups()


def _ordered(groups: _Groups, persona: Persona, plan: SplitPlan) -> list[list[int]]:
    """Return the groups in order of assignment: shared texts, then by size, then by hash."""

    def rank(position: int) -> tuple[bool, str]:
        dialogue: Dialogue = persona.dialogues[position]
        text = nameless_text(dialogue, plan.own_words) if plan.shared else ""
        unique = text not in plan.shared
        return unique, _hash(plan.seed, persona.id, dialogue.id) if unique else _hash(plan.seed, text)

    ranked = [sorted((rank(position), position) for position in group) for group in groups]
    ranked.sort(key=lambda group: (group[0][0][0], -len(group), group[0][0][1]))
    return [[position for _, position in group] for group in ranked]


def _assign(groups: _Groups, counts: Mapping[Split, int]) -> dict[int, Split]:
    """Return the split of each position; of a group that does not fit into any split, a part is dropped."""
    room = dict(counts)
    assigned: dict[int, Split] = {}
    for index, group in enumerate(groups):
        empty: list[Split] = [name for name in SPLITS if room[name] == counts[name]]
        # The last groups are reserved for empty splits.
        target = _target(len(group), room, preferred=empty, reserved=len(groups) - index <= len(empty))
        fitting = group[: room[target]]
        assigned |= dict.fromkeys(fitting, target)
        room[target] -= len(fitting)
    return assigned


def _assign_whole(groups: _Groups, counts: Mapping[Split, int], limits: Mapping[Split, int]) -> dict[int, Split]:
    """Return the split of each position in which most are used, and the splits are closest to their counts.

    In some order of the splits, the first two get the whole groups that fill them best and the third gets the others. A group is cut at a
    split's limit.
    """

    def quality(assigned: Mapping[int, Split]) -> tuple[int, int]:
        given_out = Counter(assigned.values())
        return len(assigned), -sum(abs(given_out[name] - n) for name, n in counts.items())

    candidates: list[dict[int, Split]] = []
    for order in permutations(reversed(SPLITS)):
        left, assigned = list(groups), dict[int, Split]()
        for n_reserved, name in zip((2, 1, 0), order, strict=True):
            chosen = _fullest(left, counts[name], n_reserved) if n_reserved else left
            positions = [position for group in chosen for position in group]
            assigned |= dict.fromkeys(positions[: limits[name]], name)
            left = [group for group in left if group not in chosen]
        candidates.append(assigned)
    return max(candidates, key=quality)


def _fullest(groups: _Groups, room: int, n_reserved: int) -> list[Sequence[int]]:
    """Return the groups that fill the room best without exceeding it, the smallest group where none fits; `n_reserved` groups stay."""
    by_size: dict[int, list[Sequence[int]]] = {0: []}
    for group in reversed(groups):
        for size, chosen in sorted(by_size.items(), reverse=True):
            total = size + len(group)
            if total <= room and total not in by_size and len(chosen) < len(groups) - n_reserved:
                by_size[total] = [*chosen, group]
    return by_size[max(by_size)] or [min(groups, key=len)]


def _is_shared(dialogue: Dialogue, plan: SplitPlan) -> bool:
    """Return whether other personas have a dialogue of the same words."""
    return bool(plan.shared) and nameless_text(dialogue, plan.own_words) in plan.shared


def _target(size: int, room: Mapping[Split, int], *, preferred: Sequence[Split], reserved: bool) -> Split:
    """Return the first split that has room for the whole group, else the preferred one or any one with most room."""
    for name in preferred if reserved else SPLITS:
        if room[name] >= size:
            return name
    return max(preferred or SPLITS, key=lambda name: room[name])


def _with_splits(persona: Persona, assigned: Mapping[int, Split]) -> Persona:
    dialogues = tuple(replace(d, split=assigned[i]) for i, d in enumerate(persona.dialogues) if i in assigned)
    return replace(persona, dialogues=dialogues)


def _hash(*parts: object) -> str:
    return hashlib.sha256("\x1f".join(map(str, parts)).encode()).hexdigest()
