"""Which scores are of answers that were cut at `max_new_tokens`, or are held against references that are longer."""

from collections.abc import Iterable
from dataclasses import dataclass

from clusterlora.values import EvaluationRow

ANSWER_CUT = "answer_cut"
REFERENCE_CUT = "reference_cut"
"""Names under which an answer's scores say, as 0 or 1, that it or its reference is longer than the longest answer allowed."""

WORTH_A_WORD = 0.02
"""Share of cut answers above which a method is marked."""


@dataclass(frozen=True, slots=True)
class CutAnswers:
    """Of a method's answers, how many were cut before they ended, and how many have a longer reference than may be answered."""

    n_answers: int = 0
    n_cut: int = 0
    n_longer_references: int = 0

    @property
    def share(self) -> float:
        """Share of the answers that were cut."""
        return self.n_cut / max(self.n_answers, 1)

    @property
    def share_of_references(self) -> float:
        """Share of the references that are longer."""
        return self.n_longer_references / max(self.n_answers, 1)

    @property
    def is_marked(self) -> bool:
        """Whether the method's scores have to be read with that in mind."""
        return max(self.share, self.share_of_references) > WORTH_A_WORD


def cut_scores(n_tokens: int, n_reference_tokens: int, max_new_tokens: int) -> tuple[tuple[str, float], ...]:
    """Return the scores that say whether an answer was cut and whether its reference is longer.

    Args:
        n_tokens: tokens of the answer without an end of turn, so one of `max_new_tokens` did not come to its end.
        n_reference_tokens: tokens of the reference, end of turn included.
    """
    return (ANSWER_CUT, float(n_tokens >= max_new_tokens)), (REFERENCE_CUT, float(n_reference_tokens > max_new_tokens))


def cut_by_method(rows: Iterable[EvaluationRow]) -> dict[str, CutAnswers]:
    """Return the counts of every method; answers that were stored without them are not counted."""
    counts: dict[str, CutAnswers] = {}
    for row in rows:
        if ANSWER_CUT in row.scores:
            so_far = counts.get(row.method, CutAnswers())
            counts[row.method] = CutAnswers(
                so_far.n_answers + 1,
                so_far.n_cut + int(row.scores[ANSWER_CUT]),
                so_far.n_longer_references + int(row.scores.get(REFERENCE_CUT, 0)),
            )
    return counts
