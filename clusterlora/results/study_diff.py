"""Two studies side by side: settings, data, clusters, adapters, seconds, and scores on the test items that both answered."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from clusterlora.comparison.across_studies import AcrossStudies, compare_across
from clusterlora.comparison.margin import margin_of
from clusterlora.comparison.scores import ItemKey
from clusterlora.data.prompts import items
from clusterlora.errors import BadSettings, counted
from clusterlora.evaluation.metrics import METRICS
from clusterlora.planning.study_state import StudyState, read_state
from clusterlora.planning.work_plan import work_plan
from clusterlora.ports.stores import Stores
from clusterlora.results.evaluation_rows import evaluation_rows
from clusterlora.values import Dialogue, EvaluationRow, Persona, Split


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A setting, or a fact, by its dotted name, and what it is in each study."""

    name: str
    first: Any
    second: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedData:
    """How the data of two studies overlap; `sentences` say it, and what it forbids to conclude."""

    same: bool
    n_personas: tuple[int, int, int]
    """In the first study, in the second, in both."""
    n_test_items: tuple[int, int, int]
    """The same; an item is in both where the whole dialogue is the same and a test dialogue in both."""
    n_changed: int
    """Test dialogues of both with the same person and id and other words."""
    n_moved: int
    """Test dialogues of one study that the other one has, with the same words, in train or val."""

    @property
    def sentences(self) -> tuple[str, ...]:
        """What a reader must know, one sentence each."""
        if self.same:
            return ("Both studies have the same people and dialogues, split alike.",)
        (a, b, both), (items_a, items_b, items_both) = self.n_personas, self.n_test_items
        said = [
            f"The data differ: {counted(both, 'person')} of {a} and {b} in both, {counted(items_both, 'test item')} of {items_a} and "
            f"{items_b} in both."
        ]
        if self.n_changed:
            said.append(f"{counted(self.n_changed, 'test dialogue')} of the same id has other words; its items are left out.")
        if self.n_moved:
            said.append(
                f"{counted(self.n_moved, 'test dialogue')} of one study was train or val in the other; no such item is compared, for one "
                "of the studies has learnt from it."
            )
        return tuple(said)


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyDiff:
    """Everything that differs between two studies, and what they show on shared test items."""

    first: str
    second: str
    settings: tuple[Difference, ...]
    facts: tuple[Difference, ...]
    data: SharedData
    shared_adapters: tuple[str, ...]
    """Names, in the first study, of the adapters that both use: one training answers in both."""
    n_adapters: tuple[int, int]
    scores: AcrossStudies
    notes: tuple[str, ...]


def study_diff(first: str, second: str, stores: Stores) -> StudyDiff:
    """Return how two studies differ. Raises UnknownName for one that is not there, BadSettings for a study against itself."""
    if first == second:
        raise BadSettings(f"study {first!r} is compared with itself; name two studies, for example those of: clusterlora study list")
    a, b = read_state(first, stores), read_state(second, stores)
    items_a, items_b = _test_items(a), _test_items(b)
    shared = frozenset(key for key, dialogue in items_a.items() if items_b.get(key) == dialogue)
    metrics = _metrics(a, b)
    names_a = {adapter.key: adapter.name for adapter in a.adapters}
    keys_b = {adapter.key for adapter in b.adapters}
    rows = {state.name: _rows(state, stores) for state in (a, b)}
    scores = compare_across(
        rows[first],
        rows[second],
        shared,
        methods=[name for name in a.settings.methods if name in b.settings.methods],
        champions=(a.outcome.champion if a.outcome else None, b.outcome.champion if b.outcome else None),
        higher_is_better={name: METRICS[name].higher_is_better for name in metrics},
        draws=max(a.settings.evaluation.bootstrap_draws, b.settings.evaluation.bootstrap_draws),
        margins={
            metric: min(margin_of(metric, state.settings.evaluation.equivalence_margin, rows[state.name]) for state in (a, b))
            for metric in metrics
        },
        rng=np.random.default_rng(0),
    )
    return StudyDiff(
        first=first,
        second=second,
        settings=tuple(_differences(_plain_settings(a), _plain_settings(b))),
        facts=tuple(_differences(_facts(a), _facts(b))),
        data=_shared_data(a, b, items_a, items_b, shared),
        shared_adapters=tuple(sorted(name for key, name in names_a.items() if key in keys_b)),
        n_adapters=(len(a.adapters), len(b.adapters)),
        scores=scores,
        notes=tuple(_notes(a, b, scores)),
    )


def _rows(state: StudyState, stores: Stores) -> list[EvaluationRow]:
    """Return the scored test answers of a study; none before it is clustered."""
    return evaluation_rows(state, work_plan(state), stores) if state.clustering else []


def _test_items(state: StudyState) -> dict[ItemKey, Dialogue]:
    """Return the dialogue of every test item."""
    return {
        (persona.id, item.id): dialogue
        for persona in state.dataset.personas
        for dialogue in persona.of_split("test")
        for item in items(state.settings.model, Persona(persona.id, persona.description, (dialogue,)), "test")
    }


def _metrics(a: StudyState, b: StudyState) -> list[str]:
    """Return the metrics of both studies that are means over items, the headlines first."""
    in_both = [name for name in a.settings.evaluation.metrics if name in b.settings.evaluation.metrics]
    headlines = (a.settings.evaluation.headline, b.settings.evaluation.headline)
    usable = [name for name in in_both if METRICS[name].pooled is None and not METRICS[name].pairwise]
    return sorted(usable, key=lambda name: (name not in headlines, in_both.index(name)))


def _plain_settings(state: StudyState) -> dict[str, Any]:
    settings = asdict(state.settings)
    del settings["name"]
    return settings


def _facts(state: StudyState) -> dict[str, Any]:
    """Return what is not set but found: the code, the base model's weights, clusters, gate, champion, seconds."""
    made_with = state.prepared_with
    return {
        "status": state.status,
        "clusterlora_version": made_with.clusterlora_version,
        "git_revision": made_with.git_revision,
        "base_revision": made_with.base_revision,
        "clusters": list(state.clustering.sizes) if state.clustering else None,
        "gate": "; ".join(f"{verdict.rung}: {'passed' if verdict.passed else 'refused'}" for verdict in state.verdicts) or None,
        "champion": state.outcome.champion if state.outcome else None,
        "seconds": round(sum(seconds for _, _, seconds in state.seconds)),
    }


def _shared_data(
    a: StudyState, b: StudyState, items_a: Mapping[ItemKey, Dialogue], items_b: Mapping[ItemKey, Dialogue], shared: frozenset[ItemKey]
) -> SharedData:
    people_a, people_b = a.dataset.by_id(), b.dataset.by_id()
    in_both = people_a.keys() & people_b.keys()
    tests = [{(key[0], dialogue.id): dialogue for key, dialogue in of.items()} for of in (items_a, items_b)]
    changed = [key for key in tests[0].keys() & tests[1].keys() if _words(tests[0][key]) != _words(tests[1][key])]
    moved = 0
    for mine, others in ((tests[0], people_b), (tests[1], people_a)):
        learnt = {(p, _words(d)) for p in in_both for d in _of_splits(others[p], ("train", "val"))}
        moved += sum((persona_id, _words(dialogue)) in learnt for (persona_id, _), dialogue in mine.items())
    return SharedData(
        same=a.dataset.digest == b.dataset.digest,
        n_personas=(len(people_a), len(people_b), len(in_both)),
        n_test_items=(len(items_a), len(items_b), len(shared)),
        n_changed=len(changed),
        n_moved=moved,
    )


def _words(dialogue: Dialogue) -> tuple[Any, ...]:
    return dialogue.turns, dialogue.context


def _of_splits(persona: Persona, splits: tuple[Split, ...]) -> list[Dialogue]:
    return [dialogue for split in splits for dialogue in persona.of_split(split)]


def _differences(first: Mapping[str, Any], second: Mapping[str, Any], where: str = "") -> Iterator[Difference]:
    for key, value in first.items():
        other, name = second[key], f"{where}{key}"
        if isinstance(value, dict) and isinstance(other, dict):
            yield from _differences(value, other, f"{name}.")
        elif value != other:
            yield Difference(name=name, first=value, second=other)


def _notes(a: StudyState, b: StudyState, scores: AcrossStudies) -> Iterator[str]:
    """Yield what keeps scores from being read as they stand."""
    if scores.unanswered:
        yield f"Not compared, as one of the studies lacks answers of theirs that other methods have: {', '.join(scores.unanswered)}."
    if not scores.methods:
        yield "No scores are compared: no test item is answered in both studies by a method of both."
    one, other = a.settings.evaluation, b.settings.evaluation
    if one.headline != other.headline:
        yield f"The headlines differ, {one.headline} and {other.headline}: each champion was chosen by its own."
    if a.prepared_with.base_revision != b.prepared_with.base_revision:
        yield "The base models differ, so nll and likelihood are per token of different tokenizers unless these are the same."
    if a.settings.model.system_prompt != b.settings.model.system_prompt:
        yield "The system prompts differ: the questions are the same, the prompts around them are not."
    if one.max_new_tokens != other.max_new_tokens:
        yield f"Answers were cut at {one.max_new_tokens} and {other.max_new_tokens} tokens."
