"""What a comparison writes and draws: tables, files, the console and the figure."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from matplotlib.text import Text
from rich.console import Console
from scipy import stats

from clusterlora.comparison.figure import compose, draw
from clusterlora.comparison.table import console, markdown, write_tables
from tests.fixtures.comparison import ELEVEN, FIVE, GOLDEN, compared, cross_fitted, evaluation


def test_without_a_reference_the_tables_per_person_and_cluster_leave_the_difference_empty(tmp_path: Path):
    rows = evaluation({"baseline": 0.5, "cluster": 0.6})
    write_tables(compared(rows), rows, tmp_path)
    for name in ("per_persona.csv", "per_cluster.csv"):
        written = pd.read_csv(tmp_path / name)
        assert written.champion_vs_unified.isna().all()
        assert written.cluster.notna().all(), "the method called cluster has its own column"


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


@pytest.mark.whole
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
        (FIVE, (4, 5), "nll", 6.9),
    ],
    ids=["five", "eleven", "twelve-clusters", "refused-gate", "no-unified", "below-floor", "nll", "nll-with-floor"],
)
def test_no_two_labels_of_the_figure_overlap(means: Mapping[str, float], sizes: Sequence[int], headline: str, floor: float | None):
    comparison = compared(evaluation(means, sizes), headline=headline, floor=floor)
    figure = compose(comparison, "study $mission_1$")
    figure.canvas.draw()
    for axes in figure.axes:
        labels = axes.findobj(Text)
        boxes = [(label.get_text(), label.get_window_extent()) for label in labels if label.get_text() and label.get_visible()]
        for index, (text, box) in enumerate(boxes):
            assert not [other for other, its_box in boxes[index + 1 :] if box.overlaps(its_box)], text
            assert figure.bbox.x0 <= box.x0, text
            assert box.x1 <= figure.bbox.x1, text


@pytest.mark.parametrize(("score", "floor"), [(0.0, None), (0.5, 0.5)])
def test_methods_that_all_score_the_same_have_a_figure(score: float, floor: float | None):
    rows = [replace(row, scores=dict.fromkeys(row.scores, score)) for row in evaluation(FIVE)]
    compose(compared(rows, floor=floor), "study").canvas.draw()


@pytest.mark.whole
def test_the_figure_is_a_png_and_replaces_an_earlier_one(tmp_path: Path):
    path = tmp_path / "figures" / "comprehensive_comparison.png"
    for _ in range(2):
        draw(compared(evaluation(FIVE)), path, "study")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_without_a_verdict_no_record_says_that_a_method_is_better(tmp_path: Path):
    rows = evaluation({"unified": 0.6, "cluster": 0.9, "random_cluster": 0.6, "per_persona": 0.4}, (4, 4), n_items=1)
    for n_items, outcomes in ((1, {"too few"}), (2, {"better", "worse", "equivalent", "undecided"})):
        more = rows if n_items == 1 else [*rows, *(replace(row, item_id=f"{row.item_id}-b") for row in rows)]
        comparison = compared(more, beside=("nll",))
        write_tables(comparison, more, tmp_path)
        document = json.loads((tmp_path / "summary.json").read_text())
        recorded = [one[key] for one in document["methods"] for key in ("outcome", "nll_outcome") if one[key] is not None]
        recorded += [one["difference"]["outcome"] for one in document["contrasts"]]
        assert len(recorded) >= 7
        assert set(recorded) <= outcomes
        assert any("better" in line for line in (tmp_path / "summary.csv").read_text().splitlines()) == (n_items == 2)
