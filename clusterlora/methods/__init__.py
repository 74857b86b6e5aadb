"""The methods compared, by name, one file each. A method is data: the adapters it needs and the compositions that answer each persona."""

from collections.abc import Iterable

from clusterlora.catalog import Catalog
from clusterlora.method_settings import RetrievalSettings
from clusterlora.methods.baseline import baseline
from clusterlora.methods.cluster import cluster
from clusterlora.methods.cluster_hybrid import cluster_hybrid
from clusterlora.methods.described import baseline_described, unified_described
from clusterlora.methods.few_shot import SHOTS, few_shot
from clusterlora.methods.hybrid import hybrid
from clusterlora.methods.imported_cluster import imported_cluster
from clusterlora.methods.imported_merge import imported_merge
from clusterlora.methods.imported_per_persona import imported_per_persona
from clusterlora.methods.imported_unified import imported_unified
from clusterlora.methods.last_champion import last_champion
from clusterlora.methods.merge import merge
from clusterlora.methods.method import Method
from clusterlora.methods.per_persona import per_persona
from clusterlora.methods.prefix import prefix
from clusterlora.methods.random_cluster import random_cluster
from clusterlora.methods.retrieval import cluster_retrieval, hybrid_retrieval, retrieval, unified_retrieval
from clusterlora.methods.selective_routing import selective_routing
from clusterlora.methods.swapped_cluster import swapped_cluster
from clusterlora.methods.swapped_persona import swapped_persona
from clusterlora.methods.unified import unified
from clusterlora.methods.unified_longer import unified_longer
from clusterlora.methods.unified_wide import unified_wide

METHODS: Catalog[Method] = Catalog(
    "method",
    {
        "baseline": Method(baseline, is_base=True),
        "few_shot": Method(few_shot, shots=SHOTS),
        "unified": Method(unified, recipes=("unified",)),
        "per_persona": Method(per_persona, recipes=("per_persona",)),
        "cluster": Method(cluster, needs_clusters=True, recipes=("unified", "cluster")),
        "hybrid": Method(hybrid, adds_adapters=True, recipes=("unified", "hybrid")),
        "cluster_hybrid": Method(cluster_hybrid, needs_clusters=True, adds_adapters=True, recipes=("unified", "cluster_hybrid")),
        "merge": Method(merge, needs_clusters=True, adds_adapters=True, recipes=("per_persona",)),
        "prefix": Method(prefix, recipes=("prefix",)),
        "selective_routing": Method(selective_routing, recipes=("unified",)),
        "imported_cluster": Method(imported_cluster, needs_import=True, needs_clusters=True, recipes=("unified", "cluster")),
        "random_cluster": Method(
            random_cluster,
            is_control=True,
            contrast_with="cluster",
            phrase="a random partition of the same sizes",
            cause="the people of a cluster are alike",
            needs_clusters=True,
            recipes=("unified", "cluster"),
        ),
        "unified_longer": Method(
            unified_longer,
            is_control=True,
            contrast_with="cluster",
            phrase="unified trained for the same steps",
            needs_clusters=True,
            recipes=("unified", "cluster"),
        ),
        "baseline_described": Method(baseline_described, is_control=True),
        "unified_described": Method(
            unified_described,
            is_control=True,
            contrast_with="cluster",
            phrase="unified with the persona's text in the prompt",
            recipes=("unified",),
        ),
        "swapped_persona": Method(
            swapped_persona,
            is_control=True,
            contrast_with="per_persona",
            phrase="somebody else's personal adapter",
            cause="everybody's adapter has learnt from them",
            recipes=("per_persona",),
        ),
        "last_champion": Method(last_champion, needs_refresh=True),
        "imported_unified": Method(imported_unified, needs_import=True),
        "imported_per_persona": Method(imported_per_persona, needs_import=True, recipes=("per_persona",)),
        "imported_merge": Method(imported_merge, needs_import=True, needs_clusters=True),
        "retrieval": Method(retrieval, retrieves=True),
        "unified_retrieval": Method(unified_retrieval, retrieves=True, recipes=("unified",)),
        "cluster_retrieval": Method(cluster_retrieval, needs_clusters=True, retrieves=True, recipes=("unified", "cluster")),
        "hybrid_retrieval": Method(hybrid_retrieval, adds_adapters=True, retrieves=True, recipes=("unified", "hybrid")),
        "unified_wide": Method(
            unified_wide,
            is_control=True,
            contrast_with="cluster",
            phrase="unified with the parameters of all clusters together",
            needs_clusters=True,
            recipes=("unified",),
        ),
        "swapped_cluster": Method(
            swapped_cluster,
            is_control=True,
            contrast_with="cluster",
            phrase="somebody else's cluster adapter",
            needs_clusters=True,
            recipes=("unified", "cluster"),
        ),
    },
)


def most_shots(names: Iterable[str], retrieval: RetrievalSettings) -> int:
    """Return how many train exchanges a prompt of any of these methods may show."""
    return max((max(retrieval.counts, default=0) if METHODS[name].retrieves else METHODS[name].shots for name in names), default=0)


def controls() -> tuple[str, ...]:
    """Return the names of the controls, in the catalog's order."""
    return tuple(name for name, method in METHODS.items() if method.is_control)
