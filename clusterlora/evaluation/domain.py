"""Metrics of what a domain's answers are about, beside the headline: computed where the references carry it, from stored texts alone.

Similarity hardly sees whether the lights are set to 20 or to 30 percent, on or off; who is served does.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from clusterlora.evaluation.actions import actions
from clusterlora.evaluation.metric import Scorable
from clusterlora.evaluation.metrics import METRICS
from clusterlora.evaluation.metrics.number_f1 import numbers
from clusterlora.values import EvaluationRow

LEAST_SHARE = 0.1
"""Share of the references that must carry what a metric measures."""


class _NoEmbedder:
    """The embedder of metrics that read texts alone."""

    name = revision = "none"

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        raise AssertionError(f"a metric of a domain reads no embeddings, but asked for {len(texts)}")


def domain_metrics(references: Sequence[str]) -> tuple[str, ...]:
    """Return the metrics that enough references carry, in the catalog's order.

    Where parameters are compared, so are the numbers that a home is set to: then numbers of any kind are, too, only if enough references
    have others.
    """
    carried = tuple(
        name
        for name, metric in METRICS.items()
        if metric.carried is not None and references and sum(map(metric.carried, references)) >= LEAST_SHARE * len(references)
    )
    if "parameter_f1" in carried and sum(map(_has_other_numbers, references)) < LEAST_SHARE * len(references):
        return tuple(name for name in carried if name != "number_f1")
    return carried


def _has_other_numbers(text: str) -> bool:
    """Return whether a text has numbers beside those in the values that it sets, as in 22 degrees and HDMI1."""
    values = " ".join(map(str, actions(text).settings.values()))
    return bool(numbers(text) - numbers(values))


def with_domain_scores(rows: Sequence[EvaluationRow], metrics: Sequence[str]) -> list[EvaluationRow]:
    """Return the rows with their scores of these metrics; scores that a row has already stay."""
    answers = Scorable(texts=[row.text for row in rows], references=[row.reference for row in rows], embedder=_NoEmbedder())
    scores_by_metric = {name: METRICS[name].score(answers).tolist() for name in metrics}
    return [
        replace(row, scores={name: scores[index] for name, scores in scores_by_metric.items()} | dict(row.scores))
        for index, row in enumerate(rows)
    ]
