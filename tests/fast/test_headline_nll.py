"""A study whose headline is the loss of the references: less is better, in nats, and nothing is generated."""

import json
from dataclasses import replace
from itertools import product
from pathlib import Path

from clusterlora.comparison.result import Comparison
from clusterlora.ports.stores import Stores
from clusterlora.progress.timeline import against_unified
from clusterlora.settings import DataSettings, EvaluationSettings, ModelSettings, Study
from clusterlora.stages.compare import compare_study
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
    told = "\n".join((comparison.sentence, summary, *verdict.notes, *against_unified(state_of(study, stores))))
    assert " points" not in told
    assert " nats" in told
    assert "lower is better" in page
