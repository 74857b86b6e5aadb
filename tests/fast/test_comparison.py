"""The comparison: recomputed independently, fair to every method, and not fooled by chance."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.text import Text
from rich.console import Console
from scipy import stats

from clusterlora.comparison.compare import compare_methods
from clusterlora.comparison.figure import compose, draw
from clusterlora.comparison.result import Comparison, PairedDifference
from clusterlora.comparison.table import console, markdown, write_tables
from clusterlora.errors import BadData, BadSettings
from clusterlora.evaluation.statistics import holm
from clusterlora.methods import controls
from clusterlora.values import EvaluationRow

GOLDEN = Path(__file__).parents[1] / "golden"
METRIC_DIRECTIONS = {"embedding_similarity": True, "nll": False, "rouge_l": True}
FIVE = {"baseline": 0.56, "unified": 0.79, "per_persona": 0.72, "cluster": 0.82, "selective_routing": 0.795}
ELEVEN = FIVE | {"few_shot": 0.66, "hybrid": 0.80, "cluster_hybrid": 0.825, "prefix": 0.57, "merge": 0.70, "random_partition": 0.785}


def evaluation(
    means: Mapping[str, float], sizes: Sequence[int] = (4, 8, 6), *, n_items: int = 3, seed: int = 0, noise: float = 0.05
) -> list[EvaluationRow]:
    """Rows of methods with the given true means, on personas that differ and items that differ."""
    rng = np.random.default_rng(seed)
    rows = []
    for number, cluster in enumerate(np.repeat(np.arange(len(sizes)), sizes).tolist()):
        persona = rng.normal(0, 0.04)
        for item in range(n_items):
            difficulty = rng.normal(0, 0.06)
            for method, mean in means.items():
                similarity = float(np.clip(mean + persona + difficulty + rng.normal(0, noise), 0, 1))
                scores = {"embedding_similarity": similarity, "nll": 3 - 2 * similarity, "rouge_l": similarity / 2}
                persona_id = f"persona_{number:03d}"
                rows.append(
                    EvaluationRow(
                        method, persona_id, cluster, f"{persona_id}/{item}", "Movie time", "Lights at 20.", "Lights at 30.", scores
                    )
                )
    return rows


def compared(rows: Sequence[EvaluationRow], **changes: Any) -> Comparison:
    arguments: dict[str, Any] = {
        "headline": "embedding_similarity",
        "higher_is_better": METRIC_DIRECTIONS,
        "draws": 500,
        "floor": 0.31,
    } | changes
    return compare_methods(rows, rng=np.random.default_rng(0), **arguments)


def cross_fitted(rows: Sequence[EvaluationRow], methods: Sequence[str]) -> float:
    """Each persona's best method on every other item, scored on the items between, and the other way round."""
    frame: Any = pd.DataFrame(
        [{"method": r.method, "persona": r.persona_id, "item": r.item_id, "s": r.scores["embedding_similarity"]} for r in rows]
    )
    items = frame.pivot(index=["persona", "item"], columns="method", values="s")[list(methods)]
    scores = []
    for _, own in items.groupby("persona"):
        halves = own.iloc[::2].mean(), own.iloc[1::2].mean()
        scores.append(own.iloc[0].mean() if len(own) == 1 else np.mean([score[pick.idxmax()] for pick, score in (halves, halves[::-1])]))
    return float(np.mean(scores))


def test_every_number_agrees_with_an_independent_recomputation():
    rows = evaluation(FIVE)
    comparison = compared(rows)
    frame: Any = pd.DataFrame([{"method": r.method, "persona": r.persona_id, "cluster": r.cluster, **r.scores} for r in rows])
    by_persona = frame.groupby(["persona", "cluster", "method"])[list(METRIC_DIRECTIONS)].mean().reset_index()
    wide = by_persona.pivot(index="persona", columns="method", values="embedding_similarity")
    p_values = {method: stats.wilcoxon(wide[method] - wide["unified"])[1] for method in wide if method != "unified"}
    for result in comparison.methods:
        own = by_persona[by_persona.method == result.method]
        for metric in METRIC_DIRECTIONS:
            assert result.means[metric] == pytest.approx(own[metric].mean())
        assert result.by_cluster == pytest.approx(own.groupby("cluster").embedding_similarity.mean().to_dict())
        assert result.by_persona == pytest.approx(wide[result.method].to_dict())
        assert result.worst_persona_id == wide[result.method].idxmin()
        assert result.worst_persona == pytest.approx(wide[result.method].min())
        assert result.p5 == pytest.approx(wide[result.method].quantile(0.05))
        assert result.mean_low < result.means["embedding_similarity"] < result.mean_high
        if result.method == "unified":
            assert result.vs_reference is None
            continue
        difference = result.vs_reference
        assert difference is not None
        deltas = wide[result.method] - wide["unified"]
        assert difference.mean == pytest.approx(deltas.mean())
        assert difference.ci_low < difference.mean < difference.ci_high
        assert difference.p == pytest.approx(p_values[result.method])
        assert difference.p_holm >= difference.p
        assert difference.win_rate == (deltas > 0).mean()
        assert difference.win_low < difference.win_rate + 1e-12
        assert difference.win_high > difference.win_rate - 1e-12
    assert [result.method for result in comparison.methods] == wide.mean().sort_values(ascending=False).index.tolist()
    assert comparison.oracle == pytest.approx(cross_fitted(rows, list(wide)))
    assert (comparison.n_personas, comparison.n_items, comparison.n_personas_left_out) == (18, 54, 0)
    assert comparison.cluster_sizes == {0: 4, 1: 8, 2: 6}


def test_personas_weigh_the_same_however_many_items_they_have():
    rows = [r for r in evaluation(FIVE) if r.persona_id != "persona_000" or r.item_id.endswith("/0")]
    unified = compared(rows).method("unified")
    assert unified.means["embedding_similarity"] == pytest.approx(np.mean(list(unified.by_persona.values())))


def test_a_method_that_is_really_better_becomes_champion():
    comparison = compared(evaluation(FIVE, (10, 20, 10)))
    assert comparison.champion == "cluster"
    assert comparison.sentence.startswith("cluster beats unified: embedding similarity 8")
    assert "p < 0.001" in comparison.sentence


def test_without_any_difference_no_other_method_than_unified_is_champion():
    champions = [
        compared(evaluation(dict.fromkeys(("unified", "cluster", "per_persona", "hybrid"), 0.8), (20,), n_items=3, seed=seed)).champion
        for seed in range(80)
    ]
    assert sum(champion in ("unified", None) for champion in champions) >= 76
    assert champions.count("unified") > 40, "where it is not the lowest of four, by luck"


def test_a_lucky_mean_does_not_make_a_champion():
    comparison = compared(evaluation({"unified": 0.8, "cluster": 0.8}, (6,), seed=1, noise=0.15), floor=None)
    assert comparison.methods[0].method == "cluster"
    assert comparison.champion is None, "unified is the lowest of two"
    assert "No method is shown to beat unified (embedding similarity " in comparison.sentence
    assert "the best other, cluster, differs by +" in comparison.sentence


def test_five_personas_are_too_few_for_a_champion_however_large_the_gain():
    comparison = compared(evaluation({"unified": 0.5, "cluster": 0.8}, (5,)))
    difference = comparison.method("cluster").vs_reference
    assert difference is not None
    assert difference.ci_low > 0
    assert difference.p_holm == 2 / 2**5
    assert comparison.champion is None


def test_a_method_that_answers_like_unified_ties_and_never_wins():
    rows = [r for r in evaluation(FIVE) if r.method == "unified"]
    comparison = compared(rows + [replace(r, method="copy") for r in rows])
    difference = comparison.method("copy").vs_reference
    assert difference is not None
    assert (difference.mean, difference.p, difference.win_rate, difference.tie_rate) == (0, 1, 0, 1)
    assert comparison.champion == "unified"


@settings(max_examples=10, deadline=None)
@given(st.randoms(use_true_random=False))
def test_the_order_of_the_rows_changes_nothing(random):
    rows = evaluation(FIVE, (2, 3))
    shuffled = list(rows)
    random.shuffle(shuffled)
    assert compared(shuffled, draws=100) == compared(rows, draws=100)


def test_renaming_personas_changes_no_statistic():
    rows = evaluation(FIVE)
    renamed = [replace(r, persona_id=f"z/{r.persona_id}", item_id=f"y{r.item_id}") for r in rows]
    before, after = compared(rows), compared(renamed)
    assert [m.vs_reference for m in before.methods] == [m.vs_reference for m in after.methods]


def test_when_lower_is_better_the_lowest_wins():
    comparison = compared(evaluation(FIVE, (10, 20, 10)), headline="nll", floor=None)
    cluster = comparison.method("cluster")
    assert comparison.champion == "cluster"
    assert comparison.methods[0].method == "cluster"
    assert cluster.vs_reference is not None
    assert cluster.vs_reference.mean < 0
    assert cluster.vs_reference.win_rate > 0.6
    assert cluster.worst_persona == max(cluster.by_persona.values())
    assert cluster.vs_reference.outcome == "better"
    assert comparison.method("baseline").vs_reference.outcome == "worse"  # pyright: ignore[reportOptionalMemberAccess]


def test_the_ceiling_takes_the_best_method_of_each_item_and_bounds_everything():
    comparison = compared(evaluation(FIVE))
    assert comparison.ceiling >= max(comparison.oracle, *(result.means["embedding_similarity"] for result in comparison.methods))
    lower_is_better = compared(evaluation(FIVE), headline="nll", floor=None)
    assert lower_is_better.ceiling <= min(lower_is_better.oracle, *(result.means["nll"] for result in lower_is_better.methods))


def test_the_oracle_is_not_better_than_every_method_by_picking_on_the_items_it_is_scored_on():
    alike = evaluation(
        dict.fromkeys(("selective_routing", "unified", "cluster", "per_persona", "hybrid"), 0.8), (60,), n_items=4, noise=0.15
    )
    comparison = compared(alike)
    means = [result.means["embedding_similarity"] for result in comparison.methods]
    picked_on_the_same_items = np.mean([max(r.by_persona[p] for r in comparison.methods) for p in comparison.cluster_by_persona])
    assert picked_on_the_same_items > max(means) + 0.03
    assert comparison.oracle < max(means) + 0.01, "nothing distinguishes the methods, so nothing can be picked"
    assert comparison.routing is not None
    assert comparison.routing.oracle < max(means) + 0.01
    planted = [
        replace(r, scores={**r.scores, "embedding_similarity": 0.9 if (r.method == "hybrid") == (r.persona_id < "persona_030") else 0.5})
        for r in alike
        if r.method in ("hybrid", "unified")
    ]
    assert compared(planted).oracle == pytest.approx(0.9), "who is served best by what is found where it is so"


def test_the_normalised_score_is_0_at_the_floor_and_1_at_the_ceiling():
    comparison = compared(evaluation(FIVE))
    for result in comparison.methods:
        expected = (result.means["embedding_similarity"] - 0.31) / (comparison.ceiling - 0.31)
        assert result.normalised == pytest.approx(expected)
    alone = compared(evaluation({"unified": 0.8}))
    assert alone.methods[0].normalised == pytest.approx(1.0)
    at_the_floor = compared(evaluation({"unified": 0.8}), floor=alone.methods[0].means["embedding_similarity"])
    assert at_the_floor.methods[0].normalised is None, "a scale without length has no positions"
    assert compared(evaluation(FIVE), floor=None).methods[0].normalised is None


def test_routing_is_bracketed_by_a_blind_and_a_perfect_choice_among_the_other_methods():
    comparison = compared(evaluation(FIVE))
    others = [result for result in comparison.methods if result.method != "selective_routing"]
    assert comparison.routing is not None
    assert comparison.routing.random == pytest.approx(np.mean([result.means["embedding_similarity"] for result in others]))
    assert comparison.routing.oracle == pytest.approx(cross_fitted(evaluation(FIVE), [result.method for result in others]))
    with_controls = compared(evaluation(FIVE) + evaluation(dict.fromkeys(controls(), 0.95)))
    assert with_controls.routing == comparison.routing, "controls are not among what routing may choose"
    assert compared(evaluation({"unified": 0.8, "cluster": 0.8})).routing is None
    assert compared(evaluation({"selective_routing": 0.8, "unified_longer": 0.9})).routing is None
    assert compared(evaluation({"selective_routing": 0.8})).routing is None


def test_after_a_refused_gate_the_common_personas_are_compared_and_the_sentence_says_so():
    rows = [r for r in evaluation(FIVE, (16, 30, 20)) if r.method != "cluster" or r.cluster == 0]
    comparison = compared(rows)
    assert (comparison.n_personas, comparison.n_personas_left_out, comparison.n_items) == (16, 50, 48)
    assert comparison.cluster_sizes == {0: 16}
    assert comparison.sentence.endswith("Measured on 48 items of 16 personas, the ones of 66 that every method answers.")


def test_one_method_alone_is_reported():
    comparison = compared(evaluation({"baseline": 0.5}))
    assert comparison.champion is None
    assert comparison.reference is None
    assert "baseline is the only method: " in comparison.sentence
    assert compared(evaluation({"cluster": 0.5})).sentence.startswith("cluster is the only method: ")


def test_without_unified_the_best_mean_is_champion():
    comparison = compared(evaluation({"baseline": 0.5, "cluster": 0.6}))
    assert comparison.champion == "cluster"
    assert comparison.method("cluster").vs_reference is None
    assert "no reference to test it against" in comparison.sentence


def test_without_a_reference_the_tables_per_person_and_cluster_leave_the_difference_empty(tmp_path: Path):
    rows = evaluation({"baseline": 0.5, "cluster": 0.6})
    write_tables(compared(rows), rows, tmp_path)
    for name in ("per_persona.csv", "per_cluster.csv"):
        written = pd.read_csv(tmp_path / name)
        assert written.champion_vs_unified.isna().all()
        assert written.cluster.notna().all(), "the method called cluster has its own column"


def test_the_reference_can_be_another_method():
    comparison = compared(evaluation(FIVE), reference="baseline")
    assert comparison.method("baseline").vs_reference is None
    assert "vs_baseline" in markdown(comparison)


def test_unfair_or_broken_rows_are_refused():
    rows = evaluation(FIVE)
    lacking = [r for r in rows if (r.method, r.item_id) != ("cluster", "persona_002/1")]
    with pytest.raises(
        BadData, match=r"method cluster lacks 1 of 54 items that others answered, first 'persona_002/1' of persona 'persona_002'"
    ):
        compared(lacking)
    with pytest.raises(BadData, match="method baseline answered item 'persona_000/0' of persona 'persona_000' twice"):
        compared([*rows, rows[0]])
    with pytest.raises(BadData, match="method baseline has no nll for item"):
        compared([replace(rows[0], scores={"embedding_similarity": 0.5, "rouge_l": 0.1}), *rows[1:]])
    with pytest.raises(BadData, match="method baseline has nll=nan for item"):
        compared([replace(rows[0], scores={**rows[0].scores, "nll": float("nan")}), *rows[1:]])
    with pytest.raises(BadData, match="'persona_000' is in clusters 3 and 0"):
        compared([replace(rows[0], cluster=3), *rows[1:]])
    with pytest.raises(BadData, match="no persona was answered by all of a, b"):
        compared([replace(rows[0], method="a"), replace(rows[-1], method="b")])
    with pytest.raises(BadData, match="no evaluation rows"):
        compared([])
    with pytest.raises(BadSettings, match="headline metric 'chrf' is not among"):
        compared(rows, headline="chrf")


def test_the_summary_reads_like_the_golden_one():
    assert markdown(compared(evaluation(FIVE), floor_same_prompt=0.45)) == (GOLDEN / "summary.md").read_text(encoding="utf-8")


def test_the_files_hold_the_measured_numbers(tmp_path: Path):
    rows = evaluation(FIVE)
    rows = [replace(row, seed=2) if row.method == rows[0].method else row for row in rows]
    rows[0] = replace(rows[0], text='He said "on",\nthen | left', prompt="Größe; 5")
    comparison = compared(rows)
    write_tables(comparison, rows, tmp_path / "results")
    files = ["per_cluster.csv", "per_persona.csv", "rows.csv", "summary.csv", "summary.json", "summary.md"]
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == files

    summary = pd.read_csv(tmp_path / "results" / "summary.csv").set_index("method")
    assert summary.columns[:4].tolist() == ["embedding_similarity", "vs_unified", "ci_low", "ci_high"]
    assert {"win_rate", "worst_persona", "nll", "rouge_l"} <= set(summary.columns)
    assert summary.embedding_similarity.to_dict() == {m.method: m.means["embedding_similarity"] for m in comparison.methods}
    assert summary.vs_unified["unified"] == 0
    assert summary.ci_low.isna().to_dict() == {m.method: m.method == "unified" for m in comparison.methods}

    document = json.loads((tmp_path / "results" / "summary.json").read_text(encoding="utf-8"))
    assert document["champion"] == comparison.champion
    assert document["methods"][0]["by_persona"] == comparison.methods[0].by_persona

    with (tmp_path / "results" / "rows.csv").open(encoding="utf-8", newline="") as file:
        raw = list(csv.DictReader(file))
    assert len(raw) == len(rows)
    assert raw[0]["text"] == rows[0].text
    assert (raw[0]["seed"], raw[-1]["seed"]) == ("2", "0")
    assert float(raw[-1]["nll"]) == rows[-1].scores["nll"]


def test_the_results_folder_can_be_recomputed_from_its_own_rows(tmp_path: Path):
    """Everything deterministic in the tables, once more with pandas from rows.csv; the bootstrap has tests of its own."""
    rows = [r for r in evaluation(FIVE, (4, 8, 6), n_items=4) if r.persona_id != "persona_003" or not r.item_id.endswith("/0")]
    write_tables(compared(rows, floor_same_prompt=0.5), rows, tmp_path)
    raw: Any = pd.read_csv(tmp_path / "rows.csv")
    summary: Any = pd.read_csv(tmp_path / "summary.csv").set_index("method")
    document = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    by_persona: Any = pd.read_csv(tmp_path / "per_persona.csv").set_index("persona_id")
    by_cluster: Any = pd.read_csv(tmp_path / "per_cluster.csv").set_index("cluster_id")

    items = raw.pivot(index=["persona_id", "item_id"], columns="method", values="embedding_similarity")
    means = items.groupby("persona_id").mean()
    n_items = items.groupby("persona_id").size()
    cluster = raw.groupby("persona_id").cluster.first()
    ceiling = items.max(axis=1).groupby("persona_id").mean().mean()
    deltas = means.sub(means["unified"], axis=0)
    champion = summary.index[summary.champion].item()
    pd.testing.assert_frame_equal(by_persona[list(FIVE)], means[list(FIVE)], check_names=False)
    assert by_persona.n_items.to_dict() == n_items.to_dict()
    assert by_persona.cluster_id.to_dict() == cluster.to_dict()
    assert by_persona.champion_vs_unified.to_dict() == pytest.approx(deltas[champion].to_dict())
    pd.testing.assert_frame_equal(by_cluster[list(FIVE)], means.groupby(cluster).mean()[list(FIVE)], check_names=False)
    assert by_cluster.n_items.to_dict() == n_items.groupby(cluster).sum().to_dict()
    assert by_cluster.n_personas.to_dict() == cluster.value_counts().to_dict()

    z2 = stats.norm.ppf(0.975) ** 2
    for method, row in summary.iterrows():
        assert row.embedding_similarity == pytest.approx(means[method].mean())
        assert row.nll == pytest.approx(raw[raw.method == method].groupby("persona_id").nll.mean().mean())
        assert (row.worst_persona, row.worst_persona_id) == (pytest.approx(means[method].min()), means[method].idxmin())
        assert row.p5 == pytest.approx(means[method].quantile(0.05))
        assert row.normalised == pytest.approx((means[method].mean() - 0.31) / (ceiling - 0.31))
        noise = ((items[method] - means[method].reindex(items.index, level=0)) ** 2).sum() / (len(items) - len(means)) / n_items
        between = max(means[method].var() - noise.mean(), 0)
        shrunken = means[method].mean() + between / (between + noise) * (means[method] - means[method].mean())
        assert row.worst_shrunken == pytest.approx(shrunken.min())
        assert row.vs_unified == pytest.approx(deltas[method].mean())
        if method != "unified":
            assert row.win_rate == (deltas[method] > 0).mean()
            # Wilson's bounds are the shares whose distance to the observed one is z standard errors of their own.
            for bound in (row.win_low, row.win_high):
                assert (row.win_rate - bound) ** 2 == pytest.approx(z2 * bound * (1 - bound) / len(means), abs=1e-9)
    assert document["ceiling"] == pytest.approx(ceiling)
    assert document["oracle"] == pytest.approx(cross_fitted(rows, list(means)))
    others = means.drop(columns="selective_routing")
    expected = {"method": "selective_routing", "random": others.mean().mean(), "oracle": cross_fitted(rows, list(others))}
    assert document["routing"] == pytest.approx(expected)
    assert (document["floor"], document["floor_same_prompt"]) == (0.31, 0.5)


def test_a_persona_id_cannot_break_out_of_the_summary():
    rows = [replace(r, persona_id="a|b\n\\|c <b>") if r.persona_id == "persona_000" else r for r in evaluation({"unified": 0.8}, (2,))]
    rows = [replace(r, scores={**r.scores, "embedding_similarity": 0.1}) if "|" in r.persona_id else r for r in rows]
    row = next(line for line in markdown(compared(rows)).splitlines() if line.startswith("| unified"))
    assert row.endswith("| a\\|b &#92;\\|c &lt;b> |")


def test_the_console_shows_every_method_and_the_verdict():
    out = io.StringIO()
    comparison = compared(evaluation(FIVE))
    Console(file=out, width=120).print(console(comparison))
    shown = out.getvalue()
    assert all(method in shown for method in FIVE)
    assert f"{comparison.champion} ★" in shown
    assert "Measured on 54 items of 18 personas." in shown
    assert f"floor 31.00 · oracle {100 * comparison.oracle:.2f} · ceiling {100 * comparison.ceiling:.2f} · random routing" in shown


@pytest.mark.parametrize(
    ("means", "sizes", "headline", "floor"),
    [
        (FIVE, (16, 52, 25, 35, 72), "embedding_similarity", 0.31),
        (ELEVEN, (16, 52, 25, 35, 72), "embedding_similarity", 0.31),
        (ELEVEN, (6,) * 12, "embedding_similarity", None),
        ({"baseline": 0.56, "unified": 0.79, "cluster": 0.78}, (16,), "embedding_similarity", 0.31),
        ({"baseline": 0.56, "cluster": 0.78}, (4, 5), "embedding_similarity", None),
        ({"baseline": 0.56}, (2,), "embedding_similarity", 0.6),
        (FIVE, (4, 5), "nll", None),
    ],
    ids=["five", "eleven", "twelve-clusters", "refused-gate", "no-unified", "below-floor", "nll"],
)
def test_no_two_labels_of_the_figure_overlap(means: Mapping[str, float], sizes: Sequence[int], headline: str, floor: float | None):
    comparison = compared(evaluation(means, sizes), headline=headline, floor=floor)
    figure = compose(comparison, "study $mission_1$")
    figure.canvas.draw()
    for axes in figure.axes:
        labels = cast("list[Text]", axes.findobj(Text))
        boxes = [(label.get_text(), label.get_window_extent()) for label in labels if label.get_text() and label.get_visible()]
        for index, (text, box) in enumerate(boxes):
            assert not [other for other, its_box in boxes[index + 1 :] if box.overlaps(its_box)], text
            assert figure.bbox.x0 <= box.x0, text
            assert box.x1 <= figure.bbox.x1, text


def test_the_figure_is_a_png_and_replaces_an_earlier_one(tmp_path: Path):
    path = tmp_path / "figures" / "comprehensive_comparison.png"
    for _ in range(2):
        draw(compared(evaluation(FIVE)), path, "study")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_training_seeds_are_averaged_inside_an_item_before_anything_else():
    first, second = evaluation(FIVE, seed=1), [replace(row, seed=1) for row in evaluation(FIVE, seed=2)]
    once = [row for row in first if row.method == "baseline"] + [row for row in first + second if row.method != "baseline"]
    comparison = compared(once)
    frame = pd.DataFrame(
        [{"method": r.method, "seed": r.seed, "persona": r.persona_id, "s": r.scores["embedding_similarity"]} for r in once]
    )
    for method, own in frame.groupby("method"):
        assert comparison.method(str(method)).means["embedding_similarity"] == pytest.approx(own.s.mean())
    assert comparison.n_items == len([r for r in first if r.method == "baseline"]), "two trainings are not twice the items"
    with pytest.raises(BadData, match="with other training seeds than"):
        compared(once[:-1])


def difference(comparison: Comparison, method: str) -> PairedDifference:
    against = comparison.method(method).vs_reference
    assert against is not None
    return against


def test_a_contrast_has_one_of_three_outcomes_and_an_undecided_one_names_its_detectable_difference():
    means = {"unified": 0.80, "cluster": 0.84, "per_persona": 0.75, "hybrid": 0.80, "few_shot": 0.81}
    few = compared(evaluation(means, (7, 7), n_items=2, noise=0.03))
    many = compared(evaluation(means | {"few_shot": 0.80}, (100, 100), n_items=8, noise=0.03))
    for comparison in (few, many):
        assert (difference(comparison, "cluster").outcome, difference(comparison, "per_persona").outcome) == ("better", "worse")
        assert (
            f"Shown to be worse than unified: per_persona ({100 * difference(comparison, 'per_persona').mean:+.2f})." in comparison.sentence
        )
    assert difference(few, "hybrid").outcome == "undecided"
    assert difference(many, "hybrid").outcome == difference(many, "few_shot").outcome == "equivalent"
    strict = compared(evaluation(means, (7, 7), n_items=2, noise=0.03), margin=0.5)
    assert difference(strict, "hybrid").outcome == "equivalent", "within a margin of 50 points"
    for comparison, outcome in ((few, "undecided (≥"), (many, "equivalent")):
        assert outcome in next(line for line in markdown(comparison).splitlines() if line.startswith("| hybrid"))


def test_a_method_that_is_worse_is_called_worse_where_no_method_wins():
    comparison = compared(evaluation({"unified": 0.80, "cluster": 0.74, "per_persona": 0.70, "hybrid": 0.80}, (20, 20)))
    assert comparison.champion == "unified"
    assert "the best other, hybrid, differs by" in comparison.sentence
    assert "Shown to be worse than unified: cluster (-" in comparison.sentence
    alone = compared(evaluation({"unified": 0.80, "cluster": 0.74}, (20, 20))).sentence
    assert "the best other, cluster, differs by -" in alone
    assert ": shown to be worse." in alone


def test_a_difference_as_large_as_the_margin_is_called_equivalent_at_most_one_time_in_twenty():
    """The other method is worse by the margin; small samples rarely show that, and must not deny it either."""
    rng = np.random.default_rng(3)
    outcomes = []
    for _ in range(300):
        gains = rng.normal(-0.02, 0.05, 12).tolist()
        rows = [
            EvaluationRow(
                method, f"p{p:02d}", p % 2, f"p{p:02d}/0", "", "", "", {"embedding_similarity": 0.7 + gain * (method == "cluster")}
            )
            for p, gain in enumerate(gains)
            for method in ("unified", "cluster")
        ]
        comparison = compare_methods(
            rows, headline="embedding_similarity", higher_is_better={"embedding_similarity": True}, draws=200, rng=rng, margin=0.02
        )
        outcomes.append(difference(comparison, "cluster").outcome)
    assert outcomes.count("equivalent") <= stats.binom.ppf(0.999, 300, 0.05)


def test_a_study_that_is_too_small_says_which_difference_it_shows_four_times_in_five():
    comparison = compared(evaluation({"unified": 0.8, "cluster": 0.8, "hybrid": 0.8}, (20,), n_items=3))
    shown = difference(comparison, "cluster").detectable
    assert shown is not None
    assert f"show a difference of {100 * shown:.2f} points or more four times in five" in comparison.sentence
    hits = [
        difference(
            compared(evaluation({"unified": 0.7, "cluster": 0.7 + shown, "hybrid": 0.7}, (20,), n_items=3, seed=seed), draws=200), "cluster"
        ).outcome
        for seed in range(60)
    ]
    assert 0.6 <= np.mean([outcome == "better" for outcome in hits]) <= 0.97
    six = compared(evaluation({"baseline": 0.3, "unified": 0.5, "cluster": 0.8, "hybrid": 0.5}, (6,)))
    assert difference(six, "cluster").detectable is None
    assert "not told apart, as no difference could be shown with 6 personas" in six.sentence


def test_a_control_or_the_base_model_is_never_champion_however_good():
    rows = evaluation({"baseline": 0.95, "unified": 0.7, "cluster": 0.75, "random_cluster": 0.9, "unified_longer": 0.9}, (20, 20))
    comparison = compared(rows)
    assert comparison.champion is None
    assert "No champion: cluster (" in comparison.sentence
    assert "baseline, which cannot be champion (+" in comparison.sentence
    assert "random_cluster, which cannot be champion (+" in comparison.sentence
    assert compared([r for r in rows if r.method != "baseline"]).champion == "cluster"
    assert compared([r for r in rows if r.method != "unified"]).champion is None, "without a reference the base model wins nothing either"
    assert compared([r for r in rows if r.method in ("cluster", "random_cluster")]).champion == "cluster"
    with pytest.raises(BadData, match="controls alone were answered"):
        compared([r for r in rows if r.method == "random_cluster"])


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 50))
def test_base_model_and_controls_do_not_cost_the_methods_any_power(seed: int):
    rows = evaluation(FIVE | dict.fromkeys(controls(), 0.79), (4, 5), seed=seed)
    alone = compared([r for r in rows if r.method not in (*controls(), "baseline")], draws=100)
    beside = compared(rows, draws=100)
    for method in ("cluster", "per_persona", "selective_routing"):
        assert difference(beside, method).p_holm == difference(alone, method).p_holm
    others = [difference(beside, method) for method in (*controls(), "baseline")]
    assert [d.p_holm for d in others] == pytest.approx(holm(np.array([d.p for d in others])).tolist())


def test_the_champion_and_the_clusters_are_contrasted_with_controls_and_the_champion_with_the_runner_up():
    means = FIVE | {"cluster": 0.83, "hybrid": 0.86, "random_cluster": 0.79, "unified_longer": 0.83}
    comparison = compared(evaluation(means, n_items=6, noise=0.02))
    assert comparison.champion == "hybrid"
    assert [(c.method, c.other, c.is_control) for c in comparison.contrasts] == [
        ("hybrid", "cluster", False),
        ("hybrid", "random_cluster", True),
        ("hybrid", "unified_longer", True),
        ("cluster", "random_cluster", True),
        ("cluster", "unified_longer", True),
    ]
    for contrast in comparison.contrasts:
        means_of_both = [comparison.method(name).means["embedding_similarity"] for name in (contrast.method, contrast.other)]
        assert contrast.difference.mean == pytest.approx(means_of_both[0] - means_of_both[1])
    assert [c.difference.p_holm for c in comparison.contrasts] == holm(np.array([c.difference.p for c in comparison.contrasts])).tolist()
    assert "hybrid beats the runner-up cluster (+" in comparison.sentence
    assert "cluster beats a random partition of the same sizes (+" in comparison.sentence
    longer = comparison.contrast("cluster", "unified_longer")
    assert longer is not None
    assert longer.difference.outcome in ("equivalent", "undecided")
    assert (
        "; is equivalent to unified trained for" in comparison.sentence
        or "; is not told apart from unified trained for" in comparison.sentence
    )
    assert "| hybrid | cluster | runner-up |" in markdown(comparison)


def test_personalisation_is_claimed_only_where_the_control_of_the_claim_is_beaten():
    gain = {"unified": 0.78, "cluster": 0.84}
    apart = compared(evaluation(gain | {"random_cluster": 0.78}, (10, 20)))
    alike = compared(evaluation(gain | {"random_cluster": 0.84}, (10, 20)))
    worse = compared(evaluation(gain | {"random_cluster": 0.90}, (10, 20)))
    first = [comparison.sentence.split(". ")[0] for comparison in (apart, alike, worse)]
    assert all(sentence.startswith("cluster beats unified: ") for sentence in first)
    assert "; and because the people of a cluster are alike: cluster beats a random partition of the same sizes (+" in apart.sentence
    assert "alike is not shown: cluster is not told apart from a random partition of the same sizes (" in alike.sentence
    assert "alike is not shown: cluster is shown to be worse than a random partition of the same sizes (-" in worse.sentence
    assert "; without the control random_cluster nothing tests whether" in compared(evaluation(gain, (10, 20))).sentence
    other = compared(evaluation({"unified": 0.78, "hybrid": 0.84}, (10, 20)))
    assert "; no control of this study tests whether that is because of who the people are." in other.sentence
    own = compared(evaluation({"unified": 0.78, "per_persona": 0.84, "swapped_persona": 0.78}, (10, 20)))
    assert "; and because everybody's adapter has learnt from them: per_persona beats somebody else's personal adapter (+" in own.sentence


def test_tie_and_loss_rates_accompany_every_win_rate():
    rows = [
        r
        for r in evaluation({"unified": 0.8, "cluster": 0.86}, (10, 20), noise=0.02)
        if r.method == "unified" or r.persona_id < "persona_015"
    ]
    rows += [replace(r, method="cluster") for r in rows if r.persona_id >= "persona_015"]
    comparison = compared(rows)
    against = difference(comparison, "cluster")
    assert (against.tie_rate, against.win_rate + against.tie_rate + against.loss_rate) == (0.5, pytest.approx(1.0))
    shares = f"{100 * against.win_rate:.0f} / 50 / {100 * against.loss_rate:.0f}%"
    assert shares in markdown(comparison)
    assert f"equal for 50% and worse for {against.loss_rate:.0%} of the personas" in comparison.sentence
    out = io.StringIO()
    Console(file=out, width=160).print(console(comparison))
    assert shares in out.getvalue()


def test_dependent_personas_of_a_cluster_widen_the_interval_and_disagreeing_clusters_are_reported():
    rows = evaluation({"unified": 0.80, "cluster": 0.80}, (10, 10, 10, 10), noise=0.005)
    gains = {0: 0.06, 1: 0.05, 2: 0.04, 3: -0.03}
    moved = [
        replace(r, scores={**r.scores, "embedding_similarity": r.scores["embedding_similarity"] + gains[r.cluster]})
        if r.method == "cluster"
        else r
        for r in rows
    ]
    comparison = compared(moved)
    against = difference(comparison, "cluster")
    assert against.robust_low is not None
    assert against.robust_high is not None
    assert against.ci_low > 0 > against.robust_low
    assert against.robust_high - against.robust_low > 2 * (against.ci_high - against.ci_low)
    assert against.clusters_disagree
    assert against.by_cluster == pytest.approx(
        {k: comparison.method("cluster").by_cluster[k] - comparison.method("unified").by_cluster[k] for k in gains}
    )
    assert "though not if the people of a cluster share their luck [-" in comparison.sentence
    assert f"by cluster {', '.join(f'{100 * gain:+.2f}' for gain in against.by_cluster.values())}" in comparison.sentence
    one_cluster = difference(compared(evaluation({"unified": 0.8, "cluster": 0.8}, (6,))), "cluster")
    assert (one_cluster.robust_low, one_cluster.robust_high) == (None, None)


def test_the_variance_of_training_seeds_is_in_the_interval():
    rows = evaluation({"baseline": 0.5, "unified": 0.80, "cluster": 0.80}, (20, 20), noise=0.01)
    shift = {0: 0.05, 1: 0.0, 2: 0.04}

    def trained(seed: int) -> list[EvaluationRow]:
        return [
            replace(
                r,
                seed=seed,
                scores={**r.scores, "embedding_similarity": r.scores["embedding_similarity"] + shift[seed] * (r.method == "cluster")},
            )
            for r in rows
            if r.method != "baseline" or seed == 0
        ]

    one, three = compared(rows), compared([row for seed in shift for row in trained(seed)])
    narrow, wide = difference(one, "cluster"), difference(three, "cluster")
    assert wide.ci_high - wide.ci_low > 5 * (narrow.ci_high - narrow.ci_low)
    assert wide.p < 0.001, "over people alone, the gain of these three trainings is sure"
    assert wide.outcome == "undecided"
    assert three.champion == "unified"
    assert wide.detectable is not None
    assert narrow.detectable is not None
    assert wide.detectable > narrow.detectable
    assert difference(three, "baseline").ci_high < -0.2, "what is not trained has no seeds of its own"
    assert "3 trainings each." in three.sentence


def test_the_sentence_says_how_the_gate_ended():
    gate = "The cluster adapters are those of rung lower-lr, which passed the gate after own was refused."
    comparison = compared(evaluation(FIVE), gate=gate)
    assert gate in comparison.sentence
    assert gate in markdown(comparison)
