"""One round of refinement: personas move to the cluster whose adapter predicts their val answers best, and keep their sizes."""

from dataclasses import replace

import numpy as np

from clusterlora.clustering.reassign import reassign
from clusterlora.metadata import Refinement
from clusterlora.planning.study_state import read_state
from clusterlora.planning.training_groups import refinement_pending
from clusterlora.planning.work_plan import cluster_adapters, work_plan
from clusterlora.ports.run_log import RunLog
from clusterlora.ports.stores import Stores
from clusterlora.progress.timing import timed
from clusterlora.settings import Study
from clusterlora.stages.evaluate import val_losses
from clusterlora.values import AdapterComposition, WeightedAdapter


def refine(study_name: str, stores: Stores, log: RunLog) -> bool:
    """Return whether a round was due; the clustering it leads to is then saved, and what changed is to be trained again.

    A round in which nobody moves is the last one. The gate's verdict stays as it was reached.
    """
    state = read_state(study_name, stores)
    if not refinement_pending(state):
        return False
    study, clustering, done = state.settings, state.clustering, state.refinement.rounds_done
    assert clustering is not None, "refinement is due before there is a clustering"
    with timed(stores, study_name, "refine", str(done + 1)):
        plan = work_plan(state)
        compositions = [AdapterComposition((WeightedAdapter(name),)) for name in cluster_adapters(plan)]
        cluster_by_persona = clustering.cluster_by_persona()
        losses = val_losses(state, stores, plan, [(p, composition) for p in cluster_by_persona for composition in compositions], log)
        before = np.array(list(cluster_by_persona.values()))
        after = reassign(
            [np.stack([losses[p, composition] for composition in compositions], axis=1) for p in cluster_by_persona],
            before,
            _least(study, before),
        )
    n_moved = int(np.sum(before != after))
    members = tuple(
        tuple(sorted(p for p, label in zip(cluster_by_persona, after.tolist(), strict=True) if label == cluster))
        for cluster in range(len(clustering.members))
    )
    quality = (*clustering.quality, (f"moved_in_round_{done + 1}", float(n_moved)))
    stores.studies.save_clustering(study_name, replace(clustering, members=members, quality=quality))
    stores.studies.save_metadata(study_name, Refinement(done + 1 if n_moved else study.clustering.refinement_rounds))
    log.note(
        f"refinement round {done + 1}: {n_moved} of {len(before)} personas moved; clusters of {', '.join(map(str, map(len, members)))}"
    )
    return True


def _least(study: Study, labels: np.ndarray) -> list[int]:
    sizes = np.bincount(labels)
    if study.clustering.sizes is not None:
        return sizes.tolist()
    return np.minimum(sizes, study.clustering.min_size).tolist()
