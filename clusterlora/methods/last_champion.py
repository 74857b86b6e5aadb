"""The champion that a refresh challenges, as it stands: its adapters, and the compositions that it chose."""

from clusterlora.errors import BadSettings
from clusterlora.metadata import ChampionAdapter
from clusterlora.methods.method import StudyView
from clusterlora.values import AdapterComposition, AdapterSpec, MethodPlan, WeightedAdapter


def kept_name(label: str) -> str:
    """Return the name, in a refresh, of an adapter of the study that it goes on from."""
    return f"last-{label}"


def kept_adapter(old: ChampionAdapter) -> AdapterSpec:
    """Return the adapter as it was trained, which is not trained again."""
    was = old.spec
    return AdapterSpec(
        name=kept_name(old.label),
        persona_ids=was.persona_ids,
        recipe=was.recipe,
        scope=was.scope,
        cluster=was.cluster,
        folder="last",
        persona_in_prompt=was.persona_in_prompt,
        shots=was.shots,
        ranking=was.ranking,
        kept=old.key,
    )


def last_champion(view: StudyView) -> MethodPlan:
    """Return the plan that answers everybody as the champion does, and people whom it does not know as it answers strangers.

    Raises:
        BadSettings: the study goes on from none.
    """
    start = view.start
    if start is None:
        raise BadSettings(
            "method last_champion is the champion that a refresh challenges, and this study is none; run: clusterlora study refresh NAME"
        )
    adapters = {one.label: kept_adapter(one) for one in start.adapters}
    routes = {p: _kept(composition) for p, composition in start.routes}
    arms = tuple((p, (routes.get(p, _kept(start.default)),)) for p in view.persona_ids)
    used = {name for _, (composition,) in arms for name in composition.adapter_names}
    return MethodPlan("last_champion", tuple(spec for spec in adapters.values() if spec.name in used), arms)


def _kept(composition: AdapterComposition) -> AdapterComposition:
    adapters = tuple(WeightedAdapter(kept_name(one.name), one.weight) for one in composition.adapters)
    return AdapterComposition(adapters, composition.shots, composition.persona_in_prompt, composition.ranking, composition.shots_from)
