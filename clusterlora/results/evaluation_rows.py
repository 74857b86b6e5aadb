"""The scored test answers of a study as rows: what every comparison is a pure function of."""

from clusterlora.data.prompts import items
from clusterlora.planning.study_state import StudyState
from clusterlora.planning.work_plan import WorkPlan
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
    # Whom a method answers with what it chose on val is no group: people who gain alike choose alike.
    choosers = {name for methods in plan.seeds for name, own in methods.items() if any(len(arms) > 1 for _, arms in own.arms_by_persona)}
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
            adapters="" if route.method in choosers else " + ".join(route.composition.adapter_names),
        )
        for route in routes
        if route.composition in keys
        for item in items(study.model, personas[route.persona_id], "test")
        if (answer := answers.get((keys[route.composition], route.persona_id, item.id))) is not None
    ]
