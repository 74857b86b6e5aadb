"""The benchmarks' arithmetic and files; speed itself is never asserted."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import memory, pages, report, scale, scaling, studies
from benchmarks.flops import Shape
from benchmarks.generation import MIXED, ONE_BY_ONE, GenerationPlan, compare_generation
from benchmarks.measure import Contender, Sample, Speedup, speedup, take_turns
from benchmarks.subjects import Subject, load_subject
from benchmarks.training import REFERENCE, TrainingPlan, compare_training
from clusterlora.chat.encoder import TokenSequence
from clusterlora.errors import BadSettings
from clusterlora.metadata import Provenance
from clusterlora.settings import Study, prepared
from clusterlora.stores.sql import SqlStudyStore


def samples(*seconds: float) -> list[Sample]:
    return [Sample(s, flops_per_unit=10.0, facts={"mean_loss": s}) for s in seconds]


def a_speedup() -> Speedup:
    return speedup(
        "training tiny",
        "a | peer",
        samples(1.0, 2.0, 4.0),
        samples(4.0, 2.0, 12.0),
        unit="adapters/h",
        units_per_second=3600,
        peak_flops_per_second=100.0,
        settings={"model": "tiny"},
    )


@pytest.fixture(scope="module")
def subject(tiny_base_folder: Path) -> Subject:
    return load_subject(str(tiny_base_folder), dtype="float32", device="cpu")


def test_a_ratio_is_computed_per_repetition_and_reported_as_median_and_range() -> None:
    row = a_speedup()
    assert (row.ratio_median, row.ratio_min, row.ratio_max, row.repetitions) == (3.0, 1.0, 4.0, 3)
    assert (row.ours, row.theirs) == (1800.0, 900.0)
    assert row.mfu_ours == pytest.approx(0.05)
    assert row.facts == {"ours_mean_loss": 4.0, "theirs_mean_loss": 12.0}


def test_contenders_are_warmed_up_once_and_take_turns_in_alternating_order() -> None:
    calls: list[str] = []

    def contender(name: str) -> Contender:
        return Contender(name, lambda: calls.append(f"warm {name}"), lambda: calls.append(name) or samples(1.0)[0])

    samples_by_name = take_turns([contender("a"), contender("b")], budget_seconds=60, at_least=1, at_most=3)
    assert calls == ["warm a", "warm b", "a", "b", "b", "a", "a", "b"]
    assert {name: len(taken) for name, taken in samples_by_name.items()} == {"a": 3, "b": 3}


def test_repetitions_stop_when_another_would_exceed_the_budget_but_not_before_the_least_number() -> None:
    samples_by_name = take_turns([Contender("a", lambda: None, lambda: samples(1.0)[0])], budget_seconds=0, at_least=2, at_most=9)
    assert len(samples_by_name["a"]) == 2


def test_operations_are_counted_without_padding_and_with_the_head_at_predicted_tokens_only() -> None:
    shape = Shape(linear_weights=100, head_weights=1000, layers=2, attention_width=8)
    sequence = TokenSequence(ids=(1, 2, 3, 4), is_response=(False, False, True, True))
    attention = 2 * 2 * 8 * 4 * 4
    assert shape.training(sequence) == 4 * 100 * 4 + 4 * 1000 * 2 + 3 * attention
    assert shape.generating(3, 1) == 2 * 100 * 4 + 2 * 1000 + attention


def test_the_files_hold_every_row_and_a_cell_cannot_break_the_table(tmp_path: Path) -> None:
    point = scaling.ScalingPoint("personas", 20, 1234.5678, "adapters/h", 1.5, 3.0, None)
    results = report.Results(
        "python -m benchmarks.run",
        1.0,
        {"instructions": "AVX2"},
        {"torch": "2"},
        {"float32": 50.0},
        [a_speedup()],
        [point],
        ["x: not installed"],
    )
    report.write(results, tmp_path)
    written = json.loads((tmp_path / "benchmarks.json").read_text())
    assert {"name", "baseline", "ratio_median", "ratio_min", "ratio_max", "ours", "theirs", "unit", "settings"} <= set(written["rows"][0])
    assert written["rows"][0]["ratio_median"] == 3.0
    assert written["scaling"][0]["rate"] == 1235
    page = (tmp_path / "benchmarks.md").read_text()
    assert r"| training tiny | a \| peer | 3.00x | 1.00 to 4.00 |" in page
    assert "- x: not installed" in page
    assert sorted(p.name for p in tmp_path.iterdir()) == ["benchmarks.json", "benchmarks.md"]


def test_results_of_one_machine_are_joined_and_those_of_two_are_refused(tmp_path: Path) -> None:
    facts, versions = {"processor": "p", "instructions": "AVX2", "cores": 2, "threads": 2, "device": "cpu"}, {"torch": "2", "revision": "a"}
    first = report.Results("one", 1.0, facts, versions, {"float32": 50.0}, [a_speedup()], [], ["training other: too late"])
    report.write(first, tmp_path)
    earlier = report.read(tmp_path)
    assert earlier is not None
    later = replace(a_speedup(), name="training other", ratio_median=2.0)
    now = replace(first, command="two", rows=[later], skipped=[], versions={**versions, "revision": "b"})
    both = report.joined(earlier, now)
    assert [row.name for row in both.rows] == [a_speedup().name, "training other"]
    assert (both.command, both.minutes, both.skipped) == ("one; two", 2.0, [])
    assert report.joined(both, replace(now, rows=[replace(later, ratio_median=9.0)])).rows[1].ratio_median == 9.0
    with pytest.raises(BadSettings, match="instructions was AVX2 in the run to add to and is AVX512 here"):
        report.joined(earlier, replace(now, machine={**facts, "instructions": "AVX512"}))


@pytest.mark.whole
def test_training_gives_both_sides_the_same_work(subject: Subject, tmp_path: Path) -> None:
    plan = TrainingPlan(adapters=1, peer_adapters=1, dialogues=4, epochs=2, peers=(REFERENCE,))
    (row,) = compare_training(subject, plan, peak_flops_per_second=1e9, budget_seconds=0, at_least=1, scratch=tmp_path)
    # Same rows in the same order from the same start; only the dropout masks differ.
    assert row.facts["ours_mean_loss"] == pytest.approx(row.facts["theirs_mean_loss"], rel=1e-3)
    assert row.settings["steps_measured"] == 4
    assert min(row.ours, row.theirs, row.ratio_min) > 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.whole
def test_generation_asks_the_same_questions_and_counts_identical_answers(subject: Subject, tmp_path: Path) -> None:
    plan = GenerationPlan(adapters=3, items_per_adapter=2, max_new_tokens=4, batch_size=4)
    rows = compare_generation(subject, plan, peak_flops_per_second=1e9, budget_seconds=0, at_least=1, scratch=tmp_path)
    assert [row.baseline for row in rows] == [ONE_BY_ONE, MIXED]
    assert [row.facts["identical_answers"] for row in rows] == [1.0, 1.0]


@pytest.mark.whole
def test_scaling_measures_every_size(subject: Subject, tmp_path: Path) -> None:
    points = scaling.adapters_in_one_pass(subject, (1, 2), n_dialogues=4, peak_flops_per_second=1e9, scratch=tmp_path)
    points += scaling.adapters_in_one_batch(subject, (1, 3), max_new_tokens=2, scratch=tmp_path)
    assert [(p.n, p.unit) for p in points] == [(1, "adapters/h"), (2, "adapters/h"), (1, "answers/s"), (3, "answers/s")]
    assert all(p.rate > 0 for p in points)


def test_the_plan_for_a_million_personas_follows_from_what_was_measured(tmp_path: Path) -> None:
    spent = {"seconds": 9.0, "cpu_seconds": 3.6}
    database = {
        **dict.fromkeys(("dialogues", "rows_per_method", "answers"), 1000),
        **dict.fromkeys(("writers", "personas", "adapters", "read_answers_rows"), 100),
        **dict.fromkeys(("adapters_cpu_seconds", "answers_cpu_seconds"), 3.6),
        **dict.fromkeys(("save_dataset", "write", "read_dataset", "read_answers"), spent),
    }
    mlflow = {"runs": 8, "points_per_run": 100, "points_found": 800, "errors": ["ServiceDown: database is locked"], **spent}
    (tmp_path / "benchmarks.json").write_text(json.dumps({"rows": [{"name": "training tiny", "ours": 1000.0}]}))
    page = scale.page(
        {
            "cores": 2,
            "load_before": 1.0,
            "bytes_per_persona": 5e4,
            "mlflow": mlflow,
            **{k: {**database, "errors": []} for k in ("postgresql", "sqlite")},
        },
        tmp_path / "benchmarks.json",
    )
    assert "| PostgreSQL | a dialogue, saved with its data set | 1,000 | 3.600 | 9.0 |" in page
    assert "Errors that reached a writer: 1, the first: ServiceDown: database is locked." in page
    assert "| write 50 dialogues per persona | 50,000,000 | 50.0 | writers |" in page
    assert "| train a persona's adapter, tiny | 1,000,000 | 1,000.0 | trainers |" in page
    assert "at least 36 shards" in page
    assert "held in memory, 50 GB for a million" in page


def test_the_exponent_of_a_phase_is_the_slope_of_its_seconds_over_people() -> None:
    studies = [
        {"people": n, "dialogues": 10 * n, "revision": "abcdef012", "seconds": {"linear": n / 100, "pairs": n * n / 1e4, "once": 3.0}}
        for n in (200, 1000, 3000)
    ]
    studies[0]["seconds"]["only here"] = 1.0
    assert scale.exponents(studies) == pytest.approx({"linear": 1.0, "pairs": 2.0, "once": 0.0})
    lines = scale.study_lines(studies)
    assert "| linear | 10.0 | 10.0 | 10.0 | 1.00 | 2.8 |" in "\n".join(lines)
    assert "person of the largest study. Not run to the end for this page: studies of 10,000 people." in lines
    assert scale.study_lines(studies[:1]) == []


def test_what_was_killed_has_lost_seconds_which_count_neither_in_the_exponent_nor_for_a_million() -> None:
    studies: list[dict[str, Any]] = [
        {
            "people": n,
            "dialogues": 10 * n,
            "revision": "abcdef012",
            "seconds": {"prepare": n / 100, "train": n / 10},
            "most_gb": 1.0,
            "minutes": 2.0,
        }
        for n in (200, 1000, 10_000)
    ]
    studies[-1] = {**studies[-1], "seconds": {"prepare": 100.0, "train": 50.0}, "killed_after": 12.0}
    lines = "\n".join(scale.study_lines(studies))
    assert "| prepare | 10.0 | 10.0 | 10.0 | 1.00 | 2.8 |" in lines
    assert "| train | 100.0 | 100.0 | 5.0 † | 1.00 | 27.8 |" in lines
    assert "| train | 100.0 | 5.0 † | 0.23 | 1.4 |" in "\n".join(scale.study_lines(studies[::2]))
    assert "12 minutes into the study of 10,000 people the workers that train" in lines


def test_finished_studies_are_read_from_their_databases(tmp_path: Path) -> None:
    for name, n in (("large", 30), ("small", 10)):
        store = SqlStudyStore(f"sqlite:///{tmp_path / name}.db")
        store.create_study(prepared(Study(name=name), "float32"))
        made_from = Provenance(
            clusterlora_version="1", git_revision="abc", data_digest="digest", base_revision="base", n_personas=n, n_dialogues=5 * n
        )
        store.save_metadata(name, made_from)
        for part in ("1/2", "2/2"):
            store.add_seconds(name, "train", part, float(n))
    for name in ("scale.json", "benchmarks-avx2.json"):
        (tmp_path / name).write_text((pages.DOCS / name).read_text(encoding="utf-8"), encoding="utf-8")
    log = tmp_path / "large.jsonl"
    log.write_text(
        "".join(json.dumps({"seconds": seconds, "bytes": n}) + "\n" for seconds, n in ((0, 10**9), (30, 3 * 10**9), (90, 10**9)))
    )
    named = [f"{name}=sqlite:///{tmp_path / name}.db" for name in ("large", "small")]
    studies.main([*named, "--memory", f"large={log}", "--out", str(tmp_path)])
    written = json.loads((tmp_path / "scale.json").read_text(encoding="utf-8"))
    assert [(study["people"], study["seconds"]) for study in written["studies"]] == [(10, {"train": 20.0}), (30, {"train": 60.0})]
    assert written["sqlite"], "what was measured before is kept"
    page = (tmp_path / "scale.md").read_text(encoding="utf-8")
    assert "| train | 2,000.0 | 2,000.0 | 1.00 | 555.6 |" in page
    assert "| 30 | 1.5 | 3.00 |" in page
    assert "| 10 | " not in page, "its memory was not measured"


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="memory is measured on Linux alone")
def test_the_memory_of_what_runs_with_a_home_is_measured_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLUSTERLORA_HOME", str(tmp_path / "here" / ".." / "home"))
    monkeypatch.setattr(memory, "_PAUSE_SECONDS", 0.02)
    log = tmp_path / "memory.jsonl"
    log.write_text("of a run before")
    # It ends once it was measured; beside it runs as large a process of another installation.
    code = """
import json, pathlib, subprocess, sys, time
grown, log = b"x" * 100_000_000, pathlib.Path(sys.argv[1])
another = "import sys; grown = b'x' * 100_000_000; print(flush=True); sys.stdin.read()"
pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
with subprocess.Popen([sys.executable, "-c", another], env={"CLUSTERLORA_HOME": "/elsewhere"}, **pipes) as other:
    other.stdout.readline()
    n_before = len(log.read_text().splitlines())
    while len(log.read_text().splitlines()) < n_before + 2:
        time.sleep(0.01)
"""
    assert memory.main([str(log), "--", sys.executable, "-c", code, str(log)]) == 0
    most, minutes = memory.peak(log)
    assert 0.09 < most < 0.19
    assert 0 < minutes < 10


@pytest.mark.parametrize("name", ["benchmarks", "benchmarks-avx2", "scale", "reliability"])
def test_the_pages_of_measurements_say_what_was_measured(name: str) -> None:
    """`python -m benchmarks.pages` writes them again."""
    assert (pages.DOCS / f"{name}.md").read_text(encoding="utf-8") == pages.PAGES[name]()
