"""Two studies on the test items that both answered: a pure function of their evaluation rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from clusterlora.comparison.differences import Scored
from clusterlora.comparison.result import PairedDifference
from clusterlora.comparison.scores import ItemKey, paired_scores
from clusterlora.evaluation.statistics import paired_bootstrap
from clusterlora.values import EvaluationRow

_FIRST, _SECOND = "first", "second"


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodAcross:
    """A method of the first study and one of the second on one metric: means over the shared items, and second minus first."""

    method: str
    other_method: str
    metric: str
    first: float
    second: float
    difference: PairedDifference


@dataclass(frozen=True, slots=True, kw_only=True)
class AcrossStudies:
    """What two studies show on shared items. `unanswered` are methods of both that lack answers which others of their study have."""

    n_personas: int
    n_items: int
    methods: tuple[MethodAcross, ...]
    unanswered: tuple[str, ...]


NOTHING_SHARED = AcrossStudies(n_personas=0, n_items=0, methods=(), unanswered=())


def compare_across(
    first: Sequence[EvaluationRow],
    second: Sequence[EvaluationRow],
    shared_items: frozenset[ItemKey],
    *,
    methods: Sequence[str],
    champions: tuple[str | None, str | None],
    higher_is_better: Mapping[str, bool],
    draws: int,
    margins: Mapping[str, float],
    rng: np.random.Generator,
) -> AcrossStudies:
    """Return the differences of each method, and of the two champions, on the items that all of these methods answered in both studies.

    The statistics are those of a comparison within a study: people are the unit, intervals are 95 % of the two-level paired bootstrap, and
    the tests of a metric are one family (Holm). Clusters
    differ between studies, so people are taken as independent.

    Args:
        shared_items: the items that are the same question with the same reference in both studies.
        methods: those of both studies, in the order of the result.
        margins: of every metric, the difference below which methods count as equivalent.
    """
    answered = [_whole(rows, shared_items) for rows in (first, second)]
    pairs = [(name, name) for name in methods if all(name in names for names in answered)]
    unanswered = tuple(name for name in methods if (name, name) not in pairs)
    a, b = champions
    if a is not None and b is not None and a != b and a in answered[0] and b in answered[1]:
        pairs.append((a, b))
    labelled = {f"{_FIRST} {method}": _of_method(first, method) for method, _ in pairs}
    labelled |= {f"{_SECOND} {method}": _of_method(second, method) for _, method in pairs}
    common = shared_items.intersection(*({(r.persona_id, r.item_id) for r in rows} for rows in labelled.values()))
    if not pairs or not common:
        return replace(NOTHING_SHARED, unanswered=unanswered)
    rows = [
        replace(row, method=label, cluster=0)
        for label, of_method in labelled.items()
        for row in of_method
        if (row.persona_id, row.item_id) in common
    ]
    scores = paired_scores(rows, tuple(higher_is_better))
    found: list[MethodAcross] = []
    for metric, is_higher in higher_is_better.items():
        drawn = paired_bootstrap(scores.of(metric), scores.persona, draws=draws, rng=rng)
        scored = Scored.of(scores, metric, drawn, 1.0 if is_higher else -1.0, margins[metric])
        mean = dict(zip(scores.methods, scored.means.mean(axis=0).tolist(), strict=True))
        labels = [(f"{_SECOND} {other}", f"{_FIRST} {method}") for method, other in pairs]
        for (method, other), (second_label, first_label), difference in zip(pairs, labels, scored.family(labels), strict=True):
            means = {"first": mean[first_label], "second": mean[second_label]}
            found.append(MethodAcross(method=method, other_method=other, metric=metric, difference=difference, **means))
    return AcrossStudies(n_personas=len(scores.persona_ids), n_items=len(scores.persona), methods=tuple(found), unanswered=unanswered)


def _of_method(rows: Sequence[EvaluationRow], method: str) -> list[EvaluationRow]:
    return [row for row in rows if row.method == method]


def _whole(rows: Sequence[EvaluationRow], shared_items: frozenset[ItemKey]) -> frozenset[str]:
    """Return the methods that have answered every shared item that any method of the study has, under each of their training seeds."""
    by_method: dict[str, set[tuple[ItemKey, int]]] = {}
    for row in rows:
        if (key := (row.persona_id, row.item_id)) in shared_items:
            by_method.setdefault(row.method, set()).add((key, row.seed))
    n_items = len({key for answers in by_method.values() for key, _ in answers})
    return frozenset(method for method, answers in by_method.items() if len(answers) == n_items * len({seed for _, seed in answers}))
