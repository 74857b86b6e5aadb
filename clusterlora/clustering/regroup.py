"""New people join the clusters that there are, and it is found who of the others has drifted to another."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int

from clusterlora.clustering import ALGORITHMS, WITHOUT_EMBEDDINGS
from clusterlora.clustering.cluster import plane
from clusterlora.clustering.features import Evidence, Sources, feature_matrix, resampled
from clusterlora.values import Clustering, Dataset, Persona

_LAST_RESPONSES, _LEAST_PIECES = 10, 5
"""Train responses, and pieces of evidence, that the last dialogues of a person have at least; with fewer, chance would tell."""
_DRAWS, _MOST_AT_HOME = 20, 1
"""Bootstrap samples of the last dialogues, and in how many of them the own cluster may be nearest."""


@dataclass(frozen=True, slots=True)
class Regrouped:
    """The clusters with new people in them; `moved` are people nearest to another than their own, as (person, own, nearest).

    `changed` has those of them who are so by their last dialogues, with the ids of these.
    """

    clustering: Clustering
    moved: tuple[tuple[str, int, int], ...]
    changed: Mapping[str, frozenset[str]]


def regroup(
    dataset: Dataset,
    algorithm: str,
    members: tuple[tuple[str, ...], ...],
    sources: Sources,
    *,
    news: Mapping[str, Collection[str]],
    changed_before: Collection[str] = (),
    rng: np.random.Generator,
) -> Regrouped:
    """Return the clusters with everybody new in the nearest one, and who of the others is nearest to another than their own.

    Nearest is the smallest distance to the mean of a cluster's people of before, in the features of the algorithm. A person may be so by
    all train dialogues; or by the last ones alone, as what somebody said before they changed hides the change: another cluster is then
    nearest in at least 19 of 20 bootstrap samples of these, by the means of what everybody said before. The last dialogues are the new
    ones, and as many before them as it takes to have 10 responses, at most half of all. Clusters that no algorithm made, such as imported
    ones, take new people by answers given prompts, and count nobody.

    Args:
        dataset: everybody's dialogues, the oldest first.
        news: ids of new dialogues by person.
        changed_before: people who are known to have changed, and so do not stand for the cluster that they were in while others do.
    """
    personas = tuple(sorted(dataset.personas, key=lambda persona: persona.id))
    if len(members) < 2:
        return Regrouped(Clustering(algorithm, (tuple(p.id for p in personas),)), (), {})
    own = {p: k for k, ids in enumerate(members) for p in ids}
    typical = {p: k for k, ids in enumerate(members) for p in ([p for p in ids if p not in changed_before] or ids)}
    last = {p.id: _last(p, news.get(p.id, ())) for p in personas if p.id in own}
    then, now = _evidence(personas, algorithm if algorithm in ALGORITHMS else WITHOUT_EMBEDDINGS[0], sources, last)
    whole = {p.id: np.concatenate([part[p.id] for part in (then, now) if p.id in part]) for p in personas}
    features = feature_matrix(tuple(whole.values()))
    by_person = dict(zip(whole, _nearest(features, features, [typical.get(p) for p in whole], len(members)).tolist(), strict=True))
    joined = tuple(tuple(p.id for p in personas if own.get(p.id, by_person[p.id]) == k) for k in range(len(members)))
    points = tuple((p, float(x), float(y)) for p, (x, y) in zip(whole, plane(features), strict=True))
    clustering = Clustering(algorithm, joined, map_2d=points)
    if algorithm not in ALGORITHMS:
        return Regrouped(clustering, (), {})
    changed = _changed(then, now, own, typical, len(members), rng)
    nearest: dict[str, int] = {**by_person, **changed}
    moved = tuple((p, k, nearest[p]) for p, k in sorted(own.items()) if p in nearest and nearest[p] != k)
    return Regrouped(clustering, moved, {p: last[p] for p in changed})


def _last(persona: Persona, news: Collection[str]) -> frozenset[str]:
    """Return the ids of a person's last train dialogues; none where they have too few responses to tell anything."""
    train = persona.of_split("train")
    n_responses = {d.id: sum(turn.role == "assistant" for turn in d.turns) for d in train}
    last = {d.id for d in train if d.id in news}
    for dialogue in reversed(train[(len(train) + 1) // 2 :]):
        if sum(n_responses[one] for one in last) >= _LAST_RESPONSES:
            break
        last.add(dialogue.id)
    return frozenset(last) if sum(n_responses[one] for one in last) >= _LAST_RESPONSES else frozenset()


def _evidence(
    personas: tuple[Persona, ...], algorithm: str, sources: Sources, last: Mapping[str, Collection[str]]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return the evidence of each person without the last dialogues, and of these; the latter alone where there are no others."""
    parts: list[tuple[bool, Persona]] = []
    for persona in personas:
        for is_last in (False, True):
            part = tuple(d for d in persona.of_split("train") if (d.id in last.get(persona.id, ())) == is_last)
            if part:
                parts.append((is_last, replace(persona, dialogues=part)))
    evidence = ALGORITHMS[algorithm](tuple(part for _, part in parts), sources)
    then = {part.id: pieces for (is_last, part), pieces in zip(parts, evidence, strict=True) if not is_last}
    return then, {part.id: pieces for (is_last, part), pieces in zip(parts, evidence, strict=True) if is_last}


def _changed(
    then: Mapping[str, np.ndarray],
    now: Mapping[str, np.ndarray],
    own: Mapping[str, int],
    typical: Mapping[str, int],
    k: int,
    rng: np.random.Generator,
) -> dict[str, int]:
    """Return by person the cluster other than their own that is nearest by the last dialogues."""
    known = {p: pieces for p, pieces in then.items() if p in typical}
    told = {p: pieces for p, pieces in now.items() if p in own and len(pieces) >= _LEAST_PIECES}
    labels = [typical[p] for p in known]
    if not told or set(labels) != set(range(k)):
        return {}

    def nearest(latest: Evidence) -> Int[np.ndarray, " persona"]:
        features = feature_matrix((*known.values(), *latest))
        return _nearest(features[len(known) :], features[: len(known)], labels, k)

    found = nearest(tuple(told.values()))
    homes = np.array([own[p] for p in told])
    at_home = np.sum([nearest(resampled(tuple(told.values()), rng)) == homes for _ in range(_DRAWS)], axis=0)
    is_changed = (found != homes) & (at_home <= _MOST_AT_HOME)
    return {p: int(cluster) for p, cluster, changed in zip(told, found, is_changed, strict=True) if changed}


def _nearest(
    points: Float[np.ndarray, "point direction"], of_people: Float[np.ndarray, "persona direction"], own: Sequence[int | None], k: int
) -> Int[np.ndarray, " point"]:
    """Return the cluster whose people's mean is nearest to each point; `own` are the clusters of these people, None of no cluster."""
    means = np.stack([of_people[[one == cluster for one in own]].mean(axis=0) for cluster in range(k)])
    return np.argmin(np.linalg.norm(points[:, None] - means, axis=2), axis=1)
