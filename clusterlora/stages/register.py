"""Register the study's adapters and its champion in the model registry."""

from pathlib import Path

from clusterlora.adapters.stored import stored_folder
from clusterlora.comparison.roles import is_control
from clusterlora.errors import BadData
from clusterlora.metadata import RegisteredChampion
from clusterlora.methods import METHODS
from clusterlora.planning.study_state import StudyState, read_state
from clusterlora.planning.work_plan import WorkPlan, trained_adapters, work_plan
from clusterlora.ports.run_log import RunLog
from clusterlora.ports.stores import Stores
from clusterlora.progress.cost import cost_metrics, study_cost
from clusterlora.progress.timing import seconds_by_part, timed
from clusterlora.registry.model_card import about
from clusterlora.registry.routing import adapter_table, routing_table
from clusterlora.stages.train import expose
from clusterlora.values import AdapterSpec, TrainedAdapter


def register_models(study_name: str, stores: Stores, log: RunLog) -> str | None:
    """Return the URI of the champion router; None where there is no registry, or the comparison has no champion.

    Each adapter of everybody or of a cluster that can answer alone becomes a model; a method's adapters of single persons or small groups
    become one model together; the router answers every persona as the champion of the comparison does. Adapters used by controls only are
    not registered. Registering again adds nothing.
    """
    state = read_state(study_name, stores)
    study, plan = state.settings, work_plan(state)
    # Only the study's own training seed is registered; the others serve the comparison.
    first = {adapter.name for name, method in plan.methods.items() if not _stands_beside(name) for adapter in method.adapters}
    trained = {name: adapter for name, adapter in trained_adapters(state, plan).items() if name in first}
    folders = {name: stored_folder(stores, adapter.key) for name, adapter in trained.items()}
    # What is kept from another study is registered by that one.
    own = [name for name in trained if not plan.specs[name].kept]
    shared = [name for name in own if not plan.specs[name].is_one_of_many and _answers_by_itself(plan.specs[name])]
    trained_by = plan.trained_by()
    personal = [
        name
        for name in study.methods
        if not _stands_beside(name) and _is_personal(plan, name) and plan.methods[name].adapters[0].name in trained
    ]
    log.phase("register", total=len(shared) + len(personal) + 1, unit="models")
    with timed(stores, study_name, "register"):
        for name, folder in folders.items():
            expose(stores, study_name, plan.specs[name], folder)
        for name in shared:
            spec = plan.specs[name]
            register_adapter(state, trained[name], stores, model=spec.label, method=trained_by[name], n_personas=len(spec.persona_ids))
            log.advance(1)
        for method in personal:
            _register_router(state, plan, method, trained, folders, stores, model=method.replace("_", "-"))
            log.advance(1)
        champion = _champion(state)
        uri = _register_router(state, plan, champion, trained, folders, stores, model=None) if champion is not None else None
        if champion is None:
            earlier = stores.studies.metadata(study_name, RegisteredChampion)
            kept = f"; {earlier.uri}, which an earlier comparison chose, keeps its alias" if earlier else ""
            stays = f"the champion of {state.start.study} stays: {state.moved.reason}" if state.start and state.moved else ""
            log.note(stays or f"no champion is registered, as the comparison has none; its adapters are registered by themselves{kept}")
        log.advance(1)
    if uri is not None:
        stores.studies.save_metadata(study_name, RegisteredChampion(uri))
    stores.studies.set_status(study_name, "finished")
    costs = cost_metrics(study_cost(stores.studies.device_use(study_name), study.runtime))
    stores.tracker.end_study(study_name, status="finished", seconds=seconds_by_part(stores.studies.seconds(study_name)), costs=costs)
    return uri


def _stands_beside(method: str) -> bool:
    """Return whether a method is compared only for what it says of others: a control, or the champion of before."""
    return is_control(method) or METHODS[method].needs_refresh


def _champion(state: StudyState) -> str | None:
    """Return the champion of the comparison. Raises BadData before one, and where a control is recorded as champion."""
    if state.outcome is None or (state.outcome.champion is not None and is_control(state.outcome.champion)):
        raise BadData(f"study {state.name} has no champion to register; compare its methods: clusterlora compare --name {state.name}")
    return state.outcome.champion


def register_adapter(state: StudyState, adapter: TrainedAdapter, stores: Stores, *, model: str, method: str, n_personas: int) -> None:
    """Register an adapter as `<study>-<model>`, which answers everybody with it; `method` and `n_personas` are for its card."""
    study = state.settings
    table, folders = adapter_table(state, model, adapter, stores), {adapter.key: stored_folder(stores, adapter.key)}
    about_model = about(
        study,
        state.prepared_with,
        state.outcome,
        model=f"{study.name}-{model}",
        method=method,
        n_personas=n_personas,
        weights_sha256=table["weights_sha256"],
    )
    stores.tracker.register_router(study.name, routes=table, adapter_folders=folders, champion=False, model=model, about=about_model)


def _answers_by_itself(spec: AdapterSpec) -> bool:
    """Return whether an adapter was evaluated alone: on no other adapter, and with the prompts of the study's other methods."""
    return spec.frozen_adapter is None and not spec.persona_in_prompt and not spec.shots


def _is_personal(plan: WorkPlan, method: str) -> bool:
    """Return whether all adapters of a method are for single persons or small groups."""
    adapters = plan.methods[method].adapters
    return bool(adapters) and all(adapter.is_one_of_many for adapter in adapters)


def _register_router(
    state: StudyState,
    plan: WorkPlan,
    method: str,
    trained: dict[str, TrainedAdapter],
    folders: dict[str, Path],
    stores: Stores,
    *,
    model: str | None,
) -> str | None:
    """Register what answers as a method does: as the champion when `model` is None, else under the method's own name."""
    study, table = state.settings, routing_table(state, plan, method, stores)
    used = sorted(table["names"].values())
    weights = {trained[name].key: folders[name] for name in used}
    learned = {p for name in used for p in plan.specs[name].persona_ids}
    about_model = about(
        study,
        state.prepared_with,
        state.outcome,
        model=f"{study.name}-{model}" if model else study.name,
        method=method,
        n_personas=len(learned),
        weights_sha256=table["weights_sha256"],
    )
    return stores.tracker.register_router(
        study.name, routes=table, adapter_folders=weights, champion=model is None, model=model, about=about_model, root=study.refresh.root
    )
