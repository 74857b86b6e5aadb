"""Register the study's adapters and its champion in the model registry."""

from collections.abc import Iterable
from dataclasses import replace

from clusterlora.adapters.held import HeldAdapters
from clusterlora.adapters.stored import stored_folder
from clusterlora.comparison.move import left_elsewhere
from clusterlora.comparison.roles import is_control
from clusterlora.errors import BadData
from clusterlora.metadata import RegisteredChampion
from clusterlora.methods import METHODS
from clusterlora.planning.family import family
from clusterlora.planning.study_state import StudyState, read_state
from clusterlora.planning.work_plan import WorkPlan, trained_adapters, work_plan
from clusterlora.ports.run_log import RunLog
from clusterlora.ports.stores import Stores
from clusterlora.progress.cost import cost_metrics, study_cost
from clusterlora.progress.timing import seconds_by_part, timed
from clusterlora.recipe import Recipe
from clusterlora.registry.model_card import about
from clusterlora.registry.routing import adapter_table, routing_table
from clusterlora.stages.compare import compare_study
from clusterlora.stages.keep import expose
from clusterlora.values import AdapterSpec, TrainedAdapter


def register_models(study_name: str, stores: Stores, log: RunLog) -> str | None:
    """Return the URI of the champion router; None where there is no registry, the comparison has no champion, or the alias is elsewhere.

    Each adapter of everybody or of a cluster that can answer alone becomes a model; a method's adapters of single persons or small groups
    become one model together; the router answers every persona as the champion of the comparison does. Adapters used by controls only are
    not registered. Registering again adds nothing. The alias moves only from where this study left or found it: what another refresh or a
    person has made champion since stays. Once the alias is back where a refresh that never had it began, it moves as the comparison says.
    """
    state = _free_again(read_state(study_name, stores), stores, log)
    study, plan = state.settings, work_plan(state)
    # Only the study's own training seed is registered; the others serve the comparison.
    first = {adapter.name for name, method in plan.methods.items() if not _stands_beside(name) for adapter in method.adapters}
    trained = {name: adapter for name, adapter in trained_adapters(state, plan).items() if name in first}
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
        for name, adapter in trained.items():
            if not plan.specs[name].is_one_of_many:
                expose(stores, study_name, plan.specs[name], stored_folder(stores, adapter.key))
        for name in shared:
            spec = plan.specs[name]
            register_adapter(state, trained[name], stores, model=spec.label, method=trained_by[name], n_personas=len(spec.persona_ids))
            log.advance(1)
        for method in personal:
            _register_router(state, plan, method, trained, stores, model=method.replace("_", "-"))
            log.advance(1)
        champion, earlier = _champion(state), stores.studies.metadata(study_name, RegisteredChampion)
        uri = elsewhere = None
        if champion is not None:
            uri = _register_router(state, plan, champion, trained, stores, model=None, alias=False)
            # Uploading may have taken long: the alias is asked for last.
            if (elsewhere := _alias_elsewhere(state, champion, earlier, stores)) is None:
                _register_router(state, plan, champion, trained, stores, model=None, alias=True)
        else:
            kept = f"; {earlier.uri}, which an earlier comparison chose, keeps its alias" if earlier else ""
            stays = f"the champion of {state.start.study} stays: {state.moved.reason}" if state.start and state.moved else ""
            log.note(stays or f"no champion is registered, as the comparison has none; its adapters are registered by themselves{kept}")
        log.advance(1)
        if elsewhere is not None:
            log.note(_stays(state, elsewhere))
    if elsewhere is not None:
        _leave_alias(state, elsewhere, earlier, uri, stores, log)
        uri = None
    stores.studies.set_status(study_name, "finished")
    costs = cost_metrics(study_cost(stores.studies.device_use(study_name), study.runtime))
    stores.tracker.end_study(study_name, status="finished", seconds=seconds_by_part(stores.studies.seconds(study_name)), costs=costs)
    if uri is not None and champion is not None:
        # Last: whoever is told that a champion moved is told when it was not recorded before.
        stores.studies.save_metadata(study_name, RegisteredChampion(uri, champion))
    return uri


def _alias_elsewhere(state: StudyState, champion: str, earlier: RegisteredChampion | None, stores: Stores) -> tuple[str, str] | None:
    """Return whose champion (study, method) keeps the alias; None where it is this study's to move.

    A study that had the alias moves it within its own versions. One that never had it takes it from the champion that it challenged or,
    where it is no refresh, from anything that no later refresh and no person has put there.
    """
    study, refresh = state.settings, state.settings.refresh
    registered = stores.tracker.champion(refresh.root or study.name)
    if registered is None or registered == (study.name, champion):
        return None
    if earlier is not None:
        own = registered[0] == study.name and earlier.method in ("", registered[1])
        return None if own else registered
    if refresh.root is not None:
        return None if registered == (refresh.champion, refresh.champion_method) else registered
    return registered if registered[0] in family(study.name, stores) else None


def _stays(state: StudyState, elsewhere: tuple[str, str]) -> str:
    return f"the alias champion stays with {elsewhere[1]} of study {elsewhere[0]}, where it was put since study {state.name} began"


def _leave_alias(
    state: StudyState, elsewhere: tuple[str, str], earlier: RegisteredChampion | None, uri: str | None, stores: Stores, log: RunLog
) -> None:
    """Record that a study's champion did not get the alias, and say so on its pages; or where its version is if it once had it."""
    if earlier is not None and uri is not None:
        stores.studies.save_metadata(state.name, replace(earlier, uri=uri))
    elif state.moved is not None:
        stores.studies.save_metadata(state.name, left_elsewhere(state.moved, _stays(state, elsewhere)))
        # Its pages say that the alias moves.
        compare_study(state.name, stores, log)


def _free_again(state: StudyState, stores: Stores, log: RunLog) -> StudyState:
    """Return the state of a study, compared again if it left its alias elsewhere and that is back with the champion that it challenged."""
    refresh = state.settings.refresh
    if state.moved is None or state.moved.elsewhere is None or refresh.root is None:
        return state
    if stores.tracker.champion(refresh.root) != (refresh.champion, refresh.champion_method):
        return state
    stores.studies.save_metadata(state.name, replace(state.moved, elsewhere=None))
    compare_study(state.name, stores, log)
    return read_state(state.name, stores)


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
    table = adapter_table(state, model, adapter, stores)
    about_model = about(
        study,
        state.prepared_with,
        state.outcome,
        model=f"{study.name}-{model}",
        method=method,
        n_personas=n_personas,
        weights_sha256=table["weights_sha256"],
        recipes=_recipes(state, [adapter.spec]),
    )
    held = HeldAdapters.of_stores([adapter.key], stores)
    stores.tracker.register_router(study.name, routes=table, adapters=held, champion=False, model=model, about=about_model)


def _recipes(state: StudyState, specs: Iterable[AdapterSpec]) -> list[Recipe]:
    """Return what adapters, or the parts of merges, were trained by; of what was imported nobody says."""
    return [spec.recipe for spec in specs if not (spec.imported or (spec.merge_of and state.imported))]


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
    stores: Stores,
    *,
    model: str | None,
    alias: bool = False,
) -> str | None:
    """Register what answers as a method does: as the champion's model when `model` is None, else under the method's own name.

    With `alias` it becomes champion.
    """
    study, table = state.settings, routing_table(state, plan, method, stores)
    used = sorted(table["names"].values())
    learned = {p for name in used for p in plan.specs[name].persona_ids}
    about_model = about(
        study,
        state.prepared_with,
        state.outcome,
        model=f"{study.name}-{model}" if model else study.name,
        method=method,
        n_personas=len(learned),
        weights_sha256=table["weights_sha256"],
        recipes=_recipes(state, (plan.specs[name] for name in used)),
    )
    held = HeldAdapters.of_stores([trained[name].key for name in used], stores)
    return stores.tracker.register_router(
        study.name, routes=table, adapters=held, champion=alias, model=model, about=about_model, root=study.refresh.root
    )
