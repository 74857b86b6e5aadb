"""docs/results.md is computed from finished studies and says which criteria were not met."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import results
from clusterlora.comparison.compare import compare_methods
from clusterlora.comparison.figure import draw
from clusterlora.comparison.null_rate import null_rate
from clusterlora.comparison.table import write_tables
from clusterlora.errors import BadData, UnknownName
from clusterlora.metadata import ComparisonSummary, Cut, TruthAgreement, Tuning
from clusterlora.planning.cut import dialogues_each
from clusterlora.planning.recipes import draw_recipes
from clusterlora.ports.stores import Stores
from clusterlora.results.null_rate import write_null_rate
from clusterlora.settings import ClusteringSettings, DataSettings, Study, SyntheticSettings, prepared
from clusterlora.stages.compare import figure_path
from clusterlora.values import Clustering, Dataset, Dialogue, EvaluationRow, Persona, Split

PEOPLE = tuple(f"p{number:02d}" for number in range(20))
PROMPT_TOKENS = {"few_shot": 150.0}


def finished(name: str, means: Mapping[str, float], stores: Stores) -> None:
    """Leave in the stores what a compared study leaves that the page reads."""
    rng = np.random.default_rng(0)
    study = Study(name=name, data=DataSettings(synthetic=SyntheticSettings(cluster_sizes=(8, 12))))
    stores.studies.create_study(prepared(study, "float32"))
    stores.studies.save_dataset(name, Dataset(tuple(Persona(p, None, ()) for p in PEOPLE)))
    stores.studies.save_clustering(name, Clustering("responses", (PEOPLE[:8], PEOPLE[8:]), (("silhouette", 0.25),)))
    stores.studies.save_metadata(name, TruthAgreement(0.9375))
    stores.studies.add_seconds(name, "train", "unified", 120.0)
    rows = [
        EvaluationRow(method, p, number // 8 % 2, f"{p}/{item}", "ask", "reference", "text", scores)
        for method, mean in means.items()
        for number, p in enumerate(PEOPLE)
        for item in range(4)
        if (
            scores := {
                "embedding_similarity": float(np.clip(mean + rng.normal(0, 0.01), 0, 1)),
                "prompt_tokens": PROMPT_TOKENS.get(method, 50.0),
            }
        )
    ]
    directions = {"embedding_similarity": True, "prompt_tokens": False}
    comparison = compare_methods(rows, headline="embedding_similarity", higher_is_better=directions, draws=200, rng=rng)
    write_tables(comparison, rows, stores.folder(name) / "results")
    draw(comparison, figure_path(stores, name), name)


@pytest.mark.whole
def test_the_page_holds_every_study_and_judges_it_by_the_missions_criteria(stores: Stores, tmp_path: Path) -> None:
    finished("one", {"unified": 0.80, "cluster": 0.845, "few_shot": 0.79, "random_cluster": 0.80}, stores)
    finished("two", {"unified": 0.60, "cluster": 0.60, "hybrid": 0.55}, stores)
    finished("nulls-null-01", {"unified": 0.60, "cluster": 0.60}, stores)
    rate = null_rate([(f"nulls-null-{number:02d}", ComparisonSummary("unified", "Something.")) for number in range(1, 41)])
    stores.folder("nulls").joinpath("results").mkdir(parents=True)
    write_null_rate("nulls", rate, stores)
    page = results.write(["one", "two"], [], ["nulls"], stores, tmp_path / "docs").read_text(encoding="utf-8")
    assert {path.name for path in (tmp_path / "docs").iterdir()} == {"results.md", "one.png", "two.png"}
    one, rest = page.split("\n## two\n")
    two, null = rest.split("\n## nulls: nothing is personal\n")
    assert "**cluster beats unified: embedding similarity 84." in one
    assert "adjusted Rand index with the planted clusters 0.94" in one
    asked = one.split("### What the mission asked")[1]
    verdicts = [line.rsplit("|", 2)[1].strip() for line in asked.splitlines() if line.startswith("| cluster | ")]
    assert verdicts == ["met", "met", "met", "met", "**not met**"], "86 % is hoped for and 84.5 % was reached"
    assert "few_shot reads 150 prompt tokens for an answer, unified 50: 3.0 times as many." in one
    assert "Shown to beat unified: cluster (+4." in one
    assert "cluster against random_cluster: +4." in one
    assert "Shown to do worse than unified: hybrid (-5." in two
    assert "Equivalent to unified within 1.00: cluster (" in two
    assert "- 20 people, invented" in null
    assert "Of 40 studies with permuted labels, in which nothing is personal, 0 claim personalisation" in null
    assert "with everybody's own dialogues" not in null, "that study was not run"
    finished("nulls", {"baseline": 0.40, "unified": 0.60, "cluster": 0.75}, stores)
    stores.studies.save_metadata("nulls", ComparisonSummary("cluster", "cluster beats unified: and so on."))
    again = results.write(["one", "two"], [], ["nulls"], stores, tmp_path / "docs").read_text(encoding="utf-8")
    assert "The same study with everybody's own dialogues says: *cluster beats unified: and so on.* It claims no" in again
    other = results.write(["two"], [], [], stores, tmp_path / "docs").read_text(encoding="utf-8")
    assert other == again, "what is not made anew stays, in its place"
    assert two.count("**not met**") >= 4, "neither better than unified, nor above 83 %, 70 % or 86 %"


def small(
    stores: Stores, data: DataSettings, sizes: tuple[int, ...], means: Mapping[str, float], *, n_items: int = 3, **settings: Any
) -> Study:
    """Leave in the stores a compared study called small, of clusters of these sizes, and return it."""
    study = Study(name="small", data=data, **settings)
    stores.studies.create_study(prepared(study, "float32"))
    ids = [f"q{number:02d}" for number in range(sum(sizes))]
    splits: tuple[tuple[Split, int], ...] = (("train", data.train), ("val", data.val), ("test", data.test))
    dialogues = tuple(Dialogue(f"{split}-{n}", (), split=split) for split, count in splits for n in range(count))
    stores.studies.save_dataset("small", Dataset(tuple(Persona(p, None, dialogues) for p in ids)))
    ends = [sum(sizes[: number + 1]) for number in range(len(sizes))]
    members = tuple(tuple(ids[end - size : end]) for end, size in zip(ends, sizes, strict=True))
    stores.studies.save_clustering("small", Clustering("responses", members))
    rng = np.random.default_rng(0)
    rows = [
        EvaluationRow(m, p, 0, f"{p}/{i}", "q", "r", "t", {"embedding_similarity": float(np.clip(mean + rng.normal(0, 0.01), 0, 1))})
        for p in ids
        for i in range(n_items)
        for m, mean in means.items()
    ]
    comparison = compare_methods(rows, headline="embedding_similarity", higher_is_better={"embedding_similarity": True}, draws=200, rng=rng)
    write_tables(comparison, rows, stores.folder("small") / "results")
    figure_path(stores, "small").parent.mkdir(parents=True)
    figure_path(stores, "small").touch()
    return study


def page_of(stores: Stores, tmp_path: Path) -> str:
    return results.write(["small"], [], [], stores, tmp_path / "docs").read_text(encoding="utf-8")


FEW = DataSettings(train=3, val=2, test=2)


@pytest.mark.parametrize(
    ("sizes", "methods", "said"),
    [
        ((3, 4, 5), ("unified", "cluster"), "There is no gate, and all clusters are trained: the largest has 5 people"),
        ((3, 9), ("unified", "hybrid"), "There is no gate: the study does not compare cluster, which it judges."),
        ((3, 9), ("unified", "cluster"), "No gate was judged: the steps were run one by one."),
        ((12,), ("unified", "cluster"), "There is no gate"),
    ],
)
def test_the_page_says_why_there_is_no_verdict_of_the_gate(
    sizes: tuple[int, ...], methods: tuple[str, ...], said: str, stores: Stores, tmp_path: Path
) -> None:
    small(stores, FEW, sizes, dict.fromkeys(methods, 0.6), methods=methods, clustering=ClusteringSettings(k=len(sizes)))
    page = page_of(stores, tmp_path)
    assert page.split("### The gate")[1].split("###")[0].strip().startswith(said)


def test_where_a_study_is_too_small_for_a_verdict_nothing_is_met_or_shown(stores: Stores, tmp_path: Path) -> None:
    means = {"unified": 0.6, "cluster": 0.9, "random_cluster": 0.6}
    small(stores, FEW, (4, 4), means, n_items=1, methods=tuple(means))
    asked = page_of(stores, tmp_path).split("### What the mission asked")[1]
    assert "The study is too small for a verdict: whether the mission's criteria are met is not known." in asked
    assert not [words for words in ("| met", "hown to", "against random_cluster") if words in asked]


def test_a_method_that_beats_unified_and_is_no_champion_is_not_said_to_beat_nothing(stores: Stores, tmp_path: Path) -> None:
    means = {"unified": 0.6, "hybrid": 0.7, "baseline": 0.7}
    small(stores, FEW, (12,), means, methods=tuple(means))
    asked = page_of(stores, tmp_path).split("### What the mission asked")[1]
    assert "No cluster adapter was compared, and no method is champion over unified: none of" in asked
    assert "hybrid (+10" in asked


def test_the_settings_of_a_cut_and_tuned_study_are_those_that_were_used(stores: Stores, tmp_path: Path) -> None:
    means = {"unified": 0.6, "hybrid": 0.7}
    study = small(stores, DataSettings(train=30, val=10, test=10), (12,), means, methods=tuple(means), minutes=5, seeds=3, tune=4)
    assert "dialogues each: 30 train, 10 val, 10 test" in page_of(stores, tmp_path)
    stores.studies.save_metadata("small", Cut(of_personas=12, n_personas=12, train=6, val=2, test=2, whole=1000, expected=200, fits=True))
    stores.studies.save_metadata("small", Tuning(draw_recipes(study, study.recipe.target_modules)))
    page = page_of(stores, tmp_path)
    assert "dialogues each: 6 train, 2 val, 2 test" in page
    assert "; its own recipe, the first of 4 that methods tried: rank 8, alpha 16" in page
    assert "; one training of every adapter" in page, "one was compared"


def test_people_with_unequally_many_dialogues_are_said_to_have_so_many() -> None:
    one, two = (tuple(Dialogue(f"d{n}", (), split="train") for n in range(count)) for count in (3, 5))
    assert dialogues_each(Dataset((Persona("a", None, one), Persona("b", None, two)))) == "3 to 5 train, 0 val, 0 test"


@pytest.mark.whole
def test_a_study_without_results_is_refused_before_anything_is_written(stores: Stores, tmp_path: Path) -> None:
    finished("one", {"unified": 0.80, "cluster": 0.85}, stores)
    stores.studies.create_study(prepared(Study(name="unfinished"), "float32"))
    with pytest.raises(BadData, match=r"study unfinished has no summary\.json in .*; run it to its end"):
        results.write(["one", "unfinished"], [], [], stores, tmp_path / "docs")
    with pytest.raises(BadData, match=r"study nulls has no null\.md in .*; run: clusterlora study permute --name nulls"):
        results.write(["one"], [], ["nulls"], stores, tmp_path / "docs")
    with pytest.raises(UnknownName):
        results.write(["nowhere"], [], [], stores, tmp_path / "docs")
    assert not (tmp_path / "docs").exists()
