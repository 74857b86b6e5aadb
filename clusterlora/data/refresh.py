"""Dialogues that come later join the people they are of, and the splits that these have.

What was in a split stays there. A new dialogue that repeats one of before is dropped and counted; one that nearly repeats another, shares
turns with it or says the same words as somebody else's goes into that one's split.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from clusterlora.data.conversations import related_groups
from clusterlora.data.leaks import find_leaks
from clusterlora.data.split import SPLITS, apportion
from clusterlora.data.twins import nameless_text, own_words
from clusterlora.errors import counted
from clusterlora.settings import DataSettings
from clusterlora.values import Dataset, Dialogue, Persona, Split

_PROTECTED: dict[Split, int] = {split: number for number, split in enumerate(SPLITS)}
"""The split whose text must not stand in another is the last one: a test dialogue."""


@dataclass(frozen=True, slots=True)
class Joined:
    """The people of before with all that is new, and what was found: new people, dialogues that were there, and those left out."""

    dataset: Dataset
    newcomers: tuple[str, ...]
    n_read: int
    n_repeated: int
    n_left_out: int

    @property
    def n_new(self) -> int:
        """Dialogues that were not there before."""
        return self.n_read - self.n_repeated - self.n_left_out

    @property
    def sentences(self) -> tuple[str, ...]:
        """What was counted, for people."""
        lines = [f"{counted(self.n_read, 'dialogue')} read, {self.n_new} of them new"]
        if self.newcomers:
            lines.append(counted(len(self.newcomers), "new persona"))
        if self.n_repeated:
            lines.append(f"{counted(self.n_repeated, 'dialogue')} stood there already, or twice, and count once")
        if self.n_left_out:
            lines.append(f"{counted(self.n_left_out, 'dialogue')} left out, as two splits would have held the same words")
        return tuple(lines)


def joined(before: Dataset, new: Sequence[Persona], settings: DataSettings, *, revision: str) -> Joined:
    """Return the people of before and new ones with all their dialogues, the new ones split.

    New dialogues are split in the proportions of the settings; one or two of a person are learnt. Ids that a person's dialogues
    have already are told apart by the revision.
    """
    labelled = settings.task != "text"
    known, offered = before.by_id(), {persona.id: persona for persona in new}
    own = own_words((*before.personas, *(p for p in new if p.id not in known)))
    fresh = {p.id: _fresh(known.get(p.id), p, revision) for p in new}
    split_by_text: dict[str, Split] = {}
    if not labelled:
        for persona in before.personas:
            for dialogue in persona.dialogues:
                _protect(split_by_text, nameless_text(dialogue, own), dialogue.split)
    personas: list[Persona] = []
    for persona in (*before.personas, *(p for p in new if p.id not in known)):
        old = known[persona.id].dialogues if persona.id in known else ()
        description = persona.description or offered.get(persona.id, persona).description
        if added := fresh.get(persona.id, ()):
            texts = [""] * len(added) if labelled else [nameless_text(dialogue, own) for dialogue in added]
            splits = _splits(persona.id, old, added, texts, split_by_text, settings, labelled=labelled)
            added = tuple(replace(dialogue, split=split) for dialogue, split in zip(added, splits, strict=True) if split)
        personas.append(replace(persona, description=description, dialogues=(*old, *added)))
    leaking = find_leaks(personas, own, labelled=labelled)
    of_before = {(p.id, d.id) for p in before.personas for d in p.dialogues}
    kept = [
        replace(p, dialogues=tuple(d for d in p.dialogues if (p.id, d.id) in of_before or (p.id, d.id) not in leaking)) for p in personas
    ]
    everybody = Dataset(tuple(p for p in kept if p.dialogues))
    n_read = sum(len(p.dialogues) for p in new)
    n_fresh = sum(map(len, fresh.values()))
    n_new = everybody.n_dialogues - before.n_dialogues
    newcomers = tuple(p.id for p in everybody.personas if p.id not in known)
    return Joined(everybody, newcomers, n_read, n_repeated=n_read - n_fresh, n_left_out=n_fresh - n_new)


def drawn(candidates: Iterable[tuple[str, Dialogue]], n: int, salt: str) -> dict[str, tuple[str, ...]]:
    """Return n of these (person, dialogue), drawn by a stable hash, as dialogue ids by person in the order given."""
    every = list(candidates)
    chosen = set(sorted(range(len(every)), key=lambda i: _hash(salt, every[i][0], every[i][1].id))[:n])
    ids: dict[str, tuple[str, ...]] = {}
    for i, (persona_id, dialogue) in enumerate(every):
        if i in chosen:
            ids[persona_id] = (*ids.get(persona_id, ()), dialogue.id)
    return ids


def _fresh(known: Persona | None, offered: Persona, revision: str) -> tuple[Dialogue, ...]:
    """Return a person's dialogues that are not there yet, each once, under ids that are not taken."""
    there = {(d.context, d.turns) for d in known.dialogues} if known else set[object]()
    taken = {d.id for d in known.dialogues} if known else set[str]()
    fresh: list[Dialogue] = []
    for dialogue in offered.dialogues:
        if (dialogue.context, dialogue.turns) in there:
            continue
        there.add((dialogue.context, dialogue.turns))
        name, number = dialogue.id, 1
        while name in taken:
            name, number = f"{revision}-{dialogue.id}" + (f"-{number}" if number > 1 else ""), number + 1
        taken.add(name)
        fresh.append(replace(dialogue, id=name, split=None))
    return tuple(fresh)


def _splits(
    persona_id: str,
    old: Sequence[Dialogue],
    added: Sequence[Dialogue],
    texts: Sequence[str],
    split_by_text: dict[str, Split],
    settings: DataSettings,
    *,
    labelled: bool,
) -> list[Split | None]:
    """Return the split of each new dialogue of a person; None for one that two splits claim. Takes note of the splits of texts."""
    requested: dict[Split, int] = {"train": settings.train, "val": settings.val, "test": settings.test}
    # New dialogues are used in these proportions, however many more of them there are than the first study asked for.
    room: dict[Split, int] = {"train": len(added), "val": 0, "test": 0}
    if len(added) >= len(SPLITS):
        total = sum(requested.values())
        room = apportion(len(added), requested if total >= len(added) else {s: -(-n * len(added) // total) for s, n in requested.items()})
    splits: list[Split | None] = [None] * len(added)
    groups: list[list[int]] = []
    for group in related_groups((*old, *added), labelled=labelled):
        positions = [position - len(old) for position in group if position >= len(old)]
        if not positions:
            continue
        claims = {old[position].split for position in group if position < len(old)}
        claims |= {split_by_text[texts[position]] for position in positions if texts[position] in split_by_text}
        if len(claims) > 1:
            continue
        if claims:
            split = claims.pop()
            for position in positions:
                splits[position] = split
                room[split or "train"] -= 1
        else:
            groups.append(positions)
    groups.sort(key=lambda group: (-len(group), min(_hash(str(settings.split_seed), persona_id, added[i].id) for i in group)))
    for group in groups:
        # The split that lacks most of what it is to have; test before val before train among equals.
        lacking: Split = max(reversed(SPLITS), key=lambda name: room[name])
        for position in group:
            splits[position] = lacking
            room[lacking] -= 1
            if texts[position]:
                _protect(split_by_text, texts[position], lacking)
    return splits


def _protect(split_by_text: dict[str, Split], text: str, split: Split | None) -> None:
    if split and _PROTECTED[split] >= _PROTECTED.get(split_by_text.get(text, "train"), 0):
        split_by_text[text] = split


def new_dialogues(dataset: Dataset, seen: Dataset) -> Mapping[str, tuple[str, ...]]:
    """Return by person the ids of the dialogues that are not among those seen."""
    before = {persona.id: {d.id for d in persona.dialogues} for persona in seen.personas}
    news = {p.id: tuple(d.id for d in p.dialogues if d.id not in before.get(p.id, ())) for p in dataset.personas}
    return {persona_id: ids for persona_id, ids in news.items() if ids}


def _hash(*parts: str) -> str:
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()
