"""The champion that a refresh challenges, as it stands: its adapters, and the compositions that it chose."""

from collections.abc import Mapping
from dataclasses import replace

from clusterlora.errors import BadSettings
from clusterlora.metadata import ChampionAdapter
from clusterlora.methods.method import StudyView
from clusterlora.values import AdapterComposition, AdapterSpec, MethodPlan, WeightedAdapter

_FOLDER = "last"


def is_kept_from_before(spec: AdapterSpec) -> bool:
    """Return whether a refresh has an adapter only because others start from it or answer with it, or the champion challenged does."""
    return spec.folder == _FOLDER


def kept_name(old: ChampionAdapter) -> str:
    """Return the name, in a refresh, of an adapter of the study that it goes on from.

    What that study has kept itself goes by its key: its name would grow with every refresh.
    """
    return f"kept-{old.key}" if is_kept_from_before(old.spec) else f"last-{old.label}"


def kept_adapter(old: ChampionAdapter) -> AdapterSpec:
    """Return the adapter as it was trained, which is not trained again."""
    was = old.spec
    return AdapterSpec(
        name=kept_name(old),
        persona_ids=was.persona_ids,
        recipe=was.recipe,
        scope=was.scope,
        cluster=was.cluster,
        folder=_FOLDER,
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
    routes = {p: _kept(composition, adapters) for p, composition in start.routes}
    arms = tuple((p, (routes.get(p, _kept(start.default, adapters)),)) for p in view.persona_ids)
    used = {name for _, (composition,) in arms for name in composition.adapter_names}
    return MethodPlan("last_champion", tuple(spec for spec in adapters.values() if spec.name in used), arms)


def _kept(composition: AdapterComposition, kept_by_label: Mapping[str, AdapterSpec]) -> AdapterComposition:
    return replace(composition, adapters=tuple(WeightedAdapter(kept_by_label[one.name].name, one.weight) for one in composition.adapters))
