"""Who is champion, and what is said where nobody is: worse than a stranger, no better than the base model, too few to tell."""

import io
from collections.abc import Mapping

import numpy as np
import pytest
from rich.console import Console

from clusterlora.comparison.champion import LEAST_ITEMS, LEAST_PERSONAS
from clusterlora.comparison.compare import compare_methods
from clusterlora.comparison.figure import compose
from clusterlora.comparison.result import Comparison
from clusterlora.comparison.table import console, markdown
from clusterlora.report import figures, sections
from clusterlora.report.data import ReportData
from clusterlora.values import EvaluationRow

SIMILARITY = "embedding_similarity"


def compared(
    means: Mapping[str, float],
    *,
    n_personas: int = 20,
    n_items: int = 3,
    noise: float = 0.02,
    floor: float | None = None,
    same: Mapping[str, str] | None = None,
) -> Comparison:
    """Return the comparison of methods with these true means; `same` are methods that score as another does on every item."""
    rng = np.random.default_rng(0)
    rows: list[EvaluationRow] = []
    for p in range(n_personas):
        for i in range(n_items):
            own = {method: mean + noise * rng.normal() for method, mean in means.items()}
            own |= {method: own[other] for method, other in (same or {}).items()}
            rows += [
                EvaluationRow(method, f"p{p:02d}", p % 2, f"p{p:02d}/{i}", "", "", "", {SIMILARITY: score}) for method, score in own.items()
            ]
    return compare_methods(rows, headline=SIMILARITY, higher_is_better={SIMILARITY: True}, draws=300, rng=rng, floor=floor)


def test_a_method_that_beats_unified_but_not_a_strangers_answer_is_no_champion():
    comparison = compared({"baseline": 0.05, "unified": 0.10, "cluster": 0.14}, floor=0.58)
    assert comparison.champion is None
    assert comparison.no_champion is not None
    assert (comparison.no_champion.reason, comparison.no_champion.method) == ("floor", "cluster")
    assert comparison.sentence.startswith("No champion: cluster (1"), comparison.sentence
    assert "is not shown to be better than the floor of 58.00%, what somebody else's reference scores." in comparison.sentence
    assert "Worse than the floor of 58.00%, what somebody else's reference scores: cluster (1" in comparison.sentence
    assert "★ is the champion" not in markdown(comparison)
    assert compared({"baseline": 0.05, "unified": 0.10, "cluster": 0.14}, floor=0.02).champion == "cluster"


def test_a_mean_above_the_floor_by_luck_alone_is_no_champion_either():
    comparison = compared({"baseline": 0.5, "unified": 0.6}, n_personas=8, n_items=2, noise=0.05, floor=0.595)
    assert comparison.method("unified").mean_low < 0.595
    assert comparison.champion is None


@pytest.mark.parametrize("others", [{}, {"cluster": 0.80}], ids=["unified", "a method that beats unified"])
def test_nothing_is_champion_that_is_not_shown_to_beat_the_base_model(others: Mapping[str, float]):
    comparison = compared({"baseline": 0.80, "unified": 0.7 if others else 0.80, **others})
    assert comparison.champion is None
    assert comparison.no_champion is not None
    assert comparison.no_champion.reason == "base model"
    assert comparison.no_champion.difference is not None
    assert "is not shown to beat the base model without an adapter (" in comparison.sentence
    if others:
        assert "cluster is shown to beat unified (" in comparison.sentence
        assert "p < 0.001; without the control random_cluster nothing tests whether that is because" in comparison.sentence
        with_control = compared({"baseline": 0.80, "unified": 0.7, **others, "random_cluster": 0.80}).sentence
        assert with_control.count("a random partition of the same sizes") == 1, "told once, with the gain that it may explain"
        assert "; that this is because the people of a cluster are alike is not shown: cluster is " in with_control
    assert compared({"baseline": 0.6, "unified": 0.7, **others}).champion == ("cluster" if others else "unified")


def test_where_the_base_model_was_not_compared_the_verdict_says_so():
    for means, champion in (
        ({"unified": 0.7, "cluster": 0.8}, "cluster"),
        ({"unified": 0.7, "cluster": 0.6}, "unified"),
        ({"unified": 0.7}, "unified"),
    ):
        comparison = compared(means)
        assert comparison.champion == champion
        assert f"Whether {champion} beats the base model is not known, as that was not compared." in comparison.sentence
        assert "beats the base model is not known" not in compared({"baseline": 0.5, **means}).sentence


def test_unified_is_no_champion_where_its_mean_is_the_lowest_of_all():
    comparison = compared({"unified": 0.700, "cluster": 0.702, "per_persona": 0.703}, n_personas=8, noise=0.1)
    while comparison.methods[-1].method != "unified":
        pytest.fail("the seed no longer makes unified the lowest; choose other means")
    assert comparison.no_champion is not None
    assert comparison.no_champion.reason == "lowest"
    assert "and its mean is the worst of all" in comparison.sentence


def test_the_best_other_method_is_never_unified_under_another_name():
    means = {"baseline": 0.5, "unified": 0.7, "cluster": 0.6}
    comparison = compared(means, same={"selective_routing": "unified"})
    assert comparison.same_answers == {"selective_routing": "unified"}
    assert "the best other, cluster, differs by -" in comparison.sentence
    assert "On every item selective_routing scores as unified does." in comparison.sentence
    assert "+0.00 [+0.00, +0.00]" not in comparison.sentence
    alone = compared({"unified": 0.7}, same={"hybrid": "unified"})
    assert "every other one scores as it does" in alone.sentence
    assert "+0.00" not in alone.sentence
    tile = sections.verdict(ReportData(study="s", comparison=comparison))
    assert "cluster against unified" in tile


def test_the_runner_up_is_never_the_champion_under_another_name():
    comparison = compared({"baseline": 0.5, "unified": 0.6, "cluster": 0.7, "hybrid": 0.65}, same={"selective_routing": "cluster"})
    assert comparison.champion in ("cluster", "selective_routing")
    assert [contrast.other for contrast in comparison.contrasts if not contrast.is_control] == ["hybrid"]


@pytest.mark.parametrize(("n_personas", "n_items"), [(1, 1), (1, 2), (LEAST_PERSONAS - 1, 9), (LEAST_PERSONAS, 1)])
def test_too_few_people_or_items_get_no_verdict_but_what_is_missing(n_personas: int, n_items: int):
    comparison = compared({"baseline": 0.2, "unified": 0.5, "cluster": 0.8}, n_personas=n_personas, n_items=n_items, floor=0.9)
    assert comparison.champion is None
    total = n_personas * n_items
    size = f"{total} test item{'s' * (total > 1)} of {n_personas} persona{'s' * (n_personas > 1)}"
    assert comparison.sentence.startswith(
        f"No verdict and no champion, as {size} are too few: a verdict takes 6 personas and 12 items. Give "
    )
    assert ("more people" in comparison.sentence) == (n_personas < LEAST_PERSONAS)
    assert ("more test dialogues" in comparison.sentence) == (total < LEAST_ITEMS)
    for word in ("beats", "shown", "told apart", "equivalent", "1 items", "1 personas"):
        assert word not in comparison.sentence, word
    page = markdown(comparison)
    assert "too few" in page
    assert "+0.00 | +0.00" not in page, "no interval where nothing can be told"
    assert "People who share an adapter" not in page
    assert "champion" in sections.verdict(ReportData(study="s", comparison=comparison))
    assert "better" not in sections.methods(comparison).split("<p")[0]
    compose(comparison, "s")


def test_a_method_below_the_floor_looks_like_one_in_table_picture_and_report():
    comparison = compared({"baseline": 0.05, "unified": 0.12, "cluster": 0.60}, floor=0.40)
    assert "| unified | worse than floor |" in markdown(comparison), "the table of the scale, not -0.7"
    assert "(worse than floor)" in next(line for line in markdown(comparison).splitlines() if line.startswith("| unified"))
    out = io.StringIO()
    Console(file=out, width=300).print(console(comparison))
    assert out.getvalue().count("(worse than floor)") == 2
    assert sections.methods(comparison).count("(worse than floor)") == 2
    bars = figures.means(comparison)["data"][0]
    assert bars["base"] == 0, "a bar from the floor would grow the longer the worse"
    assert bars["x"] == sorted(bars["x"])
    assert bars["marker"]["pattern"]["shape"] == ["/", "/", ""]
    patches = compose(comparison, "s").axes[0].patches
    lengths = [patch.get_width() for patch in patches]  # pyrefly: ignore[missing-attribute]
    assert lengths == sorted(lengths, reverse=True), "the best on top, with the longest bar"
    assert [bool(patch.get_hatch()) for patch in patches] == [False, True, True]
    above = compared({"unified": 0.7, "cluster": 0.8}, floor=0.4)
    assert figures.means(above)["data"][0]["base"] == pytest.approx(40), "where all are above it, bars start at the floor"


def test_a_scale_without_room_says_so_and_gives_no_positions():
    comparison = compared({"baseline": 0.50, "unified": 0.580}, noise=0.001, floor=0.578)
    assert comparison.ceiling - 0.578 < comparison.margin
    assert [result.normalised for result in comparison.methods] == [None, None]
    page = markdown(comparison)
    assert "The scale has no room: the ceiling is not better than the floor by more than 1.00." in page
    assert "| unified | no room |" in page or "| unified ★ | no room |" in page
    assert "no room between floor and ceiling" in compose(comparison, "s").axes[0].get_xlabel()
