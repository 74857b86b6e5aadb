"""How well people whom no adapter saw fare when a few of their examples choose who answers them: the leave-personas-out curve."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from jaxtyping import Float

from clusterlora.evaluation.assign import MARGIN_SE, choose
from clusterlora.evaluation.statistics import bootstrap_interval, paired_bootstrap

EXAMPLES = (1, 3, 5, 10)
"""How many examples of a person choose."""
DRAWS = 50
"""Random orders of a person's examples that a choice is averaged over; the first m of an order choose."""

Scores = Mapping[str, Float[np.ndarray, "_item arm"]]
"""By persona id, the score of every item under every arm: unified, then each cluster in turn."""
Shares = Mapping[str, Float[np.ndarray, "... arm"]]
"""By persona id, how often each arm answers: everything, or item by item."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """Mean over personas of what is gained over unified, with its 95 % interval; positive is better, also where lower scores are."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one rule makes of people who are new: their gain, how many leave unified, and whether for the cluster the study put them in.

    `own_cluster` is a share of those who leave, None when nobody does.
    """

    rule: str
    n_examples: int | None
    n_personas: int
    headline: Gain
    nll: Gain
    leave: float
    own_cluster: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewPersonas:
    """The curve: `chosen` by the rule of `clusterlora assign`, `nearest` by the smaller mean loss however small the difference.

    `own` answers everybody by the cluster that the study gave them for all their train dialogues, `oracle` by what is best on one half of
    the test items, and is scored on the other half.
    """

    metric: str
    n_personas: int
    n_clusters: int
    n_draws: int
    chosen: tuple[Outcome, ...]
    nearest: tuple[Outcome, ...]
    own: Outcome
    oracle: Outcome


@dataclass(frozen=True, slots=True)
class _Rule:
    """Shares of the draws in which each arm answers a person, by metric for rules that look at scores."""

    name: str
    n_examples: int | None
    shares: Mapping[str, Shares]


def new_personas(
    losses: Scores,
    tested: Mapping[str, Scores],
    cluster_by_persona: Mapping[str, int],
    *,
    metric: str,
    higher_is_better: bool,
    draws: int,
    rng: np.random.Generator,
) -> NewPersonas:
    """Return how people fare who are given a stack by m of their examples, for every m that somebody has.

    Choices see `losses` alone. A choice that varies with the draw counts by its share of the draws, item by item.

    Args:
        losses: negative log-likelihood of the train examples of everybody who was held out.
        tested: by metric (`metric` and nll), what their test items score.
        cluster_by_persona: the study's clusters, made with all their train dialogues.
        draws: of the paired bootstrap.
    """
    better = {metric: higher_is_better} | {"nll": False}
    n_arms = next(iter(losses.values())).shape[1]
    chosen, nearest = _choices(losses, rng)
    own = {p: _one_of(cluster_by_persona[p] + 1, n_arms) for p in losses}
    best = {name: {p: _best(tested[name][p], higher) for p in losses} for name, higher in better.items()}
    rules = [
        *(_Rule("chosen", m, dict.fromkeys(better, shares)) for m, shares in chosen.items()),
        *(_Rule("nearest", m, dict.fromkeys(better, shares)) for m, shares in nearest.items()),
        _Rule("own cluster", None, dict.fromkeys(better, own)),
        _Rule("oracle", None, best),
    ]
    outcomes = _outcomes(rules, tested, cluster_by_persona, metric, better, draws, rng)
    by_rule = {name: tuple(its) for name, its in groupby(outcomes, key=lambda outcome: outcome.rule)}
    return NewPersonas(
        metric=metric,
        n_personas=len(losses),
        n_clusters=n_arms - 1,
        n_draws=DRAWS,
        chosen=by_rule["chosen"],
        nearest=by_rule["nearest"],
        own=by_rule["own cluster"][0],
        oracle=by_rule["oracle"][0],
    )


def _choices(losses: Scores, rng: np.random.Generator) -> tuple[dict[int, Shares], dict[int, Shares]]:
    """Return, by the number of examples, how often each arm is chosen for whom: with the margin, and without."""
    orders = {p: [rng.permutation(len(its)) for _ in range(DRAWS)] for p, its in losses.items()}

    def shares(m: int, margin_se: float) -> Shares:
        share_by_persona: dict[str, np.ndarray] = {}
        for p, its in losses.items():
            if len(its) >= m:
                picked = [choose(its[order[:m]], margin_se=margin_se).cluster for order in orders[p]]
                arms = [0 if cluster is None else cluster + 1 for cluster in picked]
                share_by_persona[p] = np.bincount(arms, minlength=its.shape[1]) / DRAWS
        return share_by_persona

    sizes = [m for m in EXAMPLES if any(len(its) >= m for its in losses.values())]
    return {m: shares(m, MARGIN_SE) for m in sizes}, {m: shares(m, 0.0) for m in sizes}


def _outcomes(
    rules: Sequence[_Rule],
    tested: Mapping[str, Scores],
    cluster_by_persona: Mapping[str, int],
    metric: str,
    better: Mapping[str, bool],
    draws: int,
    rng: np.random.Generator,
) -> Iterator[Outcome]:
    """Yield every rule's outcome. Rules that concern the same people are drawn together."""
    for people, together in groupby(rules, key=lambda rule: tuple(rule.shares[metric])):
        mine = list(together)
        gains = {name: _gains([r.shares[name] for r in mine], tested[name], people, higher, draws, rng) for name, higher in better.items()}
        for number, rule in enumerate(mine):
            shares = rule.shares[metric]
            mean_share = {p: np.atleast_2d(shares[p]).mean(axis=0) for p in people}
            leave = float(np.mean([1 - mean_share[p][0] for p in people]))
            into_own = float(np.mean([mean_share[p][cluster_by_persona[p] + 1] for p in people]))
            yield Outcome(
                rule=rule.name,
                n_examples=rule.n_examples,
                n_personas=len(people),
                headline=gains[metric][number],
                nll=gains["nll"][number],
                leave=leave,
                own_cluster=into_own / leave if leave else None,
            )


def _gains(
    shares: Sequence[Shares], tested: Scores, people: Sequence[str], higher: bool, draws: int, rng: np.random.Generator
) -> list[Gain]:
    """Return every rule's gain over unified on one metric, personas weighing the same."""
    sign = 1.0 if higher else -1.0
    # What a rule scores on an item is linear in its shares, and so is its difference from unified.
    differences = np.concatenate(
        [sign * (np.stack([(tested[p] * s[p]).sum(axis=1) for s in shares], axis=1) - tested[p][:, [0]]) for p in people]
    )
    persona = np.repeat(np.arange(len(people)), [len(tested[p]) for p in people])
    drawn = paired_bootstrap(differences, persona, draws=draws, rng=rng)
    means = np.stack([differences[persona == number].mean(axis=0) for number in range(len(people))])
    return [
        Gain(mean=float(means[:, rule].mean()), low=interval.low, high=interval.high)
        for rule in range(len(shares))
        for interval in [bootstrap_interval(drawn[:, rule], means[:, rule])]
    ]


def _best(scores: Float[np.ndarray, "item arm"], higher: bool) -> Float[np.ndarray, "item arm"]:
    """Return, for every other item, the arm that is best on the items between, and the other way round; a single item stays with unified.

    Picked and scored on the same items, the best of several arms would be too good by the luck it was picked for.
    """
    n_items, n_arms = scores.shape
    if n_items < 2:
        return _one_of(0, n_arms)[None]
    best = [np.argmax(half) if higher else np.argmin(half) for half in (scores[::2].mean(axis=0), scores[1::2].mean(axis=0))]
    return np.stack([_one_of(int(best[1 - item % 2]), n_arms) for item in range(n_items)])


def _one_of(arm: int, n_arms: int) -> Float[np.ndarray, " arm"]:
    return np.eye(n_arms)[arm]
