"""Answers that were cut, and references that no answer may reach, are counted by method and marked wherever scores are shown."""

from dataclasses import replace

import numpy as np
from matplotlib.text import Text

from clusterlora.comparison.compare import compare_methods
from clusterlora.comparison.figure import compose
from clusterlora.comparison.result import Comparison
from clusterlora.comparison.table import markdown, summary_records
from clusterlora.evaluation.cut import cut_by_method, cut_scores
from clusterlora.values import EvaluationRow


def rows(cut: dict[str, int], *, longer: int = 0) -> list[EvaluationRow]:
    """Return 100 answers by method, of which so many were cut, of ten people."""
    rng = np.random.default_rng(3)
    return [
        EvaluationRow(
            method=method,
            persona_id=f"p{i % 10}",
            cluster=0,
            item_id=f"i{i}",
            prompt="?",
            reference="yes",
            text="no",
            scores={"rouge_l": float(rng.uniform()), **dict(cut_scores(64 if i < n_cut else 63, 65 if i < longer else 64, 64))},
            seed=0,
        )
        for method, n_cut in cut.items()
        for i in range(100)
    ]


def compared(some: list[EvaluationRow]) -> Comparison:
    return compare_methods(some, headline="rouge_l", higher_is_better={"rouge_l": True}, draws=100, rng=np.random.default_rng(0))


def test_an_answer_is_cut_when_it_has_no_end_within_the_limit_and_a_reference_when_it_is_longer() -> None:
    assert cut_scores(64, 64, 64) == (("answer_cut", 1.0), ("reference_cut", 0.0))
    assert cut_scores(63, 65, 64) == (("answer_cut", 0.0), ("reference_cut", 1.0))


def test_methods_with_many_cut_answers_are_marked_in_table_and_sentence() -> None:
    comparison = compared(rows({"unified": 12, "cluster": 1}, longer=49))
    for words in ("12% of unified's answers", "49% of the references are longer than evaluation.max_new_tokens"):
        assert words in comparison.sentence
    assert "of cluster's" not in comparison.sentence, "one in a hundred is not worth a word"
    table = markdown(comparison)
    assert "unified †" in table.replace(" ★", "")
    for words in ("unified 12.0%", "cluster 1.0%", "49.0% of the references"):
        assert words in table
    shares = {record["method"]: (record["answers_cut"], record["references_cut"]) for record in summary_records(comparison)}
    assert shares == {"unified": (0.12, 0.49), "cluster": (0.01, 0.49)}


def test_the_picture_marks_them_too() -> None:
    texts = {text.get_text() for text in compose(compared(rows({"unified": 12, "cluster": 1})), "mine").findobj(Text)}
    assert "unified †" in {text.replace(" ★", "") for text in texts}
    assert "cluster" in {text.replace(" ★", "") for text in texts}
    assert any("† marks scores of cut texts" in text and "unified 12.0%, cluster 1.0%" in text.replace("\n", " ") for text in texts)


def test_where_nothing_was_cut_nothing_is_said() -> None:
    comparison = compared(rows({"unified": 0, "cluster": 2}))
    assert "†" not in "".join(text.get_text() for text in compose(comparison, "mine").findobj(Text))
    assert "cut" not in comparison.sentence.lower()
    assert "†" not in markdown(comparison)


def test_answers_that_were_stored_without_the_counts_are_not_counted() -> None:
    old = [replace(row, scores={"rouge_l": row.scores["rouge_l"]}) for row in rows({"unified": 50, "cluster": 0})]
    assert cut_by_method(old) == {}
    assert compared(old).cut == {}
    assert {record["answers_cut"] for record in summary_records(compared(old))} == {None}
