"""How well answers identify personas and clusters, beyond what the prompt predicts.

Answers are represented by the embedding of the headline metric. A ridge regression on the prompt's embedding predicts the answer's; the
residual is the part that the prompt leaves open. Everything is fitted on train and evaluated on val.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from clusterlora.errors import BadData
from clusterlora.evaluation.discriminant import discriminant
from clusterlora.evaluation.statistics import Interval, bootstrap_interval, paired_bootstrap
from clusterlora.persona_signal.masked_exchanges import MaskedExchange, masked_exchanges
from clusterlora.ports.embedder import Embedder
from clusterlora.ports.run_log import RunLog
from clusterlora.values import Clustering, Persona, Split

MOST_PERSONAS, MOST_TRAIN, MOST_VAL = 40, 16, 6
"""Limits on personas, and on train and val dialogues of each; more take time and change the result little."""
_BATCH = 512
_FOLDS = 5
_RIDGES = tuple(10.0**power for power in range(-2, 4))
_RANDOM_PARTITIONS = 5
_DRAWS = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Recognition:
    """Accuracy of classifying an answer into `n_classes` (0..1, mean over personas), with its 95 % interval and the accuracy of chance."""

    accuracy: float
    low: float
    high: float
    chance: float
    n_classes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PersonaSignal:
    """The persona signal of a data set. Explained shares are of the residual variance of val answers; noise can make them negative.

    `cluster_explains` is the share explained by the cluster, `random_explains` by random groups of the same sizes, `persona_explains` by
    cluster and persona. Distances are mean cosine distances of masked answers. `within_dialogues`: personas have too few dialogues, so
    later answers of the same dialogues were held out instead. `n_population` is how many personas there are, of whom `n_personas` were
    measured; 0 where an earlier version did not record it. `labelled`: answers are labels, and not masked. `_low` and
    `_high` are ends of 95 % intervals over people; None where an earlier version did not record them.
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
    n_population: int = 0
    labelled: bool = False
    persona_explains_low: float | None = None
    persona_explains_high: float | None = None
    cluster_explains_low: float | None = None

    @property
    def has_clusters(self) -> bool:
        """Whether there is more than one cluster to recognise."""
        return self.cluster_beyond_prompts.n_classes > 1

    @property
    def has_intervals(self) -> bool:
        """Whether the intervals that a signal of labels is judged by are known."""
        return not self.labelled or None not in (self.persona_explains_low, self.persona_explains_high, self.cluster_explains_low)


@dataclass(frozen=True, slots=True, eq=False)
class _EmbeddedSplit:
    """One split: persona and dialogue of each exchange, and the embeddings of its prompt and masked answer."""

    persona: Int[np.ndarray, " exchange"]
    dialogue: Int[np.ndarray, " exchange"]
    prompts: Float[np.ndarray, "exchange dim"]
    answers: Float[np.ndarray, "exchange dim"]


def measure(
    personas: Sequence[Persona], clustering: Clustering, embedder: Embedder, log: RunLog, *, labelled: bool = False
) -> PersonaSignal:
    """Return the signal in the train and val dialogues of the personas, with the clusters of the clustering. Test is not read.

    Of more than `MOST_PERSONAS`, evenly spaced ones are used, in order of the clusters, and two of every cluster that these miss.
    `labelled` says that answers are labels.

    Raises:
        BadData: fewer than two personas, or one without different train or val dialogues.
    """
    if len(personas) < 2:
        raise BadData(f"the persona signal needs at least 2 personas, not {len(personas)}; add personas")
    n_population, personas = len(personas), _sample(personas, clustering)
    limits: dict[Split, int] = {"train": MOST_TRAIN, "val": MOST_VAL}
    exchanges = {split: [masked_exchanges(p, split, limit=n, labelled=labelled) for p in personas] for split, n in limits.items()}
    for split, by_persona in exchanges.items():
        if without := [p.id for p, own in zip(personas, by_persona, strict=True) if not own]:
            raise BadData(f"persona {without[0]!r} has no {split} dialogues; raise data.{split} or leave the persona out")
    log.phase("embed for signal", total=2 * sum(len(own) for by_persona in exchanges.values() for own in by_persona), unit="texts")
    train, val = (_embedded(exchanges[split], embedder, log) for split in ("train", "val"))
    residual_train, residual_val = _residuals(train, val)
    cluster_by_id = clustering.cluster_by_persona()
    clusters, cluster = np.unique([cluster_by_id[p.id] for p in personas], return_inverse=True)
    rng = np.random.default_rng(0)
    random = [rng.permutation(cluster) for _ in range(_RANDOM_PARTITIONS)]

    def hits(kind: str, group: Int[np.ndarray, " persona"]) -> Float[np.ndarray, " exchange"]:
        fit, held_out = (train.prompts, val.prompts) if kind == "prompts" else (residual_train, residual_val)
        return _hits(fit, group[train.persona], held_out, group[val.persona])

    def explained(group: Int[np.ndarray, " persona"], *, personal: bool) -> tuple[float, Interval]:
        expected = _expected(residual_train, train.persona, group, personal=personal)[val.persona]
        return _share_explained(residual_val, expected, val.persona)

    within, between = _distances(np.concatenate([train.answers, val.answers]), np.concatenate([train.persona, val.persona]))
    of_persona, of_cluster = explained(cluster, personal=True), explained(cluster, personal=False)
    each_persona, chance = np.arange(len(personas)), 1 / len(personas)
    chance_of_clusters = float(np.mean([_mean(hits("residuals", groups), val.persona) for groups in random]))
    return PersonaSignal(
        n_personas=len(personas),
        n_exchanges=len(train.persona) + len(val.persona),
        persona_from_prompts=_recognition(hits("prompts", each_persona), val.persona, chance, len(personas)),
        persona_beyond_prompts=_recognition(hits("residuals", each_persona), val.persona, chance, len(personas)),
        cluster_beyond_prompts=_recognition(hits("residuals", cluster), val.persona, chance_of_clusters, len(clusters)),
        persona_explains=of_persona[0],
        cluster_explains=of_cluster[0],
        random_explains=float(np.mean([explained(groups, personal=False)[0] for groups in random])),
        distance_within=within,
        distance_between=between,
        n_population=n_population,
        labelled=labelled,
        persona_explains_low=of_persona[1].low,
        persona_explains_high=of_persona[1].high,
        cluster_explains_low=of_cluster[1].low,
    )


def _sample(personas: Sequence[Persona], clustering: Clustering) -> list[Persona]:
    by_id = {persona.id: persona for persona in personas}
    in_order = [by_id[persona_id] for members in clustering.members for persona_id in members]
    n = len(in_order)
    if n <= MOST_PERSONAS:
        return in_order
    spaced = {in_order[round(i * (n - 1) / (MOST_PERSONAS - 1))].id for i in range(MOST_PERSONAS)}
    missed = {persona_id for members in clustering.members if not spaced & set(members) for persona_id in members[:2]}
    return [persona for persona in in_order if persona.id in spaced | missed]


def _embedded(by_persona: Sequence[Sequence[MaskedExchange]], embedder: Embedder, log: RunLog) -> _EmbeddedSplit:
    flat = [exchange for own in by_persona for exchange in own]
    prompts = _encoded([exchange.prompt for exchange in flat], embedder, log)
    answers = _encoded([exchange.answer for exchange in flat], embedder, log)
    numbers = [(number, exchange.dialogue) for number, own in enumerate(by_persona) for exchange in own]
    _, dialogue = np.unique(numbers, axis=0, return_inverse=True)
    return _EmbeddedSplit(np.array([persona for persona, _ in numbers]), dialogue.ravel(), prompts, answers)


def _encoded(texts: Sequence[str], embedder: Embedder, log: RunLog) -> Float[np.ndarray, "text dim"]:
    batches = []
    for start in range(0, len(texts), _BATCH):
        batches.append(embedder.encode(texts[start : start + _BATCH]).astype(np.float64))
        log.advance(len(batches[-1]))
    return np.concatenate(batches)


def _residuals(train: _EmbeddedSplit, val: _EmbeddedSplit) -> tuple[Float[np.ndarray, "train dim"], Float[np.ndarray, "val dim"]]:
    """Return the residuals of train and val answers after a ridge regression on the prompts, predicted out of sample.

    Train is predicted by cross-validation over dialogues. The other dialogues of the same persona are in the other folds, so what a prompt
    reveals about its persona counts as predicted. The penalty is the one that predicts train best.
    """
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import GroupKFold, cross_val_predict

    folds = GroupKFold(min(_FOLDS, len(np.unique(train.dialogue))))
    candidates = [
        (cross_val_predict(Ridge(alpha), train.prompts, train.answers, groups=train.dialogue, cv=folds), alpha) for alpha in _RIDGES
    ]
    predicted, alpha = min(candidates, key=lambda candidate: float(np.sum((train.answers - candidate[0]) ** 2)))
    return train.answers - predicted, val.answers - Ridge(alpha).fit(train.prompts, train.answers).predict(val.prompts)


def _hits(
    train: Float[np.ndarray, "a dim"], train_class: Int[np.ndarray, " a"], val: Float[np.ndarray, "b dim"], val_class: Int[np.ndarray, " b"]
) -> Float[np.ndarray, " b"]:
    """Return 1 for each val exchange that is classified correctly, else 0. Classes are numbered from 0; none is empty in train."""
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


def _share_explained(
    residuals: Float[np.ndarray, "exchange dim"], expected: Float[np.ndarray, "exchange dim"], persona: Int[np.ndarray, " exchange"]
) -> tuple[float, Interval]:
    """Return the share of the squares that is explained, and its 95 % interval: people are drawn again, with theirs.

    The draws are rescaled to the spread of the share's linearised values by person, as those of every mean over people.
    """
    squares, left = (
        np.bincount(persona, weights=np.sum(one**2, axis=1), minlength=persona.max() + 1) for one in (residuals, residuals - expected)
    )
    drawn = np.random.default_rng(0).integers(len(squares), size=(_DRAWS, len(squares)))
    shares = 1 - left[drawn].sum(axis=1) / np.maximum(squares[drawn].sum(axis=1), np.finfo(float).tiny)
    share = 1 - left.sum() / squares.sum()
    by_person = share + ((1 - share) * squares - left) / squares.mean()
    return float(share), bootstrap_interval(shares, by_person)


def _expected(
    residuals: Float[np.ndarray, "exchange dim"],
    persona: Int[np.ndarray, " exchange"],
    group: Int[np.ndarray, " persona"],
    *,
    personal: bool,
) -> Float[np.ndarray, "persona dim"]:
    """Return the expected residual of each persona: its group's mean or, if `personal`, its own mean shrunk towards that.

    It keeps t^2 / (t^2 + s^2 / n) of the deviation from the group, with the variances of a one-way layout summed over dimensions.
    """
    n = np.bincount(persona)
    sums = np.zeros((len(n), residuals.shape[1]))
    np.add.at(sums, persona, residuals)
    means = sums / n[:, None]
    group_means = np.stack([means[group == number].mean(axis=0) for number in range(group.max() + 1)])[group]
    if not personal:
        return group_means
    noise = np.sum((residuals - means[persona]) ** 2) / max(1, len(residuals) - len(n)) / n
    # The deviations of P personas from k group means have P - k degrees of freedom.
    spread = np.sum((means - group_means) ** 2) / max(1, len(n) - group.max() - 1)
    between = max(0.0, float(spread - noise.mean()))
    shrinkage = between / (between + noise) if between else np.zeros(len(n))
    return group_means + shrinkage[:, None] * (means - group_means)


def _distances(answers: Float[np.ndarray, "exchange dim"], persona: Int[np.ndarray, " exchange"]) -> tuple[float, float]:
    """Return the mean cosine distances between answers of the same persona and of different ones; embeddings have unit length.

    The sum of the cosines of all ordered pairs of n answers, each with itself included, is |their sum|^2.
    """
    n = np.bincount(persona)
    sums = np.zeros((len(n), answers.shape[1]))
    np.add.at(sums, persona, answers)
    same_persona = np.sum(sums**2, axis=1)
    pairs = n * (n - 1)
    total = np.sum(sums.sum(axis=0) ** 2)
    within = float(1 - (same_persona - n).sum() / pairs.sum()) if pairs.any() else 0.0
    return within, float(1 - (total - same_persona.sum()) / (n.sum() ** 2 - np.sum(n**2)))
