"""The mission's alternative: 200 personal adapters that exist already are merged by cluster and compared, and nothing is trained."""

import json
from pathlib import Path

import pytest

from clusterlora.cli import main
from clusterlora.wiring import from_environment
from tests.fixtures.imported import write_adapter

SIZES = (16, 52, 25, 35, 72)


def test_two_hundred_adapters_are_merged_by_cluster_and_compared(
    tmp_path: Path, tiny_base_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CLUSTERLORA_HOME", str(tmp_path / "studies"))
    monkeypatch.setenv("CLUSTERLORA_STACK_HOME", str(tmp_path / "no-stack"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    people = [f"persona_{number:03d}" for number in range(sum(SIZES))]
    rows = [{"persona_id": p, "dialogue_id": d, "prompt": f"do {d}", "response": f"{p} did {d}"} for p in people for d in ("a", "b", "c")]
    clusters = dict(zip(people, [k for k, size in enumerate(SIZES) for _ in range(size)], strict=True))
    splits = {p: {"train": [0], "val": [1], "test": [2]} for p in people}
    (tmp_path / "people.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "clusters.json").write_text(json.dumps(clusters))
    (tmp_path / "splits.json").write_text(json.dumps(splits))
    for number in range(len(people)):
        write_adapter(tmp_path / "personal" / f"lora_{number}", tiny_base_folder, seed=number, rank=1 + number % 3, size=0.1)
    files = ["--data", "people.jsonl", "--splits", "splits.json", "--clusters", "clusters.json", "--personal", "personal"]
    files = [word if word.startswith("--") else str(tmp_path / word) for word in files]
    settings = ["--set", 'methods=["baseline"]', "--set", "evaluation.max_new_tokens=4", "--set", "evaluation.bootstrap_draws=100"]
    assert main(["study", "import", "--name", "mine", "--base-model", str(tiny_base_folder), *files, *settings, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "study": "mine",
        "personas": 200,
        "clusters": 5,
        "adapters": 200,
        "results": 0,
        "without_personal": [],
    }
    assert main(["merge", "mine", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["study"] == "mine"
    assert {record["method"] for record in printed["methods"]} == {"baseline", "imported_per_persona", "imported_merge"}
    adapters = from_environment().studies.adapters("mine")
    assert [len(a.spec.merge_of) for a in sorted(adapters, key=lambda a: a.name) if a.spec.merge_of] == list(SIZES)
    assert all(adapter.steps == 0 for adapter in adapters)
