"""Put what the study made into the model registry, and the champion where servers look for it."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from clusterlora.ports import RunLog, Stores
from clusterlora.settings import Study
from clusterlora.stages.plan import REFERENCE, WorkPlan, work_plan
from clusterlora.stages.train import expose
from clusterlora.values import Route, TrainedAdapter


def register(study_name: str, stores: Stores, log: RunLog) -> str:
    """Return the URI of the champion router.

    Adapters of many personas are registered one by one, those of one person together; the router answers every persona with the
    stack of the method that won the comparison. Registering again adds nothing.
    """
    study = stores.studies.study(study_name)
    plan = work_plan(study, stores)
    trained = {a.name: a for a in stores.studies.adapters(study_name) if a.name in plan.specs}
    shared = [a for a in trained.values() if len(a.spec.persona_ids) > 1]
    log.phase("register", total=len(shared) + 1, unit="models")
    for adapter in trained.values():
        expose(stores, study_name, adapter.name, _folder(stores, adapter))
    for adapter in shared:
        folder = _folder(stores, adapter)
        stores.tracker.register_adapter(
            study_name, model=adapter.name.partition("+")[0], adapter=adapter, folder=folder, base_model=study.model.base
        )
        log.advance(1)
    uri = _register_router(study, plan, trained, stores)
    stores.studies.save_fact(study_name, "champion_uri", uri)
    stores.studies.set_status(study_name, "finished")
    stores.tracker.end_study(study_name, status="FINISHED")
    log.advance(1)
    return uri


def _register_router(study: Study, plan: WorkPlan, trained: dict[str, TrainedAdapter], stores: Stores) -> str:
    champion = stores.studies.facts(study.name)["champion"]
    routes = [route for route in stores.studies.routes(study.name) if route.method == champion]
    used = {layer.adapter for route in routes for layer in route.stack} | ({REFERENCE} & trained.keys())
    folders = {trained[name].key: _folder(stores, trained[name]) for name in sorted(used)}
    description: dict[str, Any] = {
        "study": study.name,
        "method": champion,
        "model": asdict(study.model),
        "base_revision": stores.studies.facts(study.name)["base_revision"],
        "max_new_tokens": study.evaluation.max_new_tokens,
        "default": [{"key": trained[REFERENCE].key, "weight": 1.0}] if REFERENCE in trained else [],
        "personas": {route.persona_id: _layers(route, plan) for route in routes},
        "descriptions": {p.id: p.description for p in stores.studies.dataset(study.name).personas} if study.model.persona_in_prompt else {},
    }
    return stores.tracker.register_router(study.name, routes=description, adapter_folders=folders, champion=True)


def _layers(route: Route, plan: WorkPlan) -> list[dict[str, Any]]:
    return [{"key": plan.keys[layer.adapter], "weight": layer.weight} for layer in route.stack]


def _folder(stores: Stores, adapter: TrainedAdapter) -> Path:
    folder = stores.adapters.path(adapter.key)
    assert folder is not None, f"adapter {adapter.name} is recorded as trained but its weights are nowhere"
    return folder
