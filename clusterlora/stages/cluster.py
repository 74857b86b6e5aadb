"""Cluster the personas of a prepared study, once."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np

from clusterlora.adapters.stored import stored_folder, stored_weights
from clusterlora.clustering.cluster import cluster_personas
from clusterlora.clustering.features import Evidence, Sources
from clusterlora.clustering.regroup import regroup
from clusterlora.clustering.summary import sentence
from clusterlora.comparison.roles import is_control
from clusterlora.data.prompts import messages, prompt_encoder
from clusterlora.data.synthetic import planted
from clusterlora.errors import BadData, BadSettings
from clusterlora.gate.judged_cluster import words
from clusterlora.metadata import RefreshStart, Regrouping, TruthAgreement
from clusterlora.models.model_cache import base_model, embedder
from clusterlora.planning.ladder import GATED, REFERENCE
from clusterlora.planning.study_state import StudyState, outdated, read_state
from clusterlora.planning.work_plan import work_plan
from clusterlora.ports.run_log import RunLog
from clusterlora.ports.stores import Stores
from clusterlora.progress.timing import timed
from clusterlora.results.report import map_path, write_map
from clusterlora.settings import Study
from clusterlora.stages.train import link_trained
from clusterlora.values import Clustering, Dataset, Persona


def cluster_study(study_name: str, stores: Stores, log: RunLog) -> Clustering:
    """Return the study's clustering, from train dialogues only; an existing one is kept. Its map is written to `results/figures`.

    An algorithm that reads adapters expects those of `training_groups.groups_before_clustering` to be trained.
    """
    state = read_state(study_name, stores)
    study = state.settings
    if state.clustering is not None:
        if not map_path(stores, study.name).is_file():
            write_map(study.name, stores, state.clustering)
        return state.clustering
    with timed(stores, study.name, "cluster"):
        if state.start is None:
            clustering = cluster_personas(state.dataset, study.clustering, _sources(state, stores, log), log)
        else:
            clustering = _regrouped(state, state.start, stores, log)
        stores.studies.save_clustering(study.name, clustering)
        write_map(study.name, stores, clustering)
    log.note(sentence(clustering))
    state = read_state(study_name, stores)
    _check_methods(state)
    if state.start is not None:
        # What is kept is linked here, so that no training run is started for it.
        link_trained(state, work_plan(state), stores)
    if GATED in study.methods:
        log.note(words(clustering.sizes, study.clustering))
    if study.data.source == "synthetic" and study.data.permute_seed is None:
        agreement = _agreement_with_truth(study, clustering)
        stores.studies.save_metadata(study.name, TruthAgreement(agreement))
        log.note(f"adjusted Rand index against the planted clusters: {agreement:.3f}")
    return clustering


def _regrouped(state: StudyState, start: RefreshStart, stores: Stores, log: RunLog) -> Clustering:
    """Return the clusters of before with everybody new in them; where too many have drifted to another cluster, all are clustered anew."""
    sources, study = _sources(state, stores, log), state.settings
    there = set(state.dataset.ids)
    members = tuple(tuple(p for p in ids if p in there) for ids in start.members)
    if not all(members):
        raise BadData(f"nobody is left of a cluster of study {start.study}; run a study of the people that there are under another name")
    news = dict(state.news.dialogues) if state.news else {}
    rng = np.random.default_rng(study.clustering.seed)
    left = outdated(state.name, stores)
    found = regroup(state.dataset, start.algorithm, members, sources, news=news, changed_before=left, rng=rng)
    clustering, moved, n_known = found.clustering, found.moved, sum(map(len, members))
    anew = len(moved) > study.refresh.misfits * n_known
    if anew:
        people = stores.studies.dataset(state.name).by_id()
        # Who changed since the champion learnt is known for longer where an earlier refresh has found it.
        since = left.keys() - outdated(start.study, stores).keys()
        left |= {p: _before(people[p], last) - set(news.get(p, ())) for p, last in found.changed.items() if p not in since}
        clustering = cluster_personas(_without(state.dataset, left), study.clustering, sources, log)
    stores.studies.save_metadata(
        study.name,
        Regrouping(moved=moved, n_personas=n_known, anew=anew, outdated=tuple((p, tuple(sorted(ids))) for p, ids in left.items())),
    )
    ending = ": everybody is clustered anew" if anew else ""
    log.note(f"{len(moved)} of {n_known} personas are nearest to another cluster than their own{ending}")
    return clustering


def _before(persona: Persona, last: Collection[str]) -> frozenset[str]:
    """Return the ids of a person's dialogues before the first of these."""
    ids = [d.id for d in persona.dialogues]
    return frozenset(ids[: min(map(ids.index, last))])


def _without(dataset: Dataset, left: Mapping[str, frozenset[str]]) -> Dataset:
    return Dataset(tuple(replace(p, dialogues=tuple(d for d in p.dialogues if d.id not in left.get(p.id, ()))) for p in dataset.personas))


def _check_methods(state: StudyState) -> None:
    """Raise BadSettings if no method is left without clusters that could be champion."""
    if not state.settings.methods or all(is_control(name) for name in state.settings.methods):
        raise BadSettings(f"study {state.name} has no clusters worth having, and its methods need them; set clustering.k, or add unified")


def _agreement_with_truth(study: Study, clustering: Clustering) -> float:
    """Return the adjusted Rand index of a finished clustering with the planted clusters."""
    from sklearn.metrics import adjusted_rand_score

    truth, clusters = planted(study.data.synthetic).cluster_by_persona, clustering.cluster_by_persona()
    return float(adjusted_rand_score([truth[p] for p in clusters], list(clusters.values())))


def _sources(state: StudyState, stores: Stores, log: RunLog) -> Sources:
    study = state.settings

    def gradients(personas: Sequence[Persona]) -> Evidence:
        from clusterlora.engine.gradients import dialogue_gradients

        plan = work_plan(state)
        base = base_model(study.model)
        encoder = prompt_encoder(base.tokenizer, study.model)
        dialogues = [encoder.encode_dialogues(messages(study.model, p, d) for d in p.of_split("train")) for p in personas]
        flat = [sequence for of_persona in dialogues for sequence in of_persona]
        log.phase("gradients", total=len(flat), unit="dialogues")
        adapter = stored_folder(stores, plan.keys[REFERENCE])
        sketches = dialogue_gradients(base, flat, adapter=adapter, recipe=plan.specs[REFERENCE].recipe, run_log=log)
        return tuple(np.split(sketches, np.cumsum([len(of_persona) for of_persona in dialogues])[:-1]))

    def products(personas: Sequence[Persona]) -> np.ndarray:
        from clusterlora.adapters.merging import inner_products

        plan = work_plan(state)
        own = {spec.persona_ids[0]: plan.keys[spec.name] for spec in plan.specs.values() if len(spec.persona_ids) == 1}
        log.phase("compare adapters", total=1, unit="matrix")
        matrix = inner_products([stored_weights(stores, own[p.id]).factors for p in personas])
        log.advance(1)
        return matrix

    return Sources(embedder(study.model), gradients, products)
