"""Group the personas of a prepared study, once."""

from clusterlora.clustering.cluster import cluster_personas
from clusterlora.ports import RunLog, Stores
from clusterlora.settings import Study
from clusterlora.stages.loaded import embedder
from clusterlora.stages.report import write_map
from clusterlora.stages.timing import timed
from clusterlora.values import Clustering


def cluster(study: Study, stores: Stores, log: RunLog) -> Clustering:
    """Return the study's clustering, made from train dialogues only; an existing one is kept. Its map is in `results/figures`."""
    existing = stores.studies.clustering(study.name)
    if existing is not None:
        return existing
    log.phase("cluster", total=1, unit="clustering")
    with timed(stores, study.name, "cluster"):
        clustering = cluster_personas(stores.studies.dataset(study.name), study.clustering, embedder(study.model))
        stores.studies.save_clustering(study.name, clustering)
        write_map(study.name, stores, clustering)
    quality = ", ".join(f"{name} {value:.3f}" for name, value in clustering.quality)
    log.note(f"clusters of {', '.join(map(str, clustering.sizes))} personas by {clustering.algorithm}; {quality}")
    log.advance(1)
    return clustering
