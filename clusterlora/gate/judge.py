"""The gate's decision: every criterion applied to one trial."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from jaxtyping import Int

from clusterlora.evaluation.metric import Metric
from clusterlora.evaluation.metrics.embedding_similarity import EMBEDDING_SIMILARITY
from clusterlora.gate.criteria import CRITERIA
from clusterlora.gate.random_group import against_random_group
from clusterlora.gate.trial import Scores, trial
from clusterlora.settings import GateSettings
from clusterlora.values import Verdict


def judge(
    candidate: Scores,
    unified: Scores,
    settings: GateSettings,
    *,
    rung: str,
    adapter: str,
    rng: np.random.Generator,
    metric: Metric = EMBEDDING_SIMILARITY,
    second: tuple[Scores, Scores, Metric] | None = None,
    random_group: tuple[Scores, Scores] | None = None,
    dialogues: Mapping[str, Int[np.ndarray, " _item"]] | None = None,
) -> Verdict:
    """Return the verdict on a candidate adapter against unified, on the same personas and items.

    Args:
        candidate: scores of the adapter on trial, one array of items per persona.
        unified: the same personas and items, answered with unified.
        rung: which try of the ladder of hyper-parameters this is.
        metric: what the scores are of.
        second: candidate and unified on the study's second headline, and that metric, if it has one.
        random_group: a random group's adapter and unified, on that group's people, if the gate asks for it.
        dialogues: of the candidate's people, as `trial` takes them.

    Raises:
        BadData: the two sides do not cover the same personas and items, or hold a score that is not finite.
    """
    both = replace(
        trial(candidate, unified, metric, dialogues),
        second=trial(*second) if second else None,
        random_group=trial(*random_group, metric) if random_group else None,
    )
    outcomes = (criterion(both, settings, rng) for criterion in CRITERIA.values())
    criteria = tuple(outcome for outcome in outcomes if outcome is not None)
    notes = (against_random_group(both.gains, both.random_group.gains, metric).sentence,) if both.random_group else ()
    return Verdict(
        rung=rung, adapter=adapter, criteria=criteria, n_personas=len(both.persona_ids), n_items=len(both.candidate), notes=notes
    )
