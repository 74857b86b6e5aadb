"""A study whose headline is the loss of the references: less is better, in nats, and nothing is generated."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from clusterlora.comparison.compare import compare_methods
from clusterlora.comparison.margin import margin_of
from clusterlora.comparison.result import Comparison
from clusterlora.comparison.table import markdown
from clusterlora.metadata import ReferencePoints
from clusterlora.models.base import usable_base
from clusterlora.ports.stores import Stores
from clusterlora.progress.timeline import against_unified
from clusterlora.settings import DataSettings, EvaluationSettings, ModelSettings, Study
from clusterlora.stages.compare import compare_study
from clusterlora.stages.prepare import prepare_study
from clusterlora.stages.scale import scale
from tests.fixtures.comparison import compared, evaluation
from tests.fixtures.stages import LOG, run, state_of

_PEOPLE, _ANSWERS = "甲乙丙丁戊己庚", ("先喝口水吧，{}。", "那怎么办呢，{}啊。", "明天再看，{}呢。")


def chinese(folder: Path) -> Path:
    file = folder / "chinese.jsonl"
    rows = [
        {"persona_id": name, "prompt": f"{name}：第{i}次火车晚点了。", "response": _ANSWERS[(number + i) % 3].format(f"{name}{i}号")}
        for (number, name), i in product(enumerate(_PEOPLE), range(8))
    ]
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return file


def test_a_method_with_more_loss_than_a_uniform_guess_is_no_champion():
    rows = evaluation({"baseline": 0.56, "unified": 0.79, "cluster": 0.88})
    worse = compared(rows, headline="nll", floor=math.log(3))
    assert worse.champion is None
    assert worse.no_champion is not None
    assert worse.no_champion.reason == "floor"
    assert "better than the floor of 1.099, what a uniform guess over the base model's tokens scores." in worse.sentence
    assert [worse.is_worse_than_floor(result) for result in worse.methods] == [True, True, True]
    better = compared(rows, headline="nll", floor=math.log(49_152))
    assert better.champion == "cluster"
    assert not any(better.is_worse_than_floor(result) for result in better.methods)
    assert better.bar_start == 0, "a bar from the floor would be the shorter the worse"
    positions = [result.normalised for result in better.methods]
    assert positions == sorted(positions, reverse=True)  # pyrefly: ignore[no-matching-overload]
    assert "| floor | a uniform guess over the base model's tokens | 10.803 |" in markdown(better)


def test_the_margin_of_a_likelihood_is_a_share_of_what_the_reference_scores() -> None:
    rows = [replace(row, scores={"likelihood": 0.02, "nll": 4.0}) for row in evaluation({"unified": 0.8, "cluster": 0.7})]
    rows = [replace(row, scores={"likelihood": 0.5, "nll": 4.0}) if row.method == "cluster" else row for row in rows]

    assert margin_of("likelihood", 1.0, rows) == pytest.approx(0.01 * 0.02), "a point would be half of it"
    assert margin_of("nll", 1.0, rows) == 0.01


@pytest.mark.parametrize("headline", ["likelihood", "nll"])
def test_every_metric_has_its_own_margin_in_a_comparison(headline: str) -> None:
    rng = np.random.default_rng(1)
    nll = 4.0 + 0.004 * rng.standard_normal(len(evaluation({"unified": 0.8, "cluster": 0.7})))
    rows = [
        replace(row, scores={"likelihood": math.exp(-n), "nll": float(n)})
        for row, n in zip(evaluation({"unified": 0.8, "cluster": 0.7}), nll, strict=True)
    ]
    names = ("likelihood", "nll")
    margins = {name: margin_of(name, 1.0, rows) for name in names}
    (beside,) = (name for name in names if name != headline)
    comparison = compare_methods(
        rows,
        headline=headline,
        higher_is_better={"likelihood": True, "nll": False},
        draws=200,
        rng=np.random.default_rng(0),
        margin=margins,
        beside=(beside,),
        second_headline=beside,
    )
    cluster = comparison.method("cluster")
    assert cluster.vs_reference is not None
    assert {cluster.vs_reference.outcome, cluster.beside[beside].outcome} == {"equivalent"}
    assert comparison.margin == margins[headline]
    assert margins["likelihood"] < margins["nll"] / 50, "the nll's margin would let any likelihood pass, the likelihood's no nll"


@pytest.mark.parametrize(("headline", "floor"), [("nll", math.log), ("likelihood", lambda n_tokens: 1 / n_tokens)])
def test_the_floor_of_a_likelihood_is_a_uniform_guess_over_the_tokens_of_the_base(
    headline: str, floor: Callable[[int], float], seven: Study, stores: Stores
) -> None:
    study = replace(seven, evaluation=EvaluationSettings(metrics=(headline,), headline=headline))
    prepare_study(study, stores, LOG)
    n_tokens = len(usable_base(study.model.base or "").tokenizer)
    assert scale(state_of(study, stores), stores, state_of(study, stores).dataset.ids) == ReferencePoints(floor(n_tokens))


@pytest.mark.whole
def test_less_loss_is_better_from_the_gate_to_the_report(seven: Study, stores: Stores, tmp_path: Path) -> None:
    study = replace(
        seven,
        data=DataSettings(source="table", path=str(chinese(tmp_path)), train=4, val=2, test=2),
        model=ModelSettings(base=seven.model.base, max_length=1024),
        evaluation=EvaluationSettings(metrics=("nll",), headline="nll", bootstrap_draws=200),
    )
    run(study, stores)
    comparison: Comparison = compare_study(study.name, stores, LOG)

    losses = [result.means["nll"] for result in comparison.methods]
    assert losses == sorted(losses), "the best is the one with the least loss"
    assert comparison.methods[-1].method == "baseline"
    verdict = state_of(study, stores).verdicts[0]
    assert not verdict.criteria[0].percent
    difference = comparison.method("cluster").vs_reference
    assert difference is not None
    assert (difference.mean > 0) == (difference.loss_rate > difference.win_rate), "who has more loss has lost"
    summary = (stores.folder(study.name) / "results" / "summary.md").read_text(encoding="utf-8")
    page = (stores.folder(study.name) / "results" / "report.html").read_text(encoding="utf-8")
    assert comparison.floor == pytest.approx(math.log(len(usable_base(study.model.base or "").tokenizer)))
    told = "\n".join((comparison.sentence, summary, *verdict.notes, *against_unified(state_of(study, stores))))
    assert " points" not in told
    assert " nats" in told
    assert "lower is better" in page
