"""The methods compared, by name. One file each; a method is data: which adapters it needs and who is answered with what."""

from clusterlora.catalog import Catalog
from clusterlora.methods.baseline import baseline
from clusterlora.methods.cluster import cluster
from clusterlora.methods.cluster_hybrid import cluster_hybrid
from clusterlora.methods.described import baseline_described, unified_described
from clusterlora.methods.few_shot import few_shot
from clusterlora.methods.hybrid import hybrid
from clusterlora.methods.imported_cluster import imported_cluster
from clusterlora.methods.merge import merge
from clusterlora.methods.method import Method
from clusterlora.methods.per_persona import per_persona
from clusterlora.methods.prefix import prefix
from clusterlora.methods.random_cluster import random_cluster
from clusterlora.methods.selective_routing import selective_routing
from clusterlora.methods.unified import unified
from clusterlora.methods.unified_longer import unified_longer

METHODS: Catalog[Method] = Catalog(
    "method",
    {
        "baseline": baseline,
        "few_shot": few_shot,
        "unified": unified,
        "per_persona": per_persona,
        "cluster": cluster,
        "hybrid": hybrid,
        "cluster_hybrid": cluster_hybrid,
        "merge": merge,
        "prefix": prefix,
        "selective_routing": selective_routing,
        "imported_cluster": imported_cluster,
        "random_cluster": random_cluster,
        "unified_longer": unified_longer,
        "baseline_described": baseline_described,
        "unified_described": unified_described,
    },
)
