"""Merge the personal adapters of a study per cluster: a study of its own, which trains nothing, where the merge is not the study's own."""

from collections.abc import Sequence
from dataclasses import replace

from clusterlora.adapters.merging import density_of
from clusterlora.errors import BadData, BadSettings
from clusterlora.metadata import Cut, GateDecisions, ImportedAdapters, Refinement, Tuning
from clusterlora.method_settings import MergeSettings
from clusterlora.planning.study_state import StudyState, read_state
from clusterlora.planning.training_groups import groups_of
from clusterlora.planning.work_plan import WorkPlan, trained_adapters, work_plan
from clusterlora.ports.run_log import RunLog
from clusterlora.ports.stores import Stores
from clusterlora.progress.timing import timed
from clusterlora.requests import MergeRequest
from clusterlora.settings import STUDY_NAME, PreparedStudy
from clusterlora.stages.prepare import prepare_study
from clusterlora.stages.train import link_trained, merge_adapters
from clusterlora.study_checks import merging_problems

_N_NAMED = 5


def merge(request: MergeRequest, stores: Stores, log: RunLog) -> str:
    """Return the name of the study that holds the merged adapters, one per cluster, beside the methods that they are to be compared with.

    It is the study itself if its settings ask for this merge, else one named after it and the merge, with the same data, clusters and
    adapters. Imported personal adapters are merged where there are any, else those that were trained here. Merging again changes nothing.

    Raises:
        BadData: personal adapters are missing.
        BadSettings: the personas are not clustered yet, the name would be too long, or the merge has no use for a density.
    """
    if problem := next(merging_problems(request.merging), None):
        raise BadSettings(problem)
    state = read_state(request.study_name, stores)
    method = "imported_merge" if state.imported and state.imported.weights_by_persona else "merge"
    _check_parts(state, method, request.merging, stores)
    study = _settings(state.settings, method, request.merging)
    if study.name != state.name:
        _derive(state, study, stores, log)
    state = read_state(study.name, stores)
    plan = work_plan(state)
    link_trained(state, plan, stores)
    state = read_state(study.name, stores)
    merged = tuple(spec.name for methods in plan.seeds for spec in methods[method].adapters if spec.merge_of)
    for group in (group for wave in groups_of(state, plan, merged) for group in wave):
        if parts := [name for name in group.adapters if not plan.specs[name].merge_of]:
            raise BadData(f"study {state.name} lacks the adapter {parts[0]}, which is to be merged; train it in study {request.study_name}")
        with timed(stores, study.name, "merge", _label(request.merging)):
            merge_adapters(
                state,
                plan,
                group,
                [plan.specs[name] for name in group.adapters],
                tags={"study": study.name, "method": method, "training_group": group.name},
                stores=stores,
                log=log,
            )
    _note_untrained(state, plan, stores, log)
    return study.name


def _label(merging: MergeSettings) -> str:
    """Return a merge in a few letters: average, ties-0.2."""
    density = density_of(merging)
    return merging.kind if density == 1 else f"{merging.kind}-{density:g}"


def _check_parts(state: StudyState, method: str, merging: MergeSettings, stores: Stores) -> None:
    """Raise BadData unless every personal adapter to be merged is there."""
    plan = work_plan(replace(state, settings=replace(state.settings, methods=(method,), merging=merging)))
    needed = tuple(dict.fromkeys(part for methods in plan.seeds for spec in methods[method].adapters for part in spec.merge_of))
    recorded = {name for name in needed if stores.studies.adapter(plan.keys[name]) is not None}
    if missing := [name for name in needed if name not in recorded]:
        raise BadData(
            f"study {state.name} has {len(recorded)} of {len(needed)} personal adapters, {missing[0]} is missing; "
            f"train them: clusterlora train --name {state.name} with per_persona or merge among its methods; "
            "or bring them: clusterlora study import --personal FOLDER"
        )


def _settings(study: PreparedStudy, method: str, merging: MergeSettings) -> PreparedStudy:
    """Return the study itself if it compares this merge, else a study like it that does."""
    if method in study.methods and study.merging == merging:
        return study
    name = f"{study.name}-{_label(merging)}"
    if not STUDY_NAME.fullmatch(name):
        raise BadSettings(
            f"the merge would be study {name!r}, which is longer than 48 characters; give study {study.name!r} a shorter name"
        )
    return replace(study, name=name, methods=tuple(dict.fromkeys([*study.methods, method])), merging=merging)


def _derive(state: StudyState, study: PreparedStudy, stores: Stores, log: RunLog) -> None:
    """Create a study with the data and clusters of another one, and with all that its adapters' recipes were decided by."""
    prepare_study(study, stores, log, running=False)
    for kind in (Cut, GateDecisions, ImportedAdapters, Refinement, Tuning):
        if (known := stores.studies.metadata(state.name, kind)) is not None:
            stores.studies.save_metadata(study.name, known)
    for verdict in state.verdicts:
        stores.studies.save_verdict(study.name, verdict)
    if stores.studies.clustering(study.name) is None and state.clustering is not None:
        stores.studies.save_clustering(study.name, state.clustering)


def _note_untrained(state: StudyState, plan: WorkPlan, stores: Stores, log: RunLog) -> None:
    """Log which methods cannot be compared with the merge, because some of their adapters are not trained."""
    trained = trained_adapters(read_state(state.name, stores), plan)
    lacking = [name for name, method in plan.methods.items() if not trained.keys() >= {spec.name for spec in method.adapters}]
    if lacking:
        log.note(f"{_listed(lacking)} cannot be compared with the merge: adapters are missing; clusterlora train --name {state.name}")


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _N_NAMED} more" if len(names) > _N_NAMED else ""
    return ", ".join(names[:_N_NAMED]) + more
