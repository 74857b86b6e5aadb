"""Metrics of a domain stand beside the headline where the references carry what they measure."""

from collections import Counter
from dataclasses import replace
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusterlora.comparison.compare import compare_methods
from clusterlora.comparison.result import Comparison
from clusterlora.comparison.table import markdown, summary_records
from clusterlora.config import resolve
from clusterlora.errors import BadSettings
from clusterlora.evaluation.domain import LEAST_SHARE, domain_metrics, with_domain_scores
from clusterlora.evaluation.metrics import METRICS
from clusterlora.evaluation.metrics.number_f1 import numbers
from clusterlora.gate.judge import judge
from clusterlora.ports.stores import Stores
from clusterlora.settings import GateSettings, Study
from clusterlora.stages.compare import compare_study
from clusterlora.values import EvaluationRow
from tests.fixtures.stages import LOG, run

BILL = "The AC is in heat mode. Your bill is 1234 euros."
HOME, RECIPE, PROSE = "The lights go to 20%, warm.", "Bake it for 45 minutes at 180 degrees.", "With pleasure, my dear."


@pytest.mark.parametrize(
    ("references", "metrics"),
    [
        ([HOME] * 10, ("parameter_f1", "numeric_accuracy")),
        ([RECIPE] * 10, ("number_f1",)),
        ([PROSE] * 10, ()),
        ([HOME, *[PROSE] * 9], ("parameter_f1", "numeric_accuracy")),
        ([HOME, *[PROSE] * 10], ()),
        (["The lights are warm, the security is armed."] * 10, ("parameter_f1",)),
        (["The TV goes to HDMI1, volume 20."] * 10, ("parameter_f1", "numeric_accuracy")),
        (["The lights are on.", "The lights are off."] * 5, ("parameter_f1",)),
        ([BILL] * 10, ("parameter_f1", "number_f1")),
        ([f"{HOME} {BILL}"] * 10, ("parameter_f1", "numeric_accuracy", "number_f1")),
        ([*[HOME] * 5, *[RECIPE] * 5], ("parameter_f1", "numeric_accuracy", "number_f1")),
        ([*[HOME] * 19, RECIPE], ("parameter_f1", "numeric_accuracy")),
        (["The TV plays Netflix.", "The TV plays Netflix.", *["You owe 30 euros."] * 8], ("parameter_f1", "number_f1")),
        ([], ()),
    ],
    ids=[
        "a home",
        "recipes",
        "neither",
        "a tenth",
        "less than a tenth",
        "parameters without numbers",
        "a number in a word",
        "on and off",
        "other numbers beside words",
        "other numbers beside settings",
        "a home and recipes",
        "hardly any other numbers",
        "words beside bills",
        "nothing",
    ],
)
def test_the_metrics_of_a_domain_are_those_that_a_tenth_of_the_references_carry(references: list[str], metrics: tuple[str, ...]) -> None:
    assert domain_metrics(references) == metrics
    assert pytest.approx(0.1) == LEAST_SHARE


@pytest.mark.parametrize(
    ("text", "reference", "score"),
    [
        ("45 minutes at 180", "Bake for 45 minutes at 180 degrees", 1.0),
        ("45 minutes at 200", "45 minutes at 180", 0.5),
        ("1000 g", "1,000 g", 1.0),
        ("7", "7 and 7", pytest.approx(2 / 3)),
        ("none", "none", 1.0),
        ("3", "none", 0.0),
        ("none", "3", 0.0),
        ("1.5 l", "15 l", 0.0),
        ("-5 degrees", "5 degrees", 0.0),
        ("\u22125 degrees", "-5 degrees", 1.0),
        ("1,5 l", "1.5 l", 1.0),
        ("3.0", "3", 1.0),
        ("\u06f2\u06f0 degrees", "20 degrees", 1.0),
        ("10-15", "15 to 10", 1.0),
    ],
)
def test_numbers_are_compared_as_a_multiset(text: str, reference: str, score: float) -> None:
    (row,) = with_domain_scores([EvaluationRow("m", "p", 0, "i", "", reference, text, {})], ("number_f1",))
    assert row.scores["number_f1"] == score


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1,234,567 of 1,23 and 2.5", ["1234567", "1.23", "2.5"]),
        ("1.234.567,5 and 1,234,567.5", ["1234567.5", "1234567.5"]),
        ("1.234,5 and 1,234.5", ["1234.5", "1234.5"]),
        ("1,000 but 0,125 and 1234,567", ["1000", "0.125", "1234.567"]),
        ("1.000", ["1"]),
        ("1'000, 1\u2019000, 1_000, 1\u00a0000 and 1\u202f000", ["1000"] * 5),
        ("1 000", ["1", "0"]),
        ("1,2,3 on 30.11.2026 at 7:30", ["1", "2", "3", "30", "11", "2026", "7", "30"]),
        ("12,34,567 and 1,234'567 and 5'10", ["12", "34", "567", "1", "234", "567", "5", "10"]),
        ("-5, (-6), -$7, $-8, -.5 and .25", ["-5", "-6", "-7", "-8", "-0.5", "0.25"]),
        ("10-15, HDMI-1, f(x)-3, - 4, wait...5", ["10", "15", "1", "3", "4", "5"]),
        ("\u0967\u0968, \u06f2\u06f0, \uff13, \u0661\u066c\u0662\u0663\u0664\u066b\u0665", ["12", "20", "3", "1234.5"]),
        ("none at all", []),
    ],
)
def test_numbers_are_read_by_their_value(text: str, values: list[str]) -> None:
    assert numbers(text) == Counter(map(Decimal, values))


@given(st.text(alphabet="0123456789٣.,'_-\u2212\u066b\u066c $x"))
def test_every_run_of_digits_is_in_a_number(text: str) -> None:
    assert bool(numbers(text)) == any(map(str.isdigit, text))


@given(st.decimals(-(10**12), 10**12, places=2))
def test_a_number_is_read_back_as_english_and_german_write_it(value: Decimal) -> None:
    english = f"{value:,}"
    german = english.translate(str.maketrans(",.", ".,"))
    assert numbers(f"It is {english}, that is {german}.") == {value: 2}


def test_scores_that_a_row_has_are_kept() -> None:
    (row,) = with_domain_scores([EvaluationRow("m", "p", 0, "i", "", HOME, PROSE, {"parameter_f1": 0.25})], ("parameter_f1",))
    assert row.scores == {"parameter_f1": 0.25}


def compared(
    beside: tuple[str, ...] = ("parameter_f1", "numeric_accuracy"),
    *,
    second_headline: str | None = None,
    cluster: float = 0.8,
    others: tuple[tuple[str, float, str], ...] = (),
) -> Comparison:
    """Return a comparison in which `cluster` sets every number wrongly, and sounds better than unified unless its mean says otherwise.

    Methods of one mean score alike on every item.
    """
    methods = (("baseline", 0.2, PROSE), ("unified", 0.5, HOME), ("cluster", cluster, "The lights go to 90%, warm."), *others)
    noise = {mean: np.random.default_rng(number).normal(0, 0.01, (10, 3)) for number, mean in enumerate({m: None for _, m, _ in methods})}
    rows = [
        EvaluationRow(method, f"p{person}", person % 2, f"p{person}/{item}", "", HOME, text, {"rouge_l": mean + noise[mean][person, item]})
        for method, mean, text in methods
        for person in range(10)
        for item in range(3)
    ]
    names = ("rouge_l", *beside)
    return compare_methods(
        with_domain_scores(rows, beside),
        headline="rouge_l",
        higher_is_better={name: METRICS[name].higher_is_better for name in names},
        draws=200,
        rng=np.random.default_rng(0),
        beside=beside,
        second_headline=second_headline,
    )


def test_an_answer_that_sounds_right_and_sets_the_wrong_number_is_told_beside_the_headline() -> None:
    comparison = compared()
    assert comparison.champion == "cluster", "the headline decides"
    cluster = comparison.method("cluster")
    assert {name: difference.outcome for name, difference in cluster.beside.items()} == {
        "parameter_f1": "equivalent",
        "numeric_accuracy": "worse",
    }
    assert (
        "Beside it, cluster against unified: parameter F1 100.00% (+0.00 points [+0.00, +0.00], p = 1.000: equivalent within 1.00 points); "
        "numeric accuracy 0.00% (-100.00 points [-100.00, -100.00], p = 0.002: shown to be worse)."
    ) in comparison.sentence


def test_they_stand_next_to_the_headline_in_the_table_and_with_their_differences_in_the_file() -> None:
    comparison = compared()
    header = next(line for line in markdown(comparison).splitlines() if line.startswith("| method |"))
    assert header.startswith("| method | rouge_l | parameter_f1 | numeric_accuracy | vs_unified |")
    assert header.count("numeric_accuracy") == 1
    records = {record["method"]: record for record in summary_records(comparison)}
    assert len({tuple(record) for record in records.values()}) == 1, "every row of the file has the same columns"
    assert records["cluster"]["numeric_accuracy_vs_unified"] == -1.0
    assert records["cluster"]["numeric_accuracy_outcome"] == "worse"
    assert records["unified"]["numeric_accuracy_vs_unified"] is None


def test_metrics_beside_the_headline_change_none_of_its_numbers() -> None:
    with_them, without = compared(), compared(())
    for one, other in zip(with_them.methods, without.methods, strict=True):
        assert (one.method, one.vs_reference, one.mean_low, one.mean_high) == (
            other.method,
            other.vs_reference,
            other.mean_low,
            other.mean_high,
        )
    assert "Beside it" not in without.sentence


@pytest.mark.whole
def test_a_champion_is_not_worse_on_the_second_headline() -> None:
    comparison = compared(second_headline="numeric_accuracy")
    assert comparison.champion == "unified"
    assert "cluster is shown to beat unified" in comparison.sentence
    assert "p = 0.002: shown to be worse, on the second headline). That is why cluster is not champion." in comparison.sentence
    assert compared(second_headline="parameter_f1").champion == "cluster", "equivalent is not worse"


def test_what_is_told_beside_the_headline_is_of_the_method_that_the_verdict_names() -> None:
    alias = ("hybrid", 0.5, HOME)
    comparison = compared(cluster=0.3, others=(alias,))
    assert comparison.same_answers == {"hybrid": "unified"}
    assert [result.method for result in comparison.methods][:2] in (["unified", "hybrid"], ["hybrid", "unified"])
    assert "the best other, cluster, differs by -" in comparison.sentence
    assert "Beside it, cluster against unified" in comparison.sentence
    assert "hybrid against" not in comparison.sentence, "that is unified under another name"


def test_a_method_that_beats_nobody_is_not_said_to_fail_on_the_second_headline_alone() -> None:
    comparison = compared(second_headline="numeric_accuracy", cluster=0.3)
    assert comparison.champion == "unified"
    assert "shown to be worse, on the second headline)" in comparison.sentence
    assert "That is why" not in comparison.sentence


def gains(mean: float, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {f"p{person}": mean + rng.normal(0, 0.02, size=6) for person in range(16)}


@pytest.mark.parametrize(("on_second", "passed"), [(0.8, True), (0.6, False)])
def test_a_gate_that_asks_for_both_headlines_passes_only_what_gains_on_both(on_second: float, passed: bool) -> None:
    settings = GateSettings(worst_persona=None, second_headline=True)
    sides = gains(0.8, 0), gains(0.7, 1)
    second = (gains(on_second, 2), gains(0.7, 3), METRICS["rouge_l"])
    verdict = judge(*sides, settings, rung="own", adapter="a", rng=np.random.default_rng(0), second=second)
    assert verdict.passed == passed
    (criterion,) = [one for one in verdict.criteria if one.name == "second_headline"]
    assert criterion.passed == passed
    assert criterion.value == pytest.approx(on_second - 0.7, abs=0.02)
    unasked = replace(settings, second_headline=False)
    assert judge(*sides, unasked, rung="own", adapter="a", rng=np.random.default_rng(0), second=second).passed


@pytest.mark.whole
def test_the_gate_of_a_study_judges_the_second_headline_on_val(seven: Study, stores: Stores) -> None:
    study = replace(
        seven,
        gate=replace(seven.gate, second_headline=True, ladder=()),
        evaluation=replace(seven.evaluation, second_headline="rouge_l"),
    )
    run(study, stores)
    (verdict,) = stores.studies.verdicts(study.name)
    assert "second_headline" in {criterion.name for criterion in verdict.criteria}
    comparison = compare_study(study.name, stores, LOG)
    assert comparison.beside == ("rouge_l", "parameter_f1", "numeric_accuracy")
    assert comparison.second_headline == "rouge_l"


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"evaluation.second_headline": "embedding_similarity"}, "is the headline already"),
        ({"evaluation.second_headline": "chrf"}, "evaluation.second_headline = 'chrf': not measured; add it to evaluation.metrics"),
        ({"gate.second_headline": True}, "evaluation.second_headline names no metric"),
        (
            {"gate.second_headline": True, "evaluation.second_headline": "nll"},
            "of which more is better, not nll",
        ),
    ],
)
def test_a_second_headline_that_cannot_be_asked_for_is_refused(settings: dict[str, object], problem: str) -> None:
    with pytest.raises(BadSettings, match=problem):
        resolve(overrides=settings)
