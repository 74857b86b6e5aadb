"""Input of the gate: the scores of a candidate and of unified on the same items of the same personas."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from clusterlora.errors import BadData
from clusterlora.evaluation.metric import Metric
from clusterlora.evaluation.metrics.embedding_similarity import EMBEDDING_SIMILARITY

Scores = Mapping[str, Float[np.ndarray, " _item"]]
"""Score of every item, by persona."""

DRAWS = 10_000
"""Bootstrap draws of an interval; its bounds are then stable to about a hundredth of its width."""


@dataclass(frozen=True, slots=True, eq=False)
class Trial:
    """Scores of both adapters on the headline; the items of all personas are concatenated, in the order of the persona ids.

    `dialogue` numbers each persona's dialogues. `second` are those on the study's second headline, `random_group` those of a random group
    and its own adapter; None without one.
    """

    metric: Metric

    persona_ids: tuple[str, ...]
    persona: Int[np.ndarray, " item"]
    dialogue: Int[np.ndarray, " item"]
    candidate: Float[np.ndarray, " item"]
    unified: Float[np.ndarray, " item"]
    second: "Trial | None" = None
    random_group: "Trial | None" = None

    @property
    def candidate_means(self) -> Float[np.ndarray, " persona"]:
        """The candidate's mean of each persona."""
        return self._persona_means(self.candidate)

    @property
    def gains(self) -> Float[np.ndarray, " persona"]:
        """How much better the candidate scores than unified, one mean per persona."""
        return self._persona_means(self.item_gains)

    @property
    def item_gains(self) -> Float[np.ndarray, " item"]:
        """How much better the candidate scores each item than unified."""
        return self.candidate - self.unified if self.metric.higher_is_better else self.unified - self.candidate

    def _persona_means(self, scores: Float[np.ndarray, " item"]) -> Float[np.ndarray, " persona"]:
        return np.bincount(self.persona, weights=scores) / np.bincount(self.persona)


def trial(
    candidate: Scores,
    unified: Scores,
    metric: Metric = EMBEDDING_SIMILARITY,
    dialogues: Mapping[str, Int[np.ndarray, " _item"]] | None = None,
) -> Trial:
    """Return the scores of both sides, aligned by item.

    Args:
        dialogues: by persona, the dialogue of every item (`dialogue_numbers`); where None, every item is a dialogue of its own.

    Raises:
        BadData: the two cover different personas or numbers of items, a persona has no items, or a score is not finite.
    """
    if unmatched := sorted(candidate.keys() ^ unified.keys()):
        raise BadData(f"persona {unmatched[0]!r} was scored with only one of candidate and unified; evaluate both on the same personas")
    if not candidate:
        raise BadData("the gate has no personas to judge; evaluate the judged cluster first")
    persona_ids = tuple(sorted(candidate))
    for persona_id in persona_ids:
        own, reference = candidate[persona_id], unified[persona_id]
        if np.ndim(own) != 1 or np.shape(own) != np.shape(reference) or not len(own):
            raise BadData(
                f"persona {persona_id!r} has candidate scores of shape {np.shape(own)} and unified scores of shape {np.shape(reference)}; "
                "give one score per item, for the same items"
            )
        if not (np.isfinite(own).all() and np.isfinite(reference).all()):
            raise BadData(f"persona {persona_id!r} has a score that is not finite; evaluate it again")
    return Trial(
        metric,
        persona_ids,
        np.repeat(np.arange(len(persona_ids)), [len(candidate[persona_id]) for persona_id in persona_ids]),
        np.concatenate([np.arange(len(candidate[p])) if dialogues is None else dialogues[p] for p in persona_ids]),
        np.concatenate([candidate[persona_id] for persona_id in persona_ids]).astype(np.float64),
        np.concatenate([unified[persona_id] for persona_id in persona_ids]).astype(np.float64),
    )
