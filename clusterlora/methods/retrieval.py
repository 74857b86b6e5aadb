"""Train exchanges in the prompt of the base, unified, the clusters' adapters and hybrids: how many, ranked how and whose is chosen on val.

What is shown is a dimension of every composition, so each of these methods is another method's plan with retrievals to choose from.
Retrieval beside adapters: Salemi & Zamani 2024, arXiv 2409.09510; adapters that learn with exchanges in their prompts: Tan et al. 2024,
arXiv 2402.04401.
"""

from dataclasses import replace

from clusterlora.methods.baseline import baseline
from clusterlora.methods.cluster import cluster
from clusterlora.methods.hybrid import hybrid
from clusterlora.methods.method import StudyView
from clusterlora.methods.unified import unified
from clusterlora.values import AdapterComposition, AdapterSpec, MethodPlan, Retrieval, ShotSource

OWN_ONLY: tuple[ShotSource, ...] = ("own",)


def retrieval(view: StudyView) -> MethodPlan:
    """Return the plan that answers everybody with the base and what is retrieved for the question."""
    return _with_retrieval(view, baseline(view), "retrieval")


def unified_retrieval(view: StudyView) -> MethodPlan:
    """Return the plan that answers everybody with the unified adapter and what is retrieved."""
    return _with_retrieval(view, unified(view), "unified_retrieval")


def cluster_retrieval(view: StudyView) -> MethodPlan:
    """Return the plan that answers everybody with their cluster's adapter and what is retrieved."""
    # The study's own plan names adapters by the rung that they were trained for.
    own = None if view.retrieval.trained_shots else view.others.get("cluster")
    return _with_retrieval(view, own or cluster(view), "cluster_retrieval")


def hybrid_retrieval(view: StudyView) -> MethodPlan:
    """Return the plan that answers everybody with unified, as much of their residual as without retrieval, and what is retrieved."""
    return _with_retrieval(view, hybrid(view), "hybrid_retrieval")


def retrievals(view: StudyView) -> tuple[Retrieval, ...]:
    """Return what may be retrieved, the cheapest first; other people's exchanges only where there are clusters."""
    settings = view.retrieval
    sources = settings.sources if len(view.members) > 1 else OWN_ONLY
    shown = [Retrieval(n, ranking, source) for n in sorted(settings.counts) if n for ranking in settings.rankings for source in sources]
    return (*((Retrieval(),) if 0 in settings.counts else ()), *shown)


def _with_retrieval(view: StudyView, plan: MethodPlan, method: str) -> MethodPlan:
    shots = view.retrieval.trained_shots
    plan = _learning_with(plan, shots, view) if shots else plan
    return replace(plan, method=method, retrievals=retrievals(view))


def _learning_with(plan: MethodPlan, shots: int, view: StudyView) -> MethodPlan:
    """Return the plan with adapters of its own, which learn from prompts with exchanges in them."""
    new = {adapter.name: f"{adapter.name}-shown-{shots}" for adapter in plan.adapters}

    def adapter(old: AdapterSpec) -> AdapterSpec:
        return replace(
            old,
            name=new[old.name],
            folder=f"{old.folder}_shown" if old.folder else "",
            init_from=old.init_from and new[old.init_from],
            frozen_adapter=old.frozen_adapter and new[old.frozen_adapter],
            shots=shots,
            ranking=view.retrieval.rankings[0],
        )

    def arm(old: AdapterComposition) -> AdapterComposition:
        return replace(old, adapters=tuple(replace(one, name=new[one.name]) for one in old.adapters))

    arms = tuple((p, tuple(arm(one) for one in compositions)) for p, compositions in plan.arms_by_persona)
    return replace(plan, adapters=tuple(adapter(one) for one in plan.adapters), arms_by_persona=arms)
