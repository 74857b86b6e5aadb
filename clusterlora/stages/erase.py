"""Remove a person from one study, from the adapter store and from the tracker; doing it again changes nothing."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from shutil import rmtree

from clusterlora.adapters.stored import in_tracker
from clusterlora.metadata import (
    Cut,
    Forgotten,
    GateDecisions,
    ImportedAdapters,
    ImportedScores,
    News,
    Probe,
    Provenance,
    Refinement,
    RefreshStart,
    Regrouping,
    TrackerPage,
    Tuning,
    WatchedFiles,
    Workers,
)
from clusterlora.planning.cut import cut_to, studied_dataset
from clusterlora.planning.study_state import read_state
from clusterlora.ports.stores import Stores
from clusterlora.stages.forget_plan import Removal, id_of, without
from clusterlora.stages.prepare import start_tracking
from clusterlora.stages.refresh import start_from
from clusterlora.values import Clustering

_KEPT = (
    *(Cut, Forgotten, GateDecisions, ImportedAdapters, ImportedScores, News, Probe, Provenance, Refinement, RefreshStart, Regrouping),
    *(TrackerPage, Tuning, WatchedFiles, Workers),
)
"""Metadata that say nothing of single people, or from which the person is taken out."""


def erase_from_study(removal: Removal, person: str, stores: Stores, removing: Sequence[str]) -> None:
    """Delete everything of a study in which the person may be: rows, adapters, and the folder of its results; or the study.

    Args:
        removing: the studies from which the person is removed; what others still use stays theirs.
    """
    study = removal.study
    if study not in (name for name, *_ in stores.studies.studies()):
        return
    persona_id = None if removal.whole else id_of(person, study, stores)
    if persona_id is not None:
        left = stores.studies.metadata(study, Forgotten) or Forgotten()
        # First of all: from now on the person is no longer read from the file of the data.
        stores.studies.save_metadata(study, Forgotten(tuple(sorted({*left.pseudonyms, person}))))
    for one in removal.removed:
        if stores.studies.forget_adapter(one.key, only_of=removing):
            stores.adapters.delete(one.key)
        else:
            stores.studies.unlink_adapter(study, one.key)
    rmtree(stores.folder(study), ignore_errors=True)
    if removal.whole:
        stores.studies.forget_study(study)
    if persona_id is None:
        return
    dataset = without(stores.studies.dataset(study), persona_id)
    metadata = list(_metadata_without(study, persona_id, stores))
    made_from = stores.studies.metadata(study, Provenance)
    if made_from is not None:
        cut = next((one for one in metadata if isinstance(one, Cut)), None)
        studied = dataset if cut is None else cut_to(dataset, cut)
        counts = {"n_personas": len(studied.personas), "n_dialogues": studied.n_dialogues, "data_digest": dataset.digest}
        metadata.append(replace(made_from, **counts))
    # The last step, and at once: as long as the person is in the data, all of this is done again.
    clustering = _clusters_without(stores.studies.clustering(study), persona_id)
    stores.studies.forget_data(study, dataset, clustering, _KEPT, metadata)


def _metadata_without(study: str, persona_id: str, stores: Stores) -> Iterator[object]:
    studies, number = stores.studies, _numbers_without(stores.studies.clustering(study), persona_id)
    if (imported := studies.metadata(study, ImportedAdapters)) is not None:
        clusters = tuple((number[k], weights) for k, weights in imported.weights_by_cluster if k in number)
        people = tuple(one for one in imported.weights_by_persona if one[0] != persona_id)
        yield replace(imported, weights_by_cluster=clusters, weights_by_persona=people)
    if (scores := studies.metadata(study, ImportedScores)) is not None:
        of_others = {
            file: {metric: {p: value for p, value in by_persona.items() if p != persona_id} for metric, by_persona in metrics.items()}
            for file, metrics in scores.scores_by_file.items()
        }
        yield ImportedScores(of_others)
    if (news := studies.metadata(study, News)) is not None:
        dialogues, old = (tuple(one for one in pairs if one[0] != persona_id) for pairs in (news.dialogues, news.old_test))
        newcomers = tuple(one for one in news.newcomers if one != persona_id)
        yield replace(news, dialogues=dialogues, newcomers=newcomers, old_test=old)
    if (cut := studies.metadata(study, Cut)) is not None:
        inside = persona_id in studies.dataset(study).ids[: cut.n_personas]
        yield replace(cut, of_personas=cut.of_personas - 1, n_personas=cut.n_personas - inside)
    if (regrouping := studies.metadata(study, Regrouping)) is not None:
        moved = tuple(
            (p, number[own], number[nearest]) for p, own, nearest in regrouping.moved if p != persona_id and {own, nearest} <= number.keys()
        )
        outdated = tuple(one for one in regrouping.outdated if one[0] != persona_id)
        yield replace(regrouping, moved=moved, n_personas=regrouping.n_personas - 1, outdated=outdated)
    if (start := studies.metadata(study, RefreshStart)) is not None:
        members = tuple(tuple(p for p in ids if p != persona_id) for ids in start.members)
        adapters = tuple(
            replace(one, spec=replace(one.spec, persona_ids=tuple(p for p in one.spec.persona_ids if p != persona_id)))
            for one in start.adapters
            if one.spec.persona_ids != (persona_id,)
        )
        routes = tuple(route for route in start.routes if route[0] != persona_id)
        yield replace(start, members=members, adapters=adapters, routes=routes)


def go_on_from(study: str, stores: Stores) -> None:
    """Let a refresh go on from its champion's study as that is without the person."""
    refresh = stores.studies.study(study).refresh
    stores.studies.save_metadata(study, start_from(read_state(str(refresh.champion), stores), str(refresh.champion_method), stores))


def _clusters_without(clustering: Clustering | None, persona_id: str) -> Clustering | None:
    """Return the clustering without the person; a cluster in which nobody is left is gone."""
    if clustering is None:
        return None
    members = tuple(tuple(p for p in ids if p != persona_id) for ids in clustering.members)
    map_2d = tuple(point for point in clustering.map_2d if point[0] != persona_id)
    return replace(clustering, members=tuple(ids for ids in members if ids), map_2d=map_2d)


def _numbers_without(clustering: Clustering | None, persona_id: str) -> dict[int, int]:
    """Return the number that each cluster has without the person, by the one that it has; a cluster of nobody else has none."""
    stay = [k for k, ids in enumerate(clustering.members if clustering else ()) if set(ids) != {persona_id}]
    return {k: position for position, k in enumerate(stay)}


def bring_home(studies: Sequence[str], gone: Sequence[str], stores: Stores) -> None:
    """Fetch the adapters whose only copy is in runs of studies that the tracker is about to forget."""
    runs = frozenset[str]().union(*(stores.tracker.run_ids(study) for study in studies))
    for name, *_ in stores.studies.studies():
        for adapter in stores.studies.adapters(name):
            if adapter.run_id in runs and adapter.key not in gone:
                stores.adapters.bring(adapter.key)


def track_again(studies: Sequence[str], stores: Stores) -> None:
    """Start the studies anew in the tracker, and upload every adapter there whose run is gone."""
    for name in studies:
        if (made_from := stores.studies.metadata(name, Provenance)) is not None:
            start_tracking(stores.studies.study(name), made_from, studied_dataset(name, stores), stores, running=False)
    if not stores.tracker.keeps_adapters:
        return
    places: dict[Path, tuple[str, str]] = {}
    for name, *_ in stores.studies.studies():
        for adapter in stores.studies.adapters(name):
            if not stores.adapters.holds(adapter.key) or not in_tracker(adapter) or stores.tracker.has_run(str(adapter.run_id)):
                continue
            what = stores.adapters.shard(adapter.key) or stores.adapters.path(adapter.key)
            assert what is not None, f"adapter {adapter.key} was here a moment ago"
            # A shard is uploaded once for all that it holds.
            if what not in places:
                in_run = adapter.name if what.is_dir() else what.name
                places[what] = stores.tracker.upload(name, what, f"adapters/{in_run}", run_id=adapter.run_id)
            run_id, uri = places[what]
            stores.studies.move_adapter(adapter.key, run_id=run_id, uri=uri)
