"""Dialogues that come later join the people they are of, and the splits that these have.

What was in a split stays there. A new dialogue that repeats one of before is dropped and counted; one that nearly repeats another, shares
turns or a conversation with it, or says the same words as somebody else's goes into that one's split. What two splits claim is left out.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace

from clusterlora.data.conversations import related_groups
from clusterlora.data.duplicates import UnionFind
from clusterlora.data.similar_ids import described, similar_ids
from clusterlora.data.source import SourceData
from clusterlora.data.split import SPLITS, apportion
from clusterlora.data.twins import nameless_text, own_words
from clusterlora.errors import counted
from clusterlora.settings import DataSettings
from clusterlora.values import Dataset, Dialogue, Persona, Split, Turn

_MOST_NAMED = 3
_LAST_FIRST: tuple[Split, ...] = ("test", "val", "train")


@dataclass(frozen=True, slots=True)
class Joined:
    """The people of before with all that is new, and what was found.

    `n_repeated` dialogues were there, or stand twice; `n_left_out` would have stood in two splits; `n_unlearnt` are of new people without
    any to train on, `unlearnt`. `alike` are groups of ids, a new one among them, that may be one person's; `redescribed` the people whose
    description differs from that of before, which stays.
    """

    dataset: Dataset
    newcomers: tuple[str, ...]
    n_read: int
    n_repeated: int
    n_left_out: int
    n_unlearnt: int = 0
    unlearnt: tuple[str, ...] = ()
    alike: tuple[tuple[str, ...], ...] = ()
    redescribed: tuple[str, ...] = ()

    @property
    def n_new(self) -> int:
        """Dialogues that were not there before."""
        return self.n_read - self.n_repeated - self.n_left_out - self.n_unlearnt

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
        if self.unlearnt:
            who = described([self.unlearnt[:_MOST_NAMED]])
            lines.append(
                f"{counted(len(self.unlearnt), 'new persona')} left out with {counted(self.n_unlearnt, 'dialogue')}, none of which can be "
                f"trained on (first: {who}); send them again with more"
            )
        if self.alike:
            lines.append(
                f"warning: ids of new people look like others ({described(self.alike[:_MOST_NAMED])}); if they are one person each, write "
                "the ids alike"
            )
        if self.redescribed:
            who = described([self.redescribed[:_MOST_NAMED]])
            lines.append(
                f"{counted(len(self.redescribed), 'persona')} described otherwise than before (first: {who}): the earlier descriptions stay"
            )
        return tuple(lines)


@dataclass(frozen=True, slots=True)
class _News:
    """What is new of a person, and pairs (dialogue id, conversation) of their dialogues, old and new."""

    dialogues: tuple[Dialogue, ...]
    conversations: tuple[tuple[str, str], ...]


def joined(before: Dataset, new: SourceData, settings: DataSettings, *, revision: str) -> Joined:
    """Return the people of before and new ones with all their dialogues, the new ones split.

    New dialogues are in the splits that the source gives them, else in the proportions of the settings; one or two of a person are learnt.
    Ids that a person's dialogues have already are told apart by the revision.
    """
    known, offered = before.by_id(), new.dataset.by_id()
    news = {p: _news(known[p].dialogues if p in known else (), one, new.conversation_by_dialogue, revision) for p, one in offered.items()}
    everybody = (*before.personas, *(replace(p, dialogues=()) for p in new.dataset.personas if p.id not in known))
    nobodys = _News((), ())
    placement = _Placement(before, everybody, news, settings)
    personas: list[Persona] = []
    unlearnt: list[Persona] = []
    for persona in everybody:
        added = placement.placed(persona, news.get(persona.id, nobodys))
        description = persona.description or offered.get(persona.id, persona).description
        whole = replace(persona, description=description, dialogues=(*persona.dialogues, *added))
        # Whoever takes part is learnt from; a person of before already is.
        (personas if persona.id in known or whole.of_split("train") else unlearnt).append(whole)
    dataset = Dataset(tuple(personas))
    n_fresh = sum(len(one.dialogues) for one in news.values())
    n_unlearnt = sum(len(news[p.id].dialogues) for p in unlearnt)
    newcomers = tuple(p for p in dataset.ids if p not in known)
    return Joined(
        dataset,
        newcomers,
        n_read=new.dataset.n_dialogues,
        n_repeated=new.dataset.n_dialogues - n_fresh,
        n_left_out=n_fresh - n_unlearnt - (dataset.n_dialogues - before.n_dialogues),
        n_unlearnt=n_unlearnt,
        unlearnt=tuple(p.id for p in unlearnt),
        alike=tuple(group for group in similar_ids(dataset.ids) if not known.keys() >= set(group)),
        redescribed=tuple(
            p for p, one in known.items() if one.description and offered.get(p, one).description not in (None, one.description)
        ),
    )


def drawn(candidates: Iterable[tuple[str, Dialogue]], n: int, salt: str) -> dict[str, tuple[str, ...]]:
    """Return n of these (person, dialogue), drawn by a stable hash, as dialogue ids by person in the order given."""
    every = list(candidates)
    chosen = set(sorted(range(len(every)), key=lambda i: _hash(salt, every[i][0], every[i][1].id))[:n])
    ids: dict[str, tuple[str, ...]] = {}
    for i, (persona_id, dialogue) in enumerate(every):
        if i in chosen:
            ids[persona_id] = (*ids.get(persona_id, ()), dialogue.id)
    return ids


def _news(old: Sequence[Dialogue], offered: Persona, conversation_by_dialogue: Mapping[tuple[str, str], str], revision: str) -> _News:
    """Return a person's dialogues that are not there yet, each once, under ids that are not taken.

    A dialogue of the same turns is there already, unless both have a context and these differ: most files cannot hold one.
    """
    there: dict[tuple[Turn, ...], list[Dialogue]] = {}
    for dialogue in old:
        there.setdefault(dialogue.turns, []).append(dialogue)
    taken = {d.id for d in old}
    fresh: dict[str, Dialogue] = {}
    conversations: list[tuple[str, str]] = []
    for dialogue in offered.dialogues:
        alike = there.setdefault(dialogue.turns, [])
        same = next((one for one in alike if one.context == dialogue.context or not (one.context and dialogue.context)), None)
        name, number = dialogue.id, 1
        if same is None:
            while name in taken:
                name, number = f"{revision}-{dialogue.id}" + (f"-{number}" if number > 1 else ""), number + 1
            taken.add(name)
            fresh[name] = replace(dialogue, id=name)
            alike.append(fresh[name])
        else:
            name = same.id
            if name in fresh:
                fresh[name] = replace(fresh[name], split=_most_protected({fresh[name].split, dialogue.split}))
        if (conversation := conversation_by_dialogue.get((offered.id, dialogue.id))) is not None:
            conversations.append((name, conversation))
    # A table names the exchanges of a conversation by it: conversation/digest.
    named = {conversation for _, conversation in conversations}
    conversations += [(d.id, one) for d in old for one in (d.id, d.id.rpartition("/")[0]) if one in named]
    return _News(tuple(fresh.values()), tuple(dict.fromkeys(conversations)))


class _Placement:
    """Chooses the splits of new dialogues, person by person, and keeps the split of every text that several people may have."""

    def __init__(self, before: Dataset, everybody: Sequence[Persona], news: Mapping[str, _News], settings: DataSettings) -> None:
        self._settings, self._labelled = settings, settings.task != "text"
        # Names among all that was read: a text of before may equal a new one but for a name.
        everything = [replace(p, dialogues=(*p.dialogues, *(news[p.id].dialogues if p.id in news else ()))) for p in everybody]
        self._own = frozenset[str]() if self._labelled else own_words(everything)
        self._splits_by_text: dict[str, set[Split]] = {}
        self._marks_by_text: dict[str, set[Split]] = {}
        for persona in before.personas:
            for dialogue in persona.dialogues:
                self._note(self._splits_by_text, self._text(dialogue), dialogue.split)
        for one in news.values():
            for dialogue in one.dialogues:
                self._note(self._marks_by_text, self._text(dialogue), dialogue.split)

    def placed(self, persona: Persona, news: _News) -> tuple[Dialogue, ...]:
        """Return a person's new dialogues with their splits, without those that two splits claim."""
        old, added = persona.dialogues, news.dialogues
        room = self._room(len(added))
        splits: dict[int, Split] = {}

        def put(positions: Sequence[int], split: Split) -> None:
            for i in positions:
                if added[i].split in (None, split):
                    splits[i] = split
                    room[split] -= 1
                    self._note(self._splits_by_text, self._text(added[i]), split)

        unclaimed: list[list[int]] = []
        for group in self._groups(old, news):
            positions = [i - len(old) for i in group if i >= len(old)]
            texts = [self._text(added[i]) for i in positions]
            claims: set[Split] = {split for i in group if i < len(old) and (split := old[i].split)}
            marks: set[Split] = {split for i in positions if (split := added[i].split)}
            for text in texts:
                claims |= self._splits_by_text.get(text, set())
                marks |= self._marks_by_text.get(text, set())
            if len(claims) > 1:
                continue
            if split := next(iter(claims), None) or _most_protected(marks):
                put(positions, split)
            elif positions:
                unclaimed.append(positions)
        seed = str(self._settings.split_seed)
        unclaimed.sort(key=lambda group: (-len(group), min(_hash(seed, persona.id, added[i].id) for i in group)))
        learnt = bool(persona.of_split("train"))
        for positions in unclaimed:
            # Somebody new is learnt first.
            put(positions, _lacking(room, set(splits.values())) if learnt or "train" in splits.values() else "train")
        return tuple(replace(dialogue, split=splits[i]) for i, dialogue in enumerate(added) if i in splits)

    def _groups(self, old: Sequence[Dialogue], news: _News) -> tuple[tuple[int, ...], ...]:
        """Return groups of positions, old dialogues first, that belong in one split."""
        everything = (*old, *news.dialogues)
        sets = UnionFind(len(everything))
        for group in related_groups(everything, labelled=self._labelled):
            for position in group:
                sets.union(group[0], position)
        first: dict[tuple[str, str], int] = {}
        for position, dialogue in enumerate(news.dialogues, len(old)):
            if text := self._text(dialogue):
                sets.union(first.setdefault(("text", text), position), position)
        position_by_id = {dialogue.id: position for position, dialogue in enumerate(everything)}
        splits: dict[str, set[Split]] = {}
        for name, conversation in news.conversations:
            if position_by_id[name] < len(old):
                self._note(splits, conversation, everything[position_by_id[name]].split)
        for name, conversation in news.conversations:
            # A conversation that was split row by row goes on row by row.
            if len(splits.get(conversation, ())) < 2:
                sets.union(first.setdefault(("conversation", conversation), position_by_id[name]), position_by_id[name])
        return sets.groups()

    def _room(self, n: int) -> dict[Split, int]:
        """Return the number of n new dialogues per split: in these proportions, however many more than the first study asked for."""
        if n < len(SPLITS):
            return {"train": n, "val": 0, "test": 0}
        requested: dict[Split, int] = {"train": self._settings.train, "val": self._settings.val, "test": self._settings.test}
        total = sum(requested.values())
        return apportion(n, requested if total >= n else {split: -(-n * share // total) for split, share in requested.items()})

    def _text(self, dialogue: Dialogue) -> str:
        """Return what other people's dialogues must not say in another split; nothing where answers are labels."""
        return "" if self._labelled else nameless_text(dialogue, self._own)

    def _note(self, splits: dict[str, set[Split]], text: str, split: Split | None) -> None:
        if text and split:
            splits.setdefault(text, set()).add(split)


def _lacking(room: Mapping[Split, int], used: AbstractSet[Split]) -> Split:
    """Return the split that has room and nothing yet, or else lacks most of what it is to have; test before val before train of equals."""
    return max(_LAST_FIRST, key=lambda name: (room[name] > 0 and name not in used, room[name]))


def _most_protected(splits: AbstractSet[Split | None]) -> Split | None:
    """Return the split whose text must not stand in another: test before val before train."""
    return next((split for split in _LAST_FIRST if split in splits), None)


def new_dialogues(dataset: Dataset, seen: Dataset) -> Mapping[str, tuple[str, ...]]:
    """Return by person the ids of the dialogues that are not among those seen."""
    before = {persona.id: {d.id for d in persona.dialogues} for persona in seen.personas}
    news = {p.id: tuple(d.id for d in p.dialogues if d.id not in before.get(p.id, ())) for p in dataset.personas}
    return {persona_id: ids for persona_id, ids in news.items() if ids}


def _hash(*parts: str) -> str:
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()
