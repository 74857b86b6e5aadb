"""A user's first commands with own data: template, validate, train, evaluate, compare, status, chat."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from clusterlora.cli import main
from clusterlora.data.validate import examine
from clusterlora.report.data_picture import sparkline
from clusterlora.settings import DataSettings
from clusterlora.wiring import from_environment
from tests.fixtures.session import shared_folder
from tests.fixtures.studies import copy_of_home


def at_home(patch: pytest.MonkeyPatch, folder: Path) -> None:
    patch.setenv("CLUSTERLORA_HOME", str(folder / "studies"))
    patch.setenv("CLUSTERLORA_STACK_HOME", str(folder / "no-stack"))


@pytest.fixture
def home(tmp_path: Path, tiny_base_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with a template and its study, which commands have trained, evaluated and compared once for the whole session."""

    def run_commands(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            at_home(patch, folder)
            assert main(["data", "template", str(folder / "people")]) == 0
            study = ["--config", str(folder / "people" / "study.toml"), "--base-model", str(tiny_base_folder)]
            study += [
                "--set",
                'methods=["baseline","unified","cluster"]',
                "--set",
                "recipe.epochs=1",
                "--set",
                "evaluation.max_new_tokens=4",
            ]
            assert main(["train", *study]) == 0
            assert main(["evaluate", "--name", "people"]) == 0
            assert main(["compare", "--name", "people"]) == 0

    folder = shared_folder("first-minutes", run_commands)
    copy_of_home(folder / "studies", tmp_path / "studies")
    shutil.copytree(folder / "people", tmp_path / "people")
    at_home(monkeypatch, tmp_path)
    return tmp_path


def json_output(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    capsys.readouterr()
    assert main(list(words)) == 0
    return json.loads(capsys.readouterr().out)


def test_the_template_is_valid_data_and_is_never_overwritten(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = json_output(capsys, "data", "validate", "--config", str(home / "people" / "study.toml"), "--json")
    assert (summary["personas"], summary["train"], summary["val"], summary["test"], summary["refusal"]) == (6, 24, 12, 12, None)
    assert main(["data", "template", str(home / "people")]) == 1
    assert "exists and is not overwritten" in capsys.readouterr().err


@pytest.mark.whole
def test_data_are_shown_as_bars_and_as_a_picture(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = home / "people.png"
    assert main(["data", "validate", "--data", str(home / "people" / "people.jsonl"), "--picture", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    shown = capsys.readouterr().out
    assert "█" in shown
    assert "who repeats most         nobody" in shown


@pytest.mark.whole
def test_a_bar_is_proportional_to_its_share_and_nonempty_bins_are_visible() -> None:
    settings = DataSettings(train=3, val=1, test=1)
    lengths = examine(settings).response_characters
    bars = sparkline(lengths)
    assert len(bars) == len(lengths.bins)
    assert sum(lengths.bins) > 0
    assert bars[lengths.bins.index(max(lengths.bins))] == "█"
    assert all((bar == " ") == (n == 0) for bar, n in zip(bars, lengths.bins, strict=True))


def test_a_hub_model_without_a_network_is_refused_in_one_line_before_any_server_starts(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert main(["study", "run", "--data", str(home / "people" / "people.jsonl"), "--base-model", "some/hub-id"]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: base model 'some/hub-id' could not be fetched")
    assert "homelm, smollm2-135m or a local folder" in line
    assert not (home / "no-stack").exists()


def test_the_same_question_is_answered_by_several_methods(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["chat", "--study", "people", "--persona", "persona_001", "--max-new-tokens", "3", "Make it cosy", "--json"]
    output = json_output(capsys, *words)
    assert {method: answer["answered_by"] for method, answer in output["answers"].items()} == {
        "baseline": "base model",
        "unified": "unified",
        "cluster": output["answers"]["cluster"]["answered_by"],
    }
    assert output["answers"]["cluster"]["answered_by"].startswith("cluster-0")
    alone = json_output(capsys, *words, "--methods", "unified")
    assert alone["answers"] == {"unified": output["answers"]["unified"]}


def test_a_method_that_was_not_evaluated_is_named_with_those_that_were(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", "--study", "people", "--persona", "p", "--methods", "merge", "hello"]) == 1
    assert "has not evaluated merge; it has baseline, unified, cluster" in capsys.readouterr().err


def test_an_unknown_persona_is_answered_by_unified_and_the_answer_says_so(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = json_output(capsys, "chat", "--study", "people", "--persona", "somebody", "--methods", "cluster", "hello", "--json")
    assert output["answers"]["cluster"]["answered_by"].startswith("unified (default: persona 'somebody'")


def test_the_status_shows_phases_scores_and_the_next_step(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = json_output(capsys, "study", "status", "people", "--json")
    assert "train done" in status["phases"]
    assert "compare done" in status["phases"]
    assert any(line.startswith("on test, cluster:") for line in status["against_unified"])
    assert main(["study", "status", "people", "--watch"]) == 0
    page = capsys.readouterr().out
    for word in ("register", "next:", "memory", "GPU"):
        assert word in page


def test_the_doctor_lists_checks_and_a_fix_for_each_failed_one(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["doctor", "--json"])
    check_by_name = {finding["what"]: finding for finding in json.loads(capsys.readouterr().out)}
    assert {"python", "packages", "memory", "results", "servers", "GPU", "homelm", "model hub", "embedding"} <= check_by_name.keys()
    assert all(finding["fix"] for finding in check_by_name.values() if not finding["good"])


def test_a_damaged_state_of_the_servers_stops_no_command_that_needs_none(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = home / "stack"
    stack.mkdir(mode=0o700)
    (stack / "stack.json").write_text('{"ports": {"prefect_po')
    monkeypatch.setenv("CLUSTERLORA_STACK_HOME", str(stack))
    assert main(["study", "list"]) == 0
    listed = capsys.readouterr()
    assert "people" in listed.out
    assert "is damaged" in listed.err
    assert main(["doctor"]) == 1
    assert "with: clusterlora down" in capsys.readouterr().out


def test_the_doctor_names_a_damaged_database(home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "other").mkdir()
    (home / "other" / "clusterlora.db").write_text("a note" * 1000)
    monkeypatch.setenv("CLUSTERLORA_HOME", str(home / "other"))
    monkeypatch.delenv("CLUSTERLORA_DATABASE_URL", raising=False)
    main(["doctor", "--json"])
    (check,) = [finding for finding in json.loads(capsys.readouterr().out) if finding["what"] == "database"]
    assert not check["good"]
    assert "is damaged" in check["found"]
    assert "bring back a backup" in check["fix"]


@pytest.mark.whole
def test_train_and_evaluate_print_their_results_as_json(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained = json_output(capsys, "train", "--name", "people", "--adapter", "unified", "--json")
    assert trained == {"study": "people", "adapters": ["unified"], "trained": 0, "folder": str(home / "studies" / "people")}
    assert json_output(capsys, "evaluate", "--name", "people", "--json") == {"study": "people", "answers": 0}
    verdict = json_output(capsys, "evaluate", "--name", "people", "--cluster", "0", "--json")
    assert verdict["passed"] == all(criterion["passed"] for criterion in verdict["criteria"])
    assert verdict["criteria"][0].keys() >= {"name", "value", "threshold"}


@pytest.mark.whole
def test_single_steps_do_not_change_the_status_of_a_study_even_when_they_fail(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    studies = from_environment().studies
    assert studies.status("people") == "created"
    studies.set_status("people", "finished")
    json_output(capsys, "train", "--name", "people", "--cluster", "0", "--json")
    json_output(capsys, "evaluate", "--name", "people", "--cluster", "0", "--json")
    assert studies.status("people") == "finished"
    assert main(["evaluate", "--name", "people", "--cluster", "99"]) == 1
    assert studies.status("people") == "finished"
