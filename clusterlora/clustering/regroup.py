"""New people join the clusters that there are, and it is counted who of the others has drifted to another."""

import numpy as np

from clusterlora.clustering import ALGORITHMS, WITHOUT_EMBEDDINGS
from clusterlora.clustering.cluster import plane
from clusterlora.clustering.features import Sources, feature_matrix
from clusterlora.values import Clustering, Dataset

Moved = tuple[tuple[str, int, int], ...]
"""People nearest to another cluster than their own, as (person, own, nearest)."""


def regroup(dataset: Dataset, algorithm: str, members: tuple[tuple[str, ...], ...], sources: Sources) -> tuple[Clustering, Moved]:
    """Return the clusters with everybody new in the nearest one, and who of the others is nearest to another than their own.

    Nearest is the smallest distance to the mean of a cluster's people of before, in the features of the algorithm, from all train
    dialogues. Clusters that no algorithm made, such as imported ones, take new people by answers given prompts, and count nobody.
    """
    personas = tuple(sorted(dataset.personas, key=lambda persona: persona.id))
    if len(members) < 2:
        return Clustering(algorithm, (tuple(p.id for p in personas),)), ()
    features = feature_matrix(ALGORITHMS[algorithm if algorithm in ALGORITHMS else WITHOUT_EMBEDDINGS[0]](personas, sources))
    own = {p: k for k, ids in enumerate(members) for p in ids}
    means = np.stack([features[[own.get(p.id) == k for p in personas]].mean(axis=0) for k in range(len(members))])
    nearest = np.argmin(np.linalg.norm(features[:, None] - means, axis=2), axis=1).tolist()
    by_person = {p.id: k for p, k in zip(personas, nearest, strict=True)}
    moved = tuple((p, own[p], k) for p, k in by_person.items() if p in own and own[p] != k) if algorithm in ALGORITHMS else ()
    joined = tuple(tuple(p.id for p in personas if own.get(p.id, by_person[p.id]) == k) for k in range(len(members)))
    points = tuple((p.id, float(x), float(y)) for p, (x, y) in zip(personas, plane(features), strict=True))
    return Clustering(algorithm, joined, map_2d=points), moved
