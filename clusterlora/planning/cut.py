"""The part of a study's recorded data that it works on, where it was cut to the minutes that it may take."""

from collections.abc import Mapping
from dataclasses import replace

from clusterlora.metadata import Cut
from clusterlora.ports.stores import Stores
from clusterlora.values import Dataset, Persona, Split


def studied_dataset(study_name: str, stores: Stores) -> Dataset:
    """Return the people and dialogues that a study works on. Raises UnknownName before it is prepared."""
    dataset, cut = stores.studies.dataset(study_name), stores.studies.metadata(study_name, Cut)
    return dataset if cut is None else cut_to(dataset, cut)


def cut_to(dataset: Dataset, cut: Cut) -> Dataset:
    """Return the first people of a data set, each with the first dialogues of every split."""
    return at_most(Dataset(dataset.personas[: cut.n_personas]), {"train": cut.train, "val": cut.val, "test": cut.test})


def dialogues_each(dataset: Dataset) -> str:
    """Return in words how many dialogues of every split a person of the data set has: a number, or the fewest and the most."""

    def of(split: Split) -> str:
        counts = [len(person.of_split(split)) for person in dataset.personas]
        fewest, most = min(counts), max(counts)
        return f"{most} {split}" if fewest == most else f"{fewest} to {most} {split}"

    return f"{of('train')}, {of('val')}, {of('test')}"


def at_most(dataset: Dataset, counts: Mapping[Split, int]) -> Dataset:
    """Return the data set with at most so many dialogues per person of each split that is named, the first ones."""

    def fewer(person: Persona) -> Persona:
        left_out = {dialogue.id for split, n in counts.items() for dialogue in person.of_split(split)[n:]}
        return replace(person, dialogues=tuple(dialogue for dialogue in person.dialogues if dialogue.id not in left_out))

    return Dataset(tuple(map(fewer, dataset.personas)))
