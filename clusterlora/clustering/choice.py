"""Features and number of clusters, where settings leave them open: those that predict held-out train answers, and are found again."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from clusterlora.clustering.exchange_topics import exchange_topics
from clusterlora.clustering.features import Evidence, feature_matrix
from clusterlora.clustering.pieces import pieces_of
from clusterlora.clustering.prediction import predicted
from clusterlora.ports.run_log import RunLog
from clusterlora.values import Persona

LARGEST_K = 12
FOLDS = 3
WORTH_HAVING = 0.01
"""Share of the held-out answers, of what prompts leave open of them, that clusters must predict.

Of invented people who differ without clusters, some k up to 12 predicted 0.6 to 1.3 % (24 and 45 people with 20 train dialogues, three
seeds each), and what predicted more than 1 % was not found again; where half of the choices were their cluster's, 0.4 to 2.7 % of 24 people
and 3.3 to 5.4 % of 45.
Of the real people that were tried, at most 0.5 %."""
FOUND_AGAIN = 0.5
"""Stability below which other dialogues of the same people would give other clusters: people differ by degrees, and any cut will do."""
STANDARD_ERRORS = 3.0

Partition = Callable[[Float[np.ndarray, "persona direction"], int], Int[np.ndarray, " persona"]]
"""(features, k) -> labels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One way to group the personas, and what speaks for it.

    `predicted` is the share of held-out train answers, of what their prompts leave open, that the other members of a cluster predict, and
    `standard_error` that of its mean over personas. `stability` is the mean adjusted Rand index with the partitions of two thirds of the
    dialogues.
    """

    algorithm: str
    k: int
    predicted: float
    standard_error: float
    stability: float

    @property
    def worth_having(self) -> bool:
        """Whether it predicts enough, more than chance does, and is found again."""
        return self.predicted >= max(WORTH_HAVING, STANDARD_ERRORS * self.standard_error) and self.stability >= FOUND_AGAIN

    @property
    def score(self) -> float:
        """The share predicted, times the stability: of what clusters predict, as much as would be found again."""
        return self.predicted * max(0.0, self.stability)


def candidates(
    personas: tuple[Persona, ...], evidence_by_algorithm: Mapping[str, Evidence], ks: Sequence[int], partition: Partition, run_log: RunLog
) -> tuple[Candidate, ...]:
    """Return every algorithm with every k, measured by cross-validation over dialogues.

    A fold holds out a third of everybody's train dialogues, those that follow each other, since these may be parts of one conversation.
    """
    topics = exchange_topics(personas)
    n_dialogues = [len(persona.of_split("train")) for persona in personas]
    dialogues = topics.by_persona(topics.dialogue)
    fold_of_exchange = np.concatenate([_folds(own, n) for own, n in zip(dialogues, n_dialogues, strict=True)])
    held_out = [fold_of_exchange == fold for fold in range(FOLDS)]
    measured: list[Candidate] = []
    for algorithm, evidence in evidence_by_algorithm.items():
        features = feature_matrix(evidence)
        folds = [
            _folds(_dialogues(n_pieces, of_responses, n), n)
            for n_pieces, of_responses, n in zip(pieces_of(evidence).counts.tolist(), dialogues, n_dialogues, strict=True)
        ]
        fitted = [feature_matrix(_without(evidence, folds, fold)) for fold in range(FOLDS)]
        for k in ks:
            whole, parts = partition(features, k), [partition(part, k) for part in fitted]
            shares = predicted(topics, zip(held_out, parts, strict=True))
            measured.append(
                Candidate(
                    algorithm=algorithm,
                    k=k,
                    predicted=float(shares.mean()),
                    standard_error=float(shares.std(ddof=1) / np.sqrt(len(shares))),
                    stability=_agreement(whole, parts),
                )
            )
            run_log.advance()
    return tuple(measured)


def best(measured: Sequence[Candidate]) -> Candidate:
    """Return, of those worth having if there are any, the one with the smallest k whose score is within a standard error of the highest.

    Source: the one-standard-error rule, Breiman et al. 1984, section 3.4.3.
    """
    eligible = [one for one in measured if one.worth_having] or list(measured)
    highest = max(eligible, key=lambda one: one.score)
    within = [one for one in eligible if one.score >= highest.score - highest.standard_error * max(0.0, highest.stability)]
    return min(within, key=lambda one: (one.k, -one.score))


def _agreement(whole: Int[np.ndarray, " persona"], parts: Sequence[Int[np.ndarray, " persona"]]) -> float:
    from sklearn.metrics import adjusted_rand_score

    return float(np.mean([adjusted_rand_score(whole, part) for part in parts]))


def _folds(dialogue: Int[np.ndarray, " _piece"], n_dialogues: int) -> Int[np.ndarray, " _piece"]:
    """Return the fold of each piece of a persona, by its dialogue; of a single dialogue, by its place. A single piece is never held out."""
    if n_dialogues > 1:
        return dialogue * FOLDS // n_dialogues
    n = len(dialogue)
    return np.arange(n) * FOLDS // n if n > 1 else np.full(n, -1)


def _dialogues(n_pieces: int, of_responses: Int[np.ndarray, " _response"], n_dialogues: int) -> Int[np.ndarray, " _piece"]:
    """Return the dialogue that each piece of evidence is from: there is one per response, or else they are spread evenly."""
    return of_responses if n_pieces == len(of_responses) else np.arange(n_pieces) * n_dialogues // n_pieces


def _without(evidence: Evidence, folds: Sequence[Int[np.ndarray, " _piece"]], fold: int) -> Evidence:
    """Return the evidence without the pieces of a fold; whoever would have none left keeps all."""
    return pieces_of(evidence).taking([np.flatnonzero(own != fold) if np.any(own != fold) else np.arange(len(own)) for own in folds])
