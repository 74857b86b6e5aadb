"""How well people and clusters are told apart by what they are answered with, beyond what the prompt gives away.

Answers are looked at as the embedding of the headline metric sees them. What a prompt gives away is what a ridge regression
predicts from its embedding; the rest is what the prompt leaves open. Everything is fitted on train and told of val.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from clusterlora.errors import BadData
from clusterlora.evaluation.discriminant import discriminant
from clusterlora.evaluation.statistics import bootstrap_interval, paired_bootstrap
from clusterlora.ports import Embedder, RunLog
from clusterlora.signal.exchanges import MaskedExchange, exchanges
from clusterlora.values import Clustering, Persona, Split

MOST_PERSONAS, MOST_TRAIN, MOST_VAL = 40, 16, 6
"""People, and dialogues of each, that are looked at: more cost time and change little."""
_BATCH = 512
_FOLDS = 5
_RIDGES = tuple(10.0**power for power in range(-2, 4))
_RANDOM_PARTITIONS = 5
_DRAWS = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Recognition:
    """How often the right one of `n_classes` is recognised (0..1, personas weigh the same), its 95 % interval, and chance."""

    accuracy: float
    low: float
    high: float
    chance: float
    n_classes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """What the data carries. Shares are of what prompts leave open in answers to val prompts, and can be negative: noise.

    `cluster_explains` is the share that is gone once the cluster is known, `random_explains` the same for random groups of the same
    sizes, `persona_explains` for cluster and persona. Distances are mean cosine distances of masked answers. `within_dialogues` says that
    people had too few dialogues, and later answers of the same dialogues were held out instead.
    """

    n_personas: int
    n_exchanges: int
    persona_from_prompts: Recognition
    persona_beyond_prompts: Recognition
    cluster_beyond_prompts: Recognition
    persona_explains: float
    cluster_explains: float
    random_explains: float
    distance_within: float
    distance_between: float
    within_dialogues: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class _Side:
    """One split: whose each exchange is, in which dialogue, and the embeddings of its prompt and masked answer."""

    persona: Int[np.ndarray, " exchange"]
    dialogue: Int[np.ndarray, " exchange"]
    prompts: Float[np.ndarray, "exchange dim"]
    answers: Float[np.ndarray, "exchange dim"]


def measure(personas: Sequence[Persona], clustering: Clustering, embedder: Embedder, log: RunLog) -> Signal:
    """Return the signal in the train and val dialogues of these personas, grouped as the clustering says. Test is not read.

    Of more than `MOST_PERSONAS`, evenly spaced ones are taken, cluster after cluster.

    Raises:
        BadData: fewer than two personas, or one without different train or val dialogues.
    """
    if len(personas) < 2:
        raise BadData(f"telling people apart needs at least 2 and found {len(personas)}; give more personas")
    personas = _some(personas, clustering)
    most: dict[Split, int] = {"train": MOST_TRAIN, "val": MOST_VAL}
    found = {split: [exchanges(p, split, most=n) for p in personas] for split, n in most.items()}
    for split, by_persona in found.items():
        if without := [p.id for p, own in zip(personas, by_persona, strict=True) if not own]:
            raise BadData(f"persona {without[0]!r} has no {split} dialogues; raise data.{split} or leave the persona out")
    log.phase("embed for signal", total=2 * sum(len(own) for by_persona in found.values() for own in by_persona), unit="texts")
    train, val = (_embedded(found[split], embedder, log) for split in ("train", "val"))
    open_train, open_val = _left_open(train, val)
    cluster_by_id = clustering.cluster_by_persona()
    clusters, cluster = np.unique([cluster_by_id[p.id] for p in personas], return_inverse=True)
    rng = np.random.default_rng(0)
    random = [rng.permutation(cluster) for _ in range(_RANDOM_PARTITIONS)]

    def told_apart(kind: str, group: Int[np.ndarray, " persona"]) -> Float[np.ndarray, " exchange"]:
        seen = (train.prompts, val.prompts) if kind == "prompts" else (open_train, open_val)
        return _hits(seen[0], group[train.persona], seen[1], group[val.persona])

    def explained(group: Int[np.ndarray, " persona"], *, personal: bool) -> float:
        expected = _expected(open_train, train.persona, group, personal=personal)[val.persona]
        return float(1 - np.sum((open_val - expected) ** 2) / np.sum(open_val**2))

    within, between = _distances(np.concatenate([train.answers, val.answers]), np.concatenate([train.persona, val.persona]))
    everyone, alone = np.arange(len(personas)), 1 / len(personas)
    by_luck = float(np.mean([_mean(told_apart("open", groups), val.persona) for groups in random]))
    return Signal(
        n_personas=len(personas),
        n_exchanges=len(train.persona) + len(val.persona),
        persona_from_prompts=_recognition(told_apart("prompts", everyone), val.persona, alone, len(personas)),
        persona_beyond_prompts=_recognition(told_apart("open", everyone), val.persona, alone, len(personas)),
        cluster_beyond_prompts=_recognition(told_apart("open", cluster), val.persona, by_luck, len(clusters)),
        persona_explains=explained(cluster, personal=True),
        cluster_explains=explained(cluster, personal=False),
        random_explains=float(np.mean([explained(groups, personal=False) for groups in random])),
        distance_within=within,
        distance_between=between,
    )


def _some(personas: Sequence[Persona], clustering: Clustering) -> list[Persona]:
    by_id = {persona.id: persona for persona in personas}
    in_order = [by_id[persona_id] for members in clustering.members for persona_id in members]
    n = len(in_order)
    return in_order if n <= MOST_PERSONAS else [in_order[round(i * (n - 1) / (MOST_PERSONAS - 1))] for i in range(MOST_PERSONAS)]


def _embedded(by_persona: Sequence[Sequence[MaskedExchange]], embedder: Embedder, log: RunLog) -> _Side:
    flat = [exchange for own in by_persona for exchange in own]
    prompts = _encoded([exchange.prompt for exchange in flat], embedder, log)
    answers = _encoded([exchange.answer for exchange in flat], embedder, log)
    numbers = [(number, exchange.dialogue) for number, own in enumerate(by_persona) for exchange in own]
    _, dialogue = np.unique(numbers, axis=0, return_inverse=True)
    return _Side(np.array([persona for persona, _ in numbers]), dialogue.ravel(), prompts, answers)


def _encoded(texts: Sequence[str], embedder: Embedder, log: RunLog) -> Float[np.ndarray, "text dim"]:
    batches = []
    for start in range(0, len(texts), _BATCH):
        batches.append(embedder.encode(texts[start : start + _BATCH]).astype(np.float64))
        log.advance(len(batches[-1]))
    return np.concatenate(batches)


def _left_open(train: _Side, val: _Side) -> tuple[Float[np.ndarray, "train dim"], Float[np.ndarray, "val dim"]]:
    """Return the answers of train and of val less what a ridge regression on the prompt says, each without having seen it.

    Train is predicted dialogue-wise from other folds; a persona's other dialogues are among them, so what a prompt tells by whose it is
    counts as given away. The penalty is the one that predicts train best.
    """
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import GroupKFold, cross_val_predict

    folds = GroupKFold(min(_FOLDS, len(np.unique(train.dialogue))))
    tried = [(cross_val_predict(Ridge(alpha), train.prompts, train.answers, groups=train.dialogue, cv=folds), alpha) for alpha in _RIDGES]
    predicted, alpha = min(tried, key=lambda one: float(np.sum((train.answers - one[0]) ** 2)))
    return train.answers - predicted, val.answers - Ridge(alpha).fit(train.prompts, train.answers).predict(val.prompts)


def _hits(
    train: Float[np.ndarray, "a dim"], train_class: Int[np.ndarray, " a"], val: Float[np.ndarray, "b dim"], val_class: Int[np.ndarray, " b"]
) -> Float[np.ndarray, " b"]:
    """Return 1 where the class of a val exchange is recognised, else 0; classes are numbered from 0 and none is empty in train."""
    fitted = discriminant([train[train_class == number] for number in range(train_class.max() + 1)])
    return (fitted.scores(val).argmax(axis=1) == val_class).astype(np.float64)


def _mean(hits: Float[np.ndarray, " exchange"], persona: Int[np.ndarray, " exchange"]) -> float:
    return float(np.mean(np.bincount(persona, weights=hits) / np.bincount(persona)))


def _recognition(hits: Float[np.ndarray, " exchange"], persona: Int[np.ndarray, " exchange"], chance: float, n_classes: int) -> Recognition:
    means = np.bincount(persona, weights=hits) / np.bincount(persona)
    draws = paired_bootstrap(hits[:, None], persona, draws=_DRAWS, rng=np.random.default_rng(0))[:, 0]
    interval = bootstrap_interval(draws, means)
    return Recognition(
        accuracy=float(means.mean()), low=max(0.0, interval.low), high=min(1.0, interval.high), chance=chance, n_classes=n_classes
    )


def _expected(
    left_open: Float[np.ndarray, "exchange dim"],
    persona: Int[np.ndarray, " exchange"],
    group: Int[np.ndarray, " persona"],
    *,
    personal: bool,
) -> Float[np.ndarray, "persona dim"]:
    """Return what is expected of each persona: the mean of its group and, if `personal`, as much of its own as is not noise.

    A persona keeps t^2 / (t^2 + s^2 / n) of its distance from the group, with the variances of a one-way layout summed over dimensions.
    """
    n = np.bincount(persona)
    sums = np.zeros((len(n), left_open.shape[1]))
    np.add.at(sums, persona, left_open)
    means = sums / n[:, None]
    of_group = np.stack([means[group == number].mean(axis=0) for number in range(group.max() + 1)])[group]
    if not personal:
        return of_group
    noise = np.sum((left_open - means[persona]) ** 2) / max(1, len(left_open) - len(n)) / n
    # The deviations of P personas from k group means have P - k degrees of freedom.
    spread = np.sum((means - of_group) ** 2) / max(1, len(n) - group.max() - 1)
    between = max(0.0, float(spread - noise.mean()))
    kept = between / (between + noise) if between else np.zeros(len(n))
    return of_group + kept[:, None] * (means - of_group)


def _distances(answers: Float[np.ndarray, "exchange dim"], persona: Int[np.ndarray, " exchange"]) -> tuple[float, float]:
    """Return the mean cosine distances between answers of one persona and between answers of two; embeddings have unit length.

    All pairs count: the sum of cosines of n answers with each other is |their sum|^2, n of which are with themselves.
    """
    n = np.bincount(persona)
    sums = np.zeros((len(n), answers.shape[1]))
    np.add.at(sums, persona, answers)
    alike = np.sum(sums**2, axis=1)
    pairs = n * (n - 1)
    total = np.sum(sums.sum(axis=0) ** 2)
    within = float(1 - (alike - n).sum() / pairs.sum()) if pairs.any() else 0.0
    return within, float(1 - (total - alike.sum()) / (n.sum() ** 2 - np.sum(n**2)))
