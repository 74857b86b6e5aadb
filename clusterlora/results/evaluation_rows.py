"""The scored test answers of a study as rows: what every comparison is a pure function of."""

from collections.abc import Set

from clusterlora.data.prompts import items
from clusterlora.planning.study_state import StudyState
from clusterlora.planning.work_plan import WorkPlan, trained_adapters
from clusterlora.ports.stores import Stores
from clusterlora.values import EvaluationRow


def evaluation_rows(state: StudyState, plan: WorkPlan, stores: Stores) -> list[EvaluationRow]:
    """Return one row per (method, persona, test item) with its answer and scores: the input of the comparison."""
    study, personas = state.settings, state.dataset.by_id()
    cluster_by_persona = state.clustering.cluster_by_persona() if state.clustering else {}
    routes = [route for route in stores.studies.routes(study.name) if route.method in study.methods]
    keys = {
        route.composition: plan.composition_key(route.composition)
        for route in routes
        if plan.keys.keys() >= set(route.composition.adapter_names)
    }
    offered = _offered_adapters(plan, trained_adapters(state, plan).keys())
    answers = {
        (a.composition_key, a.persona_id, a.item_id): a
        for a in stores.studies.answers(study.name, sorted(set(keys.values())))
        if a.split == "test"
    }
    return [
        EvaluationRow(
            method=route.method,
            persona_id=route.persona_id,
            cluster=cluster_by_persona[route.persona_id],
            item_id=item.id,
            prompt="\n".join(f"{turn.role}: {turn.text}" for turn in item.messages),
            reference=item.reference,
            text=answer.text,
            scores=dict(answer.scores),
            seed=route.seed,
            adapters=offered.get((route.method, route.seed, route.persona_id), ()),
        )
        for route in routes
        if route.composition in keys
        for item in items(study.model, personas[route.persona_id], "test")
        if (answer := answers.get((keys[route.composition], route.persona_id, item.id))) is not None
    ]


def _offered_adapters(plan: WorkPlan, trained: Set[str]) -> dict[tuple[str, int, str], tuple[str, ...]]:
    """Return, by method, training and person, the trained adapters that the method could answer them with.

    Which of them it chose on val says nothing of who shares an adapter's luck: people who gain alike choose alike.
    """
    offered: dict[tuple[str, int, str], tuple[str, ...]] = {}
    for seed, methods in enumerate(plan.seeds):
        arms = {name: dict(method.arms_by_persona) for name, method in methods.items()}
        for name, method in methods.items():
            for persona_id in arms[name]:
                compositions = (one for other in (name, *method.arms_of) for one in arms[other].get(persona_id, ()))
                names = dict.fromkeys(adapter for one in compositions for adapter in one.adapter_names if adapter in trained)
                offered[name, seed, persona_id] = tuple(names)
    return offered
