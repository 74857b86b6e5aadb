"""The leave-personas-out curve: gain of personas that no adapter was trained on, when a few dialogues choose their adapter."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from jaxtyping import Float, Int

from clusterlora.comparison.champion import LEAST_ITEMS, LEAST_PERSONAS
from clusterlora.evaluation.assign import MARGIN_SE, choose
from clusterlora.evaluation.statistics import bootstrap_interval, paired_bootstrap

DIALOGUES = (1, 3, 5, 10)
"""Numbers of dialogues that a choice is based on."""
DRAWS = 50
"""Random orders of a persona's dialogues that results are averaged over; a choice uses the first m dialogues of an order."""

Scores = Mapping[str, Float[np.ndarray, "_item arm"]]
"""By persona id, the score of every item (or dialogue) under every arm: unified, then the clusters in order."""
Shares = Mapping[str, Float[np.ndarray, "... arm"]]
"""By persona id, the share of draws in which each arm is chosen: for all items, or item by item."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """Mean gain over unified across personas with its 95 % interval; positive is better, whatever the direction of the metric."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleOutcome:
    """The result of one rule for new personas: their gain, and the shares that leave unified.

    `own_cluster` is the share, of those that leave unified, that get the cluster of the study; None when nobody leaves.
    """

    rule: str
    n_dialogues: int | None
    n_personas: int
    n_items: int
    headline: Gain
    nll: Gain
    leave: float
    own_cluster: float | None

    @property
    def has_verdict(self) -> bool:
        """Whether there are personas and test items enough for a verdict, as in every comparison."""
        return self.n_personas >= LEAST_PERSONAS and self.n_items >= LEAST_ITEMS


@dataclass(frozen=True, slots=True, kw_only=True)
class NewPersonas:
    """The curve: `chosen` by the rule of `clusterlora assign`, `nearest` by the smallest mean loss without a margin.

    `own` answers every persona with its cluster in the study, which used all train dialogues; `oracle` with the arm that is best on one
    half of the test dialogues, scored on the other half, which takes two of them: it is None where nobody has two.
    """

    metric: str
    n_personas: int
    n_clusters: int
    n_draws: int
    chosen: tuple[RuleOutcome, ...]
    nearest: tuple[RuleOutcome, ...]
    own: RuleOutcome
    oracle: RuleOutcome | None


@dataclass(frozen=True, slots=True)
class _Rule:
    """Shares by metric, since the oracle's choice depends on the metric."""

    name: str
    n_dialogues: int | None
    shares: Mapping[str, Shares]


def new_personas(
    losses: Scores,
    tested: Mapping[str, Scores],
    dialogue: Mapping[str, Int[np.ndarray, " _item"]],
    cluster_by_persona: Mapping[str, int],
    *,
    metric: str,
    higher_is_better: bool,
    draws: int,
    rng: np.random.Generator,
) -> NewPersonas:
    """Return the gains of new personas whose adapter is chosen by m of their dialogues, for every m that some persona has.

    Choices depend on `losses` alone. Scores are averaged over draws, weighting each arm by its share of the draws.

    Args:
        losses: negative log-likelihoods of the train dialogues of all held-out personas, means over turns.
        tested: by metric (`metric` and nll), the scores of their test items.
        dialogue: the dialogue of each test item, as `dialogue_numbers` returns them.
        cluster_by_persona: the study's clusters, computed from all train dialogues.
        draws: draws of the paired bootstrap.
    """
    better = {metric: higher_is_better} | {"nll": False}
    n_arms = next(iter(losses.values())).shape[1]
    chosen, nearest = _choices(losses, rng)
    own = {p: _one_of(cluster_by_persona[p] + 1, n_arms) for p in losses}
    halved = [p for p in losses if len(np.unique(dialogue[p])) > 1]
    best = {name: {p: _best(tested[name][p], dialogue[p], higher) for p in halved} for name, higher in better.items()}
    rules = [
        *(_Rule("chosen", m, dict.fromkeys(better, shares)) for m, shares in chosen.items()),
        *(_Rule("nearest", m, dict.fromkeys(better, shares)) for m, shares in nearest.items()),
        _Rule("own cluster", None, dict.fromkeys(better, own)),
        *([_Rule("oracle", None, best)] if halved else []),
    ]
    outcomes = _outcomes(rules, tested, cluster_by_persona, metric, better, draws, rng)
    by_rule = {name: tuple(group) for name, group in groupby(outcomes, key=lambda outcome: outcome.rule)}
    return NewPersonas(
        metric=metric,
        n_personas=len(losses),
        n_clusters=n_arms - 1,
        n_draws=DRAWS,
        chosen=by_rule["chosen"],
        nearest=by_rule["nearest"],
        own=by_rule["own cluster"][0],
        oracle=next(iter(by_rule.get("oracle", ())), None),
    )


def _choices(losses: Scores, rng: np.random.Generator) -> tuple[dict[int, Shares], dict[int, Shares]]:
    """Return the shares of each arm by number of dialogues: with the margin, and without."""
    orders = {p: [rng.permutation(len(own)) for _ in range(DRAWS)] for p, own in losses.items()}

    def shares(m: int, margin_se: float) -> Shares:
        share_by_persona: dict[str, np.ndarray] = {}
        for p, own in losses.items():
            if len(own) >= m:
                picked = [choose(own[order[:m]], margin_se=margin_se).cluster for order in orders[p]]
                arms = [0 if cluster is None else cluster + 1 for cluster in picked]
                share_by_persona[p] = np.bincount(arms, minlength=own.shape[1]) / DRAWS
        return share_by_persona

    sizes = [m for m in DIALOGUES if any(len(own) >= m for own in losses.values())]
    return {m: shares(m, MARGIN_SE) for m in sizes}, {m: shares(m, 0.0) for m in sizes}


def _outcomes(
    rules: Sequence[_Rule],
    tested: Mapping[str, Scores],
    cluster_by_persona: Mapping[str, int],
    metric: str,
    better: Mapping[str, bool],
    draws: int,
    rng: np.random.Generator,
) -> Iterator[RuleOutcome]:
    """Yield every rule's outcome. Rules over the same personas share their bootstrap draws."""
    for persona_ids, group in groupby(rules, key=lambda rule: tuple(rule.shares[metric])):
        rules_of_group = list(group)
        gains = {
            name: _gains([r.shares[name] for r in rules_of_group], tested[name], persona_ids, higher, draws, rng)
            for name, higher in better.items()
        }
        for number, rule in enumerate(rules_of_group):
            shares = rule.shares[metric]
            mean_share = {p: np.atleast_2d(shares[p]).mean(axis=0) for p in persona_ids}
            leave = float(np.mean([1 - mean_share[p][0] for p in persona_ids]))
            into_own = float(np.mean([mean_share[p][cluster_by_persona[p] + 1] for p in persona_ids]))
            yield RuleOutcome(
                rule=rule.name,
                n_dialogues=rule.n_dialogues,
                n_personas=len(persona_ids),
                n_items=sum(len(tested[metric][p]) for p in persona_ids),
                headline=gains[metric][number],
                nll=gains["nll"][number],
                leave=leave,
                own_cluster=into_own / leave if leave else None,
            )


def _gains(
    shares: Sequence[Shares], tested: Scores, persona_ids: Sequence[str], higher: bool, draws: int, rng: np.random.Generator
) -> list[Gain]:
    """Return every rule's gain over unified on one metric, with equal weight per persona."""
    sign = 1.0 if higher else -1.0
    # A rule's score on an item is linear in its shares, and so is its difference to unified.
    differences = np.concatenate(
        [sign * (np.stack([(tested[p] * s[p]).sum(axis=1) for s in shares], axis=1) - tested[p][:, [0]]) for p in persona_ids]
    )
    persona = np.repeat(np.arange(len(persona_ids)), [len(tested[p]) for p in persona_ids])
    draws_of_means = paired_bootstrap(differences, persona, draws=draws, rng=rng)
    means = np.stack([differences[persona == number].mean(axis=0) for number in range(len(persona_ids))])
    return [
        Gain(mean=float(means[:, rule].mean()), low=interval.low, high=interval.high)
        for rule in range(len(shares))
        for interval in [bootstrap_interval(draws_of_means[:, rule], means[:, rule])]
    ]


def _best(scores: Float[np.ndarray, "item arm"], dialogue: Int[np.ndarray, " item"], higher: bool) -> Float[np.ndarray, "item arm"]:
    """Return, for the items of every other dialogue, the arm that is best on the dialogues between, and the other way round.

    Picked and scored on the same items, or on turns of one dialogue, the best of several arms would be too good by the luck it was
    picked for.
    """
    is_odd = dialogue % 2 == 1
    best = [np.argmax(half) if higher else np.argmin(half) for half in (scores[~is_odd].mean(axis=0), scores[is_odd].mean(axis=0))]
    return np.stack([_one_of(int(best[0 if odd else 1]), scores.shape[1]) for odd in is_odd])


def _one_of(arm: int, n_arms: int) -> Float[np.ndarray, " arm"]:
    return np.eye(n_arms)[arm]
