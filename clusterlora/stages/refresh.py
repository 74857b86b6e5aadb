"""A refresh: the next study of a family, which goes on from the registered champion with the dialogues that came since."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from clusterlora.comparison.roles import is_base, is_control
from clusterlora.data.labels import check_labels
from clusterlora.data.load import fitted, read, without_people
from clusterlora.data.problems import Problems
from clusterlora.data.prompt_fit import PromptFit
from clusterlora.data.refresh import Joined, drawn, joined, new_dialogues
from clusterlora.data.split import partly_split
from clusterlora.errors import BadData, BadSettings, NothingNew
from clusterlora.metadata import ChampionAdapter, News, Provenance, RefreshStart, Tuning
from clusterlora.methods import METHODS
from clusterlora.models.base import usable_base
from clusterlora.planning.cut import studied_dataset
from clusterlora.planning.family import decided_before, family
from clusterlora.planning.ladder import REFERENCE, decided_rung
from clusterlora.planning.study_state import StudyState, read_state
from clusterlora.planning.work_plan import trained_adapters, work_plan
from clusterlora.ports.stores import Stores
from clusterlora.results.refresh import LAST_CHAMPION
from clusterlora.settings import PreparedStudy, check_study_name
from clusterlora.stages.base_checks import fit_of
from clusterlora.stages.forgotten import who_left
from clusterlora.values import AdapterComposition, Dataset, WeightedAdapter

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


log = logging.getLogger(__name__)

ROUTED = "selective_routing"
"""The method that chooses among the others, which it needs beside it."""


@dataclass(frozen=True, slots=True)
class Refreshed:
    """The data of a refresh, and what it goes on from."""

    dataset: Dataset
    fit: PromptFit
    start: RefreshStart
    news: News
    sentences: tuple[str, ...]
    tuning: Tuning | None


def champion_of(root: str, stores: Stores) -> tuple[str, str]:
    """Return the study of a family whose champion is registered, and the method by which that answers.

    The registry's alias says; without a registry the last study whose champion moved.

    Raises:
        BadData: there is no champion.
    """
    if (registered := stores.tracker.champion(root)) is not None:
        return registered
    for name in reversed(family(root, stores)):
        state = read_state(name, stores)
        if name == root and state.status == "finished" and state.outcome and state.outcome.champion:
            return name, state.outcome.champion
        if state.moved is not None and state.moved.moved:
            return name, state.moved.challenger
    if stores.studies.status(root) == "finished":
        raise BadData(
            f"study {root} has no champion to refresh: its comparison found none; run its dialogues and the new ones together as a study "
            "of another name: more of them may show one"
        )
    raise BadData(f"study {root} has no champion to refresh; let it finish first: clusterlora study run --name {root}")


def next_refresh(root: str, path: str, stores: Stores, *, replay: float | None = None) -> PreparedStudy:
    """Return the study that is the next refresh with these dialogues; its settings are those of the champion's study.

    A refresh that failed before anything was trained is replaced: it has cost nothing, and its data may be why it failed.

    Raises:
        BadData: nothing to refresh.
        BadSettings: an earlier refresh has not ended, or the study is a refresh itself.
        UnknownName: there is no such study.
    """
    if (of := stores.studies.study(root).refresh.root) is not None:
        raise BadSettings(f"study {root} is a refresh of {of}; refresh that one: clusterlora study refresh {of} --data {path}")
    names = family(root, stores)
    last = names[-1]
    if _is_open(root, last, stores):
        if stores.studies.status(last) != "failed" or stores.studies.attempts(last):
            raise BadSettings(f"refresh {last} has not ended; go on with it first: clusterlora study run --name {last}")
        log.warning(
            "refresh %s failed before anything was trained and is replaced; dialogues that only its file has must be sent again", last
        )
    number = _next_number(root, names, stores)
    study_name, method = champion_of(root, stores)
    if METHODS[method].needs_import:
        raise BadSettings(
            f"{method} of study {study_name} answers with adapters that were trained elsewhere; refresh them where they come from"
        )
    champion = stores.studies.study(study_name)
    beside = (name for name in champion.methods if not (is_control(name) or is_base(name)))
    arms = [name for name in beside if not (METHODS[name].needs_refresh or METHODS[name].needs_import)]
    refresh = replace(
        champion.refresh, root=root, number=number, of=_last_ended(root, names, stores), champion=study_name, champion_method=method
    )
    if replay is not None:
        refresh = replace(refresh, replay=replay)
    return replace(
        champion,
        name=check_study_name(_name(root, number)),
        methods=tuple(dict.fromkeys((LAST_CHAMPION, REFERENCE, method, *(arms if method == ROUTED else ())))),
        data=replace(
            champion.data, source=_source(champion.data.source), path=path, splits=None, personas=None, permute_seed=None, canaries=None
        ),
        seeds=1,
        minutes=None,
        assignment=replace(champion.assignment, held_out_share=None),
        clustering=replace(champion.clustering, refinement_rounds=0, sizes=None, k=champion.clustering.k or _k(champion.clustering.sizes)),
        gate=replace(champion.gate, above_random_group=False),
        refresh=refresh,
    )


def due(root: str, path: str, stores: Stores) -> PreparedStudy | None:
    """Return the refresh of a family that has not ended, else the next one; None where the file has nothing new.

    Raises:
        BadData, BadSettings, UnknownName: as `next_refresh` and `refreshed`.
    """
    study, tokenizer = in_line(root, path, stores)
    return study if tokenizer is None or has_news(study, tokenizer, stores) else None


def in_line(root: str, path: str, stores: Stores) -> "tuple[PreparedStudy, PreTrainedTokenizerBase | None]":
    """Return the refresh of a family that has not ended, else the one that comes next with the tokenizer that reads its file.

    The file is not read.

    Raises:
        BadData, BadSettings, UnknownName: as `next_refresh`.
    """
    last = family(root, stores)[-1]
    if _is_open(root, last, stores):
        return stores.studies.study(last), None
    study = next_refresh(root, path, stores)
    return study, usable_base(study.model.base, study.model.quantisation).tokenizer


def has_news(study: PreparedStudy, tokenizer: "PreTrainedTokenizerBase", stores: Stores) -> bool:
    """Return whether a refresh would have something to learn and test. Raises BadData as `refreshed`."""
    try:
        refreshed(study, tokenizer, stores)
    except NothingNew:
        return False
    return True


def _is_open(root: str, name: str, stores: Stores) -> bool:
    """Return whether a study of a family is a refresh that has not ended."""
    return name != root and stores.studies.status(name) != "finished"


def _last_ended(root: str, names: Sequence[str], stores: Stores) -> str:
    return next(name for name in reversed(names) if not _is_open(root, name, stores))


def _next_number(root: str, names: Sequence[str], stores: Stores) -> int:
    """Return the number after the last refresh's, beyond those in the names of other studies."""
    number = 1 + max(stores.studies.study(name).refresh.number or 0 for name in names)
    taken = {name for name, *_ in stores.studies.studies()}
    while _name(root, number) in taken:
        number += 1
    return number


def _name(root: str, number: int) -> str:
    return f"{root}.r{number}"


def _source(of_study: str) -> str:
    """Return the source of new dialogues: the study's own, but invented people's are in a file like anybody's."""
    return "table" if of_study == "synthetic" else of_study


def _k(sizes: tuple[int, ...] | None) -> int | None:
    return len(sizes) if sizes else None


def refreshed(study: PreparedStudy, tokenizer: "PreTrainedTokenizerBase", stores: Stores) -> Refreshed:
    """Return what a refresh works on: the data of before with the new dialogues, and the champion that it challenges.

    Once it is prepared, that is what was recorded, whatever has become of the file and the champion since.

    Raises:
        BadData: every problem of the new data at once, or there is nothing new in them.
    """
    refresh = study.refresh
    assert refresh.of is not None, f"study {study.name} is no refresh"
    assert refresh.champion is not None, f"refresh {study.name} challenges nobody"
    problems, fit = Problems(), fit_of(study, tokenizer)
    if (recorded := _recorded(study, fit, stores)) is not None:
        return recorded
    new = fitted(read(study.data), fit, study.data, problems)
    for persona in new.dataset.personas:
        if (refusal := partly_split(persona)) is not None:
            problems.add(new.location(persona.id), f"persona {persona.id!r}", refusal.what, refusal.fix)
    problems.raise_any()
    new = replace(new, dataset=without_people(new.dataset, who_left(study, stores)))
    data = joined(studied_dataset(refresh.of, stores), new, study.data, revision=f"r{refresh.number}")
    check_labels(study.data, data.dataset.personas, problems)
    problems.raise_any()
    if data.n_new == 0:
        raise NothingNew(f"{study.data.path}: {'; '.join(data.sentences)}; refresh when people have said more")
    start = start_from(read_state(refresh.champion, stores), str(refresh.champion_method), stores)
    news = _news(data, studied_dataset(refresh.champion, stores), start)
    # What has decided an earlier refresh does not decide again.
    new_ids = {(p, one) for p, ids in news.dialogues for one in ids} - decided_before(study, stores)
    if not any(d.split == "test" and (p.id, d.id) in new_ids for p in data.dataset.personas for d in p.dialogues):
        raise NothingNew(
            f"{study.data.path}: {'; '.join(data.sentences)}; none of them is a test item, which takes 3 new dialogues of a person, so "
            "nothing would show whether they help; send them again together with later ones"
        )
    return Refreshed(data.dataset, fit, start, news, data.sentences, stores.studies.metadata(refresh.champion, Tuning))


def _recorded(study: PreparedStudy, fit: PromptFit, stores: Stores) -> Refreshed | None:
    """Return what a refresh that was prepared works on; None before."""
    if study.name not in (name for name, *_ in stores.studies.studies()):
        return None
    start, news = stores.studies.metadata(study.name, RefreshStart), stores.studies.metadata(study.name, News)
    if start is None or news is None:
        return None
    if (counted_then := stores.studies.metadata(study.name, Provenance)) is not None:
        fit.n_dialogues, fit.n_unfit = counted_then.n_dialogues, counted_then.n_dialogues_left_out
        fit.n_losing_turns = counted_then.n_dialogues_losing_turns
    return Refreshed(stores.studies.dataset(study.name), fit, start, news, (), tuning=None)


def save_refresh(study: PreparedStudy, refresh: Refreshed, stores: Stores) -> None:
    """Record what a refresh goes on from, and the recipes that its champion was tuned by."""
    stores.studies.save_metadata(study.name, refresh.start)
    stores.studies.save_metadata(study.name, refresh.news)
    if refresh.tuning is not None:
        stores.studies.save_metadata(study.name, refresh.tuning)


def start_from(state: StudyState, method: str, stores: Stores) -> RefreshStart:
    """Return what a refresh goes on from: the adapters of a finished study, and what its method answers everybody with."""
    plan = work_plan(state)
    trained = trained_adapters(state, plan)
    label = {
        spec.name: spec.label
        for name, of_method in plan.methods.items()
        if not (is_control(name) or METHODS[name].needs_refresh)
        for spec in of_method.adapters
        if spec.name in trained
    }

    def relabelled(composition: AdapterComposition) -> AdapterComposition:
        return replace(composition, adapters=tuple(replace(one, name=label[one.name]) for one in composition.adapters))

    routes = [route for route in stores.studies.routes(state.name) if route.method == method and route.seed == 0]
    if lost := {name for route in routes for name in route.composition.adapter_names} - label.keys():
        raise BadData(f"study {state.name} has lost {', '.join(sorted(lost))}; run it again: clusterlora study run --name {state.name}")
    return RefreshStart(
        study=state.name,
        method=method,
        adapters=tuple(ChampionAdapter(label[name], trained[name].key, plan.specs[name]) for name in label),
        routes=tuple((route.persona_id, relabelled(route.composition)) for route in routes),
        default=AdapterComposition((WeightedAdapter(REFERENCE),) if REFERENCE in label.values() else ()),
        algorithm=state.clustering.algorithm if state.clustering else "",
        members=state.clustering.members if state.clustering else (),
        rung=decided_rung(state),
    )


def _news(data: Joined, seen: Dataset, start: RefreshStart) -> News:
    news = new_dialogues(data.dataset, seen)
    people, known = data.dataset.by_id(), frozenset(seen.ids)
    n_tested = sum(d.split == "test" and d.id in ids for p, ids in news.items() for d in people[p].dialogues)
    before = [
        (p.id, d)
        for p in seen.personas
        if p.id in people
        for d in people[p.id].dialogues
        if d.split == "test" and d.id not in news.get(p.id, ())
    ]
    return News(
        dialogues=tuple(news.items()),
        newcomers=tuple(p for p in data.dataset.ids if p not in known),
        old_test=tuple(drawn(before, n_tested, salt=f"old test {start.study}").items()),
        n_read=data.n_read,
        n_repeated=data.n_repeated,
        n_left_out=data.n_left_out + data.n_unlearnt,
    )
