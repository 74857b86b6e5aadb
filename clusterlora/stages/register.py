"""Put what the study made into the model registry, and the champion where servers look for it."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from clusterlora.data.shots import exchanges
from clusterlora.ports import RunLog, Stores
from clusterlora.settings import Study
from clusterlora.stages.plan import REFERENCE, WorkPlan, trained_adapters, work_plan
from clusterlora.stages.timing import timed
from clusterlora.stages.train import expose
from clusterlora.stores.routing_table import KeyedLayer, KeyedStack
from clusterlora.values import Stack, TrainedAdapter


def register(study_name: str, stores: Stores, log: RunLog) -> str:
    """Return the URI of the champion router.

    An adapter of many personas becomes a model of its own, those of one person each become one model together, and the router
    answers every persona with the stack of the method that won the comparison. Registering again adds nothing.
    """
    study = stores.studies.study(study_name)
    plan = work_plan(study, stores)
    # Other training seeds are for the comparison; what is handed over is the first.
    first = {adapter.name for method in plan.methods.values() for adapter in method.adapters}
    trained = {name: adapter for name, adapter in trained_adapters(study, stores, plan).items() if name in first}
    folders = {name: _folder(stores, adapter) for name, adapter in trained.items()}
    shared = [name for name in trained if len(plan.specs[name].persona_ids) > 1]
    personal = [name for name in study.methods if _is_personal(plan, name) and plan.methods[name].adapters[0].name in trained]
    log.phase("register", total=len(shared) + len(personal) + 1, unit="models")
    with timed(stores, study_name, "register"):
        for name, folder in folders.items():
            expose(stores, study_name, name, folder)
        for name in shared:
            stores.tracker.register_adapter(
                study_name, model=name.partition("+")[0], adapter=trained[name], folder=folders[name], base_model=study.model.base
            )
            log.advance(1)
        for method in personal:
            _register_router(study, plan, method, trained, folders, stores, model=method.replace("_", "-"))
            log.advance(1)
        champion = stores.studies.facts(study_name)["champion"]
        uri = _register_router(study, plan, champion, trained, folders, stores, model=None)
        log.advance(1)
    stores.studies.save_fact(study_name, "champion_uri", uri)
    stores.studies.set_status(study_name, "finished")
    stores.tracker.end_study(study_name, status="finished")
    return uri


def _is_personal(plan: WorkPlan, method: str) -> bool:
    """Return whether all of a method's adapters are of one person each."""
    adapters = plan.methods[method].adapters
    return bool(adapters) and all(len(adapter.persona_ids) == 1 for adapter in adapters)


def _register_router(
    study: Study,
    plan: WorkPlan,
    method: str,
    trained: dict[str, TrainedAdapter],
    folders: dict[str, Path],
    stores: Stores,
    *,
    model: str | None,
) -> str:
    """Register what answers as a method does: as the champion when `model` is None, else under the method's own name."""
    routes = [route for route in stores.studies.routes(study.name) if route.method == method and route.seed == 0]
    used = {layer.adapter for route in routes for layer in route.stack.layers} | ({REFERENCE} & trained.keys())
    table: dict[str, Any] = {
        "study": study.name,
        "method": method,
        "model": asdict(study.model),
        "base_revision": stores.studies.facts(study.name)["base_revision"],
        "max_new_tokens": study.evaluation.max_new_tokens,
        "default": KeyedStack((KeyedLayer(trained[REFERENCE].key),) if REFERENCE in trained else ()),
        "personas": {
            r.persona_id: KeyedStack(
                tuple(KeyedLayer(plan.keys[layer.adapter], layer.weight) for layer in r.stack.layers), r.stack.shots, r.stack.described
            )
            for r in routes
        },
        "descriptions": {},
        "exchanges": {},
        "names": {trained[name].key: name for name in sorted(used)},
    }
    stacks = {route.persona_id: route.stack for route in routes}
    for persona in stores.studies.dataset(study.name).personas:
        stack = stacks.get(persona.id, Stack())
        if study.model.persona_in_prompt or stack.described:
            table["descriptions"][persona.id] = persona.description
        if stack.shots:
            table["exchanges"][persona.id] = exchanges(persona)
    weights = {trained[name].key: folders[name] for name in sorted(used)}
    return stores.tracker.register_router(study.name, routes=table, adapter_folders=weights, champion=model is None, model=model)


def _folder(stores: Stores, adapter: TrainedAdapter) -> Path:
    folder = stores.adapters.path(adapter.key)
    assert folder is not None, f"adapter {adapter.name} is recorded as trained but its weights are nowhere"
    return folder
