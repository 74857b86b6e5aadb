"""People whose dialogues are anybody's: the null hypothesis that nothing in a dialogue says whose it is, made of the study's own data."""

import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from random import Random
from statistics import fmean

from clusterlora.data.conversations import related_groups
from clusterlora.data.source import SourceData
from clusterlora.errors import BadData
from clusterlora.values import Dataset, Dialogue, Split

log = logging.getLogger(__name__)

_MOST_TOGETHER = 6
"""Units that go together, at most, for others with as many dialogues."""
_MUCH = 0.1
"""Of what was personal, the share that may be left of it by chance in small data; above, it is warned."""

_OF = "/"
"""Between the person that an exchanged dialogue is of, in whose id it is written otherwise, and its own id."""

_Unit = tuple[str, tuple[Dialogue, ...]]
"""The person that dialogues are of, and those that belong on one side of a split."""


def permuted(reading: SourceData, seed: int, *, labelled: bool = False) -> SourceData:
    """Return the data with everybody's dialogues exchanged at random, so that labels say nothing; names and descriptions stay.

    What belongs on one side of a split stays together and changes places with as many dialogues of somebody else, of the same split if the
    input gives splits. Everybody has as many dialogues as before. Where few people have units of a size, several units are exchanged
    for several others with as many dialogues together; what `remainder` finds may stay all the same. `labelled` says that answers are
    labels.
    """
    units: dict[tuple[int, Split | None], list[_Unit]] = defaultdict(list)
    slots: dict[tuple[int, Split | None], list[str]] = defaultdict(list)
    for persona in reading.dataset.personas:
        for unit in _units(reading, persona.id, persona.dialogues, labelled=labelled):
            kind = (len(unit), unit[0].split)
            units[kind].append((persona.id, unit))
            slots[kind].append(persona.id)
    held: dict[Split | None, dict[str, list[_Unit]]] = {
        split: {persona.id: [] for persona in reading.dataset.personas} for _, split in sorted(units, key=str)
    }
    rng = Random(seed)
    for kind in sorted(units, key=str):
        shuffled = list(units[kind])
        rng.shuffle(shuffled)
        for persona_id, unit in zip(slots[kind], shuffled, strict=True):
            held[kind[1]][persona_id].append(unit)
    sizes = {kind: Counter(owners) for kind, owners in slots.items()}
    for split, units_by_persona in held.items():
        owners_by_size = {size: owners for (size, of_split), owners in sizes.items() if of_split == split}
        _exchange_sums(units_by_persona, owners_by_size, rng)
    dealt: dict[str, list[Dialogue]] = {persona.id: [] for persona in reading.dataset.personas}
    conversations: dict[tuple[str, str], str] = {}
    for units_by_persona in held.values():
        for persona_id, (origin, dialogue) in ((p, (o, d)) for p, given in units_by_persona.items() for o, unit in given for d in unit):
            # Dialogues of two people may have the same id.
            moved = replace(dialogue, id=f"{origin.replace('%', '%25').replace(_OF, '%2F')}{_OF}{dialogue.id}")
            dealt[persona_id].append(moved)
            conversation = reading.conversation_by_dialogue.get((origin, dialogue.id))
            if conversation is not None:
                conversations[persona_id, moved.id] = f"{origin}/{conversation}"
    personas = tuple(replace(persona, dialogues=tuple(dealt[persona.id])) for persona in reading.dataset.personas)
    return replace(reading, dataset=Dataset(personas), conversation_by_dialogue=conversations)


@dataclass(frozen=True, slots=True)
class Remainder:
    """What exchanged dialogues still have to do with each other.

    `share`: of the train dialogues beside a test dialogue, those of the same person, as a mean over test dialogues and people; 1 where
    nothing is exchanged but names. `by_chance`: of everybody's.
    """

    share: float
    by_chance: float

    @property
    def is_much(self) -> bool:
        """Whether noticeably more is left than chance alone leaves."""
        return self.share - self.by_chance > _MUCH * (1 - self.by_chance)

    @property
    def sentence(self) -> str:
        """Both shares."""
        return (
            f"{self.share:.0%} of what is trained on is by the person who said what is tested beside it, where chance leaves "
            f"{self.by_chance:.0%}"
        )


def remainder(dataset: Dataset) -> Remainder | None:
    """Return what is left of who said what after an exchange and a split; None where nobody has train and test dialogues."""
    splits: tuple[Split, ...] = ("train", "test")
    # Canaries are nobody's.
    said = ([[_origin(d) for d in persona.of_split(split) if _OF in d.id] for split in splits] for persona in dataset.personas)
    origins = [(train, test) for train, test in said if train and test]
    if not origins:
        return None
    everybody = Counter(origin for train, _ in origins for origin in train)
    return Remainder(fmean(_share(Counter(train), test) for train, test in origins), fmean(_share(everybody, test) for _, test in origins))


def check_exchange(dataset: Dataset, seed: int) -> None:
    """Log what is left of who said what. Raises BadData where everybody's dialogues are one person's."""
    if all(len({_origin(d) for d in persona.dialogues if _OF in d.id}) <= 1 for persona in dataset.personas):
        raise BadData(
            f"data.permute_seed = {seed} changes nothing but names: everybody's dialogues are one person's, as whole conversations change "
            "places only with others of as many dialogues; use more people, or people with more conversations"
        )
    if left := remainder(dataset):
        log.log(logging.WARNING if left.is_much else logging.INFO, "dialogues exchanged at random: %s", left.sentence)


def _origin(dialogue: Dialogue) -> str:
    """Return who said an exchanged dialogue, as its id has it."""
    return dialogue.id.partition(_OF)[0]


def _share(n_train: Counter[str], test: Iterable[str]) -> float:
    """Return the mean share of the train dialogues, counted by person, that are of the same person as a test dialogue."""
    n = n_train.total()
    return fmean(n_train[origin] / n for origin in test)


def _exchange_sums(units_by_persona: dict[str, list[_Unit]], owners_by_size: Mapping[int, Counter[str]], rng: Random) -> None:
    """Let units that stayed as few people have their size change places with several of somebody else, of as many dialogues."""
    people = [persona_id for persona_id, units in units_by_persona.items() if units]
    for persona_id in people:
        for unit in [unit for unit in units_by_persona[persona_id] if unit[0] == persona_id]:
            owners = owners_by_size[len(unit[1])]
            # Equal sizes kept it here with this chance; one in as many as there are people is what is wanted.
            chance = owners[persona_id] / owners.total()
            if unit not in units_by_persona[persona_id] or rng.random() > 1 - 1 / (len(people) * chance):
                continue
            others = [other for other in people if other != persona_id]
            rng.shuffle(others)
            rest = [other for other in units_by_persona[persona_id] if other is not unit]
            rng.shuffle(rest)
            for n_more, other in product(range(_MOST_TOGETHER), others):
                going = [unit, *rest[:n_more]]
                coming = _of_total(units_by_persona[other], sum(len(dialogues) for _, dialogues in going), rng)
                if coming:
                    units_by_persona[persona_id] = [*rest[n_more:], *coming]
                    units_by_persona[other] = [*(one for one in units_by_persona[other] if one not in coming), *going]
                    break


def _of_total(units: Sequence[_Unit], total: int, rng: Random) -> list[_Unit]:
    """Return some of the units that have so many dialogues together; none if there are no such."""
    chosen_by_total: dict[int, list[_Unit]] = {0: []}
    for unit in rng.sample(units, len(units)):
        for before, chosen in list(chosen_by_total.items()):
            after = before + len(unit[1])
            if after <= total and after not in chosen_by_total:
                chosen_by_total[after] = [*chosen, unit]
        if total in chosen_by_total:
            return chosen_by_total[total]
    return []


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
