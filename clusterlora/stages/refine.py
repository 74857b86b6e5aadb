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
from clusterlora.stages.evaluate import reference_losses
from clusterlora.stages.val_dialogues import by_dialogue
from clusterlora.values import AdapterComposition, WeightedAdapter


def refine_clusters(study_name: str, stores: Stores, log: RunLog) -> bool:
    """Return whether a round was due; if so, its clustering is saved, and the adapters of changed clusters need training again.

    A round in which nobody moves is the last one. The gate's verdict does not change.
    """
    state = read_state(study_name, stores)
    if not refinement_pending(state):
        return False
    study, clustering, round_number = state.settings, state.clustering, state.refinement.rounds_done + 1
    assert clustering is not None, f"refinement of study {study_name} is due before it has a clustering"
    with timed(stores, study_name, "refine", str(round_number)):
        plan = work_plan(state)
        compositions = [AdapterComposition((WeightedAdapter(name),)) for name in cluster_adapters(plan)]
        cluster_by_persona = clustering.cluster_by_persona()
        pairs = [(p, composition) for p in cluster_by_persona for composition in compositions]
        losses = by_dialogue(state, reference_losses(state, stores, plan, pairs, "val", log))
        before = np.array(list(cluster_by_persona.values()))
        after = reassign(
            [np.stack([losses[p, composition] for composition in compositions], axis=1) for p in cluster_by_persona],
            before,
            _min_sizes(study, before),
        )
    n_moved = int(np.sum(before != after))
    members = tuple(
        tuple(sorted(p for p, label in zip(cluster_by_persona, after.tolist(), strict=True) if label == cluster))
        for cluster in range(len(clustering.members))
    )
    quality = (*clustering.quality, (f"moved_in_round_{round_number}", float(n_moved)))
    stores.studies.save_clustering(study_name, replace(clustering, members=members, quality=quality))
    stores.studies.save_metadata(study_name, Refinement(round_number if n_moved else study.clustering.refinement_rounds))
    log.note(
        f"refinement round {round_number}: {n_moved} of {len(before)} personas moved; clusters of {', '.join(map(str, map(len, members)))}"
    )
    return True


def _min_sizes(study: Study, labels: np.ndarray) -> list[int]:
    """Return the least number of personas that each cluster must keep."""
    sizes = np.bincount(labels)
    if study.clustering.sizes is not None:
        return sizes.tolist()
    return np.minimum(sizes, study.clustering.min_size).tolist()
