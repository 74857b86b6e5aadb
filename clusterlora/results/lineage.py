"""What a study's champion was made of: data set, split, clustering, adapters, champion, each with what it came from."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from clusterlora.comparison.roles import is_control
from clusterlora.planning.study_state import StudyState
from clusterlora.planning.work_plan import WorkPlan, trained_adapters
from clusterlora.values import digest


@dataclass(frozen=True, slots=True, kw_only=True)
class LineageNode:
    """A thing that a study made or used, under a key that is the same wherever it is used; `made_of` are keys of others."""

    kind: str
    key: str
    name: str
    made_of: tuple[str, ...]
    facts: Mapping[str, str]


def lineage(state: StudyState, plan: WorkPlan | None, champion_uri: str | None) -> tuple[LineageNode, ...]:
    """Return what there is so far, what others are made of first.

    Args:
        plan: None before the people are clustered.
        champion_uri: the registered model that answers; None before there is one.
    """
    people = state.dataset.personas
    unsplit = digest([replace(p, dialogues=tuple(replace(d, split=None) for d in p.dialogues)) for p in people])
    data = LineageNode(
        kind="data set",
        key=f"clusterlora://dataset/{unsplit}",
        name=state.settings.data.path or state.settings.data.source,
        made_of=(),
        facts={"people": str(len(people)), "dialogues": str(state.dataset.n_dialogues)},
    )
    split = LineageNode(
        kind="split",
        key=f"clusterlora://split/{state.dataset.digest}",
        name=f"split of {state.name}",
        made_of=(data.key,),
        facts={name: str(sum(len(p.of_split(name)) for p in people)) for name in ("train", "val", "test")},
    )
    nodes = [data, split]
    if state.clustering is None or plan is None:
        return tuple(nodes)
    clustering = LineageNode(
        kind="clustering",
        key=f"clusterlora://clustering/{digest([state.dataset.digest, state.clustering.members])}",
        name=f"clusters of {state.name}",
        made_of=(split.key,),
        facts={"algorithm": state.clustering.algorithm, "sizes": ", ".join(map(str, state.clustering.sizes))},
    )
    nodes.append(clustering)
    base = f"clusterlora://base/{state.prepared_with.base_revision}"
    trained = trained_adapters(state, plan)
    of_method: dict[str, str] = {}
    for method, method_plan in plan.methods.items():
        # A method may have no adapters of its own and choose among those of others.
        own = {spec.name for spec in method_plan.adapters}
        names = own | {name for _, arms in method_plan.arms_by_persona for arm in arms for name in arm.adapter_names}
        keys = sorted({trained[name].key for name in names if name in trained})
        if not keys or is_control(method):
            continue
        clustered = any(plan.specs[name].cluster is not None for name in names if name in trained)
        of_method[method] = f"clusterlora://adapters/{digest(keys)}"
        nodes.append(
            LineageNode(
                kind="adapters",
                key=of_method[method],
                name=f"{method} of {state.name}",
                made_of=(base, split.key, *((clustering.key,) if clustered else ())),
                facts={"adapters": str(len(keys)), "keys": " ".join(keys)[:500]},
            )
        )
    champion = state.outcome.champion if state.outcome else None
    if champion_uri is not None and champion is not None:
        made_of = (of_method[champion],) if champion in of_method else (base,)
        name = champion_uri.removeprefix("models:/")
        nodes.append(
            LineageNode(kind="champion", key=f"clusterlora://champion/{name}", name=name, made_of=made_of, facts={"method": champion})
        )
    return tuple(nodes)
