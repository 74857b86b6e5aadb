"""Who is answered with what by a method of an evaluated study, or by one adapter, as the table that a registered model is made of."""

from dataclasses import asdict
from typing import Any

from clusterlora.adapters.held import HeldAdapters
from clusterlora.data.labels import label_set
from clusterlora.data.retrieval import exchanges
from clusterlora.errors import BadData
from clusterlora.planning.ladder import REFERENCE
from clusterlora.planning.study_state import StudyState
from clusterlora.planning.work_plan import WorkPlan, trained_adapters
from clusterlora.ports.stores import Stores
from clusterlora.stores.routing_table import KeyedAdapter, KeyedComposition
from clusterlora.values import AdapterComposition, TrainedAdapter


def routing_table(state: StudyState, plan: WorkPlan, method: str, stores: Stores) -> dict[str, Any]:
    """Return a RoutingTable's fields: the method's compositions as chosen on val with the study's own seed, and unified for everybody else.

    Raises:
        BadData: an adapter that answers somebody is not trained, or was forgotten since.
    """
    study, trained = state.settings, trained_adapters(state, plan)
    routes = [route for route in stores.studies.routes(study.name) if route.method == method and route.seed == 0]
    used = {name for route in routes for name in route.composition.adapter_names} | ({REFERENCE} & trained.keys())
    if lost := sorted(used - trained.keys()):
        raise BadData(f"study {study.name} has lost {', '.join(lost)}; train again what is lost: clusterlora study run --name {study.name}")
    table: dict[str, Any] = {
        **_of_study(state),
        "method": method,
        "default": KeyedComposition((KeyedAdapter(trained[REFERENCE].key),) if REFERENCE in trained else ()),
        "personas": {
            route.persona_id: KeyedComposition(
                tuple(KeyedAdapter(plan.keys[adapter.name], adapter.weight) for adapter in route.composition.adapters),
                route.composition.shots,
                route.composition.persona_in_prompt,
                route.composition.ranking,
                route.composition.shots_from,
            )
            for route in routes
        },
        "descriptions": {},
        "exchanges": {},
        "mates": {},
        "names": {trained[name].key: name for name in sorted(used)},
        "weights_sha256": {trained[name].key: _digest(trained[name], stores) for name in sorted(used)},
    }
    compositions = {route.persona_id: route.composition for route in routes}
    clusters = {p: ids for ids in (state.clustering.members if state.clustering else ()) for p in ids}
    shown: set[str] = set()
    for persona in state.dataset.personas:
        composition = compositions.get(persona.id, AdapterComposition())
        if study.model.persona_in_prompt or composition.persona_in_prompt:
            table["descriptions"][persona.id] = persona.description
        if composition.shots and composition.shots_from == "cluster":
            table["mates"][persona.id] = clusters[persona.id]
        if composition.shots:
            shown.update(table["mates"].get(persona.id, (persona.id,)))
    table["exchanges"] = {persona.id: exchanges(persona) for persona in state.dataset.personas if persona.id in shown}
    return table


def adapter_table(state: StudyState, model: str, adapter: TrainedAdapter, stores: Stores) -> dict[str, Any]:
    """Return a RoutingTable's fields: everybody is answered with this adapter alone, and with the study's prompt."""
    people = state.dataset.personas if state.settings.model.persona_in_prompt else ()
    return {
        **_of_study(state),
        "method": model,
        "default": KeyedComposition((KeyedAdapter(adapter.key),)),
        "descriptions": {persona.id: persona.description for persona in people},
        "names": {adapter.key: adapter.name},
        "weights_sha256": {adapter.key: _digest(adapter, stores)},
    }


def _digest(adapter: TrainedAdapter, stores: Stores) -> str:
    """Return the digest of an adapter's weights; of those here where it was recorded before digests were."""
    return adapter.weights_sha256 or HeldAdapters.of_stores([adapter.key], stores).sha256(adapter.key)


def _of_study(state: StudyState) -> dict[str, Any]:
    study = state.settings
    return {
        "study": study.name,
        "model": asdict(study.model),
        "base_revision": state.prepared_with.base_revision,
        "max_new_tokens": study.evaluation.max_new_tokens,
        "labels": label_set(study.data, state.dataset.personas),
    }
