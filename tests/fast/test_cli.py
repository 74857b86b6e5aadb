"""The command line: what it imports, how it refuses, and how options become settings."""

import errno
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import click
import pytest

from clusterlora.cli import cli, main
from clusterlora.cli.options import study_from
from clusterlora.config import resolve
from clusterlora.errors import ServiceDown
from clusterlora.models.base import HOMELM_FOLDER
from clusterlora.settings import Study


def commands(group: click.Group = cli, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Yield every command with its words."""
    for name, command in group.commands.items():
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


def study_of(*words: str) -> Study:
    """Return the study that `clusterlora study run` would run with these options."""
    run = next(command for path, command in commands() if path == ("study", "run"))
    return study_from(run.make_context("run", list(words)).params)


@pytest.mark.parametrize("words", [["--help"], ["study", "run", "--help"], ["train", "--help"]], ids=" ".join)
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    heavy = ["torch", "transformers", "prefect", "mlflow", "pandas", "sklearn", "numpy", "pydantic", "sqlalchemy", "rich"]
    script = f"import sys; from clusterlora.cli import main; main({words}); sys.exit(repr(sorted(set({heavy}) & set(sys.modules))))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "[]"
    assert "Usage: clusterlora" in done.stdout


@pytest.mark.parametrize(("path", "command"), list(commands()), ids=lambda value: " ".join(value) if isinstance(value, tuple) else "")
def test_the_help_of_every_command_teaches_by_example(path: tuple[str, ...], command: click.Command) -> None:
    assert command.help
    assert "clusterlora " + " ".join(path[:1]) in (command.epilog or "")


@pytest.mark.parametrize(("path", "command"), list(commands()), ids=lambda value: " ".join(value) if isinstance(value, tuple) else "")
def test_every_command_with_a_result_has_a_json_option(path: tuple[str, ...], command: click.Command) -> None:
    assert isinstance(command, click.Group) or any("--json" in option.opts for option in command.params), path


@pytest.mark.parametrize(
    ("words", "exit_code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["nonsense"], 2),
        (["study", "run", "--personas", "1"], 2),
        (["train", "--cluster", "0", "--adapter", "unified"], 2),
        (["study", "run", "--preset", "big"], 1),
        (["study", "run", "--set", "recipe.rank=0"], 1),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_misuse_ends_with_2_and_a_refusal_with_1(words: list[str], exit_code: int) -> None:
    assert main(words) == exit_code


def test_every_problem_is_one_line_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    main(["study", "run", "--set", "recipe.rank=0", "--set", "modle.base=x"])
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines() == [
        "error: recipe.rank = 0: use at least 1",
        "error: modle: no such setting; did you mean model?",
    ]


def test_an_unforeseen_error_is_one_line_and_a_traceback_only_with_debug(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(**_: object) -> None:
        raise KeyError("left out")

    monkeypatch.setattr(cli.commands["compare"], "callback", broken)
    assert main(["compare"]) == 1
    assert "Traceback" not in (brief := capsys.readouterr().err)
    assert brief.startswith("error: unexpected KeyError")
    assert main(["--debug", "compare"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_full_disk_is_told_as_one(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/results/answers")

    monkeypatch.setattr(cli.commands["compare"], "callback", full)
    assert main(["compare"]) == 1
    told = capsys.readouterr().err
    assert told == "error: the disk is full at /results/answers; free some space and run the same command again: what finished is kept\n"


@pytest.mark.parametrize("command", [["data", "validate", "--data"], ["study", "run", "--show-settings", "--base-model"]])
def test_a_path_that_the_system_refuses_is_named_with_the_fix(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    long = "a" * 300
    assert main([*command, long]) == 1
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert told.endswith(f"{long}: file name too long; give a shorter one\n")


@pytest.mark.parametrize(("kind", "told"), [("loop", "the link leads nowhere"), ("fifo", "is no regular file but a pipe")])
def test_data_that_are_no_file_are_told_as_what_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, told: str) -> None:
    file = tmp_path / "people.jsonl"
    if kind == "loop":
        file.symlink_to(file)
    else:
        os.mkfifo(file)
    assert main(["data", "validate", "--data", str(file)]) == 1
    line = capsys.readouterr().err
    assert line.startswith(f"error: {file}: ")
    assert told in line


@pytest.mark.parametrize("command", ["template", "synthesize"])
def test_a_folder_that_cannot_be_made_is_named(capsys: pytest.CaptureFixture[str], command: str) -> None:
    assert main(["data", command, "/proc/x"]) == 1
    assert capsys.readouterr().err == "error: /proc/x: no such file or directory; correct the path, or create what is missing of it\n"


def test_data_that_another_user_closed_are_named_with_the_fix(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "people.jsonl"
    file.write_text('{"persona_id": "a", "prompt": "?", "response": "!"}\n')
    open_file = Path.open

    def closed(path: Path, *args: Any, **options: Any) -> Any:
        if path.name == file.name:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return open_file(path, *args, **options)

    # A test that runs as root can read every file.
    monkeypatch.setattr(Path, "open", closed)
    assert main(["data", "validate", "--data", str(file)]) == 1
    assert capsys.readouterr().err == f"error: {file}: permission denied; let this user read it, or write there\n"


@pytest.mark.parametrize(
    "words",
    [["study", "status"], ["study", "verify"], ["study", "cost"], ["chat", "--persona", "x", "--study"], ["study", "decide", "--stop"]],
)
def test_a_name_that_is_no_text_is_refused_in_one_line(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLUSTERLORA_HOME", str(tmp_path))
    monkeypatch.delenv("CLUSTERLORA_DATABASE_URL", raising=False)
    assert main([*words, os.fsdecode(b"nom\xe9")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert "nom\\udce9" in line
    assert "unexpected" not in line


def test_so_many_workers_are_refused_before_one_is_started(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["up", "--workers", "10000"]) == 2
    assert "10000 is not in the range 1<=x<=256" in capsys.readouterr().err


def test_whoever_decides_without_a_name_is_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found: 10001")

    monkeypatch.setattr("getpass.getuser", nobody)
    decide = cast("click.Group", cli.commands["study"]).commands["decide"]
    (by,) = [option for option in decide.params if option.name == "by"]
    assert by.get_default(click.Context(decide)) == f"user {os.getuid()}"


def test_a_null_character_in_a_path_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "study.toml").write_text('[data]\npath = "a\\u0000b.jsonl"\n')
    assert main(["study", "run", "--show-settings", "--config", str(tmp_path / "study.toml")]) == 1
    assert capsys.readouterr().err == "error: 'a\\x00b.jsonl' is no path: it contains a null character; remove it\n"


@pytest.mark.parametrize("words", [["https://hooks.example.com/team"], ["--block", "slack-webhook/team"], ["--off"]])
def test_whoever_is_notified_replaces_the_receiver_in_mlflow_too(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = importlib.import_module("clusterlora.cli.notify")
    called: list[str | None] = []
    stubs = SimpleNamespace(
        status=lambda _: "running", notify_url=lambda *_: ("a",), notify_block=lambda *_: ("a",), notify_nobody=lambda _: ("a",)
    )
    monkeypatch.setattr(module, "use_local_services", lambda **_: None)
    monkeypatch.setattr(module, "services_home", lambda: None)
    monkeypatch.setattr(module, "deployments", lambda _: stubs)
    monkeypatch.setattr(module, "open_registry", lambda: SimpleNamespace(call_when_alias_moves=called.append))
    assert main(["notify", *words]) == 0
    assert called == [words[0] if words[0].startswith("https") else None]

    def away(_: str | None) -> None:
        raise ServiceDown("MLflow does not answer")

    monkeypatch.setattr(module, "open_registry", lambda: SimpleNamespace(call_when_alias_moves=away))
    assert main(["notify", *words]) == 0
    assert "MLflow does not answer" in capsys.readouterr().err


def test_the_default_study_is_the_demo() -> None:
    assert study_of() == resolve("demo")


def test_a_study_of_own_data_is_named_after_the_file_and_has_no_preset(tmp_path: Path) -> None:
    file = tmp_path / "My People (2).jsonl"
    file.touch()
    study = study_of("--data", str(file))
    assert study.name == "my-people-2"
    assert (study.data.source, study.data.path) == ("table", str(file))
    assert study.clustering.sizes is None
    assert study.gate.mean_similarity is None


def test_a_folder_is_read_as_edgewise_unless_told_otherwise(tmp_path: Path) -> None:
    assert study_of("--data", str(tmp_path)).data.source == "edgewise"
    assert study_of("--data", str(tmp_path), "--source", "table").data.source == "table"


@pytest.mark.parametrize(("dialogues", "split"), [(50, (30, 10, 10)), (10, (6, 2, 2)), (3, (1, 1, 1)), (9, (7, 1, 1))])
def test_dialogues_are_split_in_the_missions_proportions(dialogues: int, split: tuple[int, int, int]) -> None:
    data = study_of("--dialogues", str(dialogues)).data
    assert (data.train, data.val, data.test) == split
    assert data.synthetic.dialogues == dialogues


def test_set_overrides_all_other_settings() -> None:
    assert study_of("--name", "a", "--set", "name=b").name == "b"
    assert study_of("--preset", "mission", "--set", "gate.mean_similarity=none").gate.mean_similarity is None


def test_settings_are_shown_without_running_anything(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "run", "--preset", "quick", "--show-settings"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "quick"


def test_paths_of_data_are_made_absolute_for_workers_and_hub_ids_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("people.jsonl").write_text('{"persona_id": "ana", "prompt": "hi", "response": "hello"}\n')
    for argument, named in (("people.jsonl", str(tmp_path.resolve() / "people.jsonl")), ("some/hub-id", "some/hub-id")):
        assert main(["study", "run", "--data", argument, "--show-settings"]) == 0
        assert json.loads(capsys.readouterr().out)["data"]["path"] == named
    assert main(["study", "run", "--set", "data.splits=people.jsonl", "--show-settings"]) == 0
    assert json.loads(capsys.readouterr().out)["data"]["splits"] == str(tmp_path.resolve() / "people.jsonl")


def test_commands_print_their_results_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLUSTERLORA_STACK_HOME", str(tmp_path / "no-stack"))

    def json_output(*words: str) -> object:
        assert main([*words, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    people = ["--set", "data.synthetic.cluster_sizes=[1,2]", "--set", "clustering.k=2", "--set", "data.synthetic.dialogues=3"]
    people += ["--set", "data.train=1", "--set", "data.val=1", "--set", "data.test=1"]
    folder = str(tmp_path / "people")
    assert json_output("data", "synthesize", folder, *people) == {"folder": folder, "personas": 3, "dialogues": 3}
    assert json_output("models", "path", "homelm") == {"name": "homelm", "folder": str(HOMELM_FOLDER)}
    assert json_output("down") == []


def test_commands_that_need_the_repository_say_so_when_only_the_wheel_is_installed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "deployments", None)
    monkeypatch.delitem(sys.modules, "deployments.local_services", raising=False)
    assert main(["down"]) == 1
    assert "clone the repository" in capsys.readouterr().err


@pytest.mark.whole
def test_the_persona_signal_of_data_is_printed_without_a_study(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLUSTERLORA_HOME", str(tmp_path))
    small = [
        "--preset",
        "quick",
        "--set",
        "data.synthetic.cluster_sizes=[3,3]",
        "--set",
        "clustering.k=2",
        "--set",
        "clustering.min_size=1",
    ]
    assert main(["data", "signal", *small, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["n_personas"] == 6
    assert 0 <= document["persona_beyond_prompts"]["accuracy"] <= 1
    assert not list(tmp_path.iterdir())


def test_a_study_of_own_data_with_a_preset_is_named_after_both(tmp_path: Path) -> None:
    file = tmp_path / "people.jsonl"
    file.touch()
    study = study_of("--data", str(file), "--preset", "taste")
    assert study.name == "people-taste"
    assert study.evaluation.headline == "nll"
    assert (study.gate.on_failure, study.gate.ladder) == ("continue", ())
    assert study_of("--data", str(tmp_path / ("x" * 60 + ".jsonl")), "--preset", "overnight").name == "x" * 38 + "-overnight"
    assert study_of("--data", str(file), "--preset", "taste", "--name", "mine").name == "mine"


def test_where_an_option_and_set_differ_it_is_said_which_counts(capsys: pytest.CaptureFixture[str]) -> None:
    assert study_of("--base-model", "homelm", "--set", "model.base=smollm2-135m").model.base == "smollm2-135m"
    assert capsys.readouterr().err == "model.base = 'smollm2-135m', as --set says: it counts more than the option, 'homelm'\n"
    study_of("--name", "mine", "--set", "name=mine")
    study_of("--dialogues", "10", "--set", "data.train=3")
    assert capsys.readouterr().err == "", "the same twice is nothing to tell, nor are shares that are refined"
    for dialogues in ([], ["--dialogues", "10"]):
        study_of("--personas", "5", *dialogues, "--set", "data.personas=7", "--set", "clustering.sizes=none")
        assert capsys.readouterr().err == "data.personas = 7, as --set says: it counts more than the option, 5\n"


@pytest.mark.whole
def test_an_estimate_prints_every_phase_and_keeps_nothing(
    tmp_path: Path, tiny_base_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CLUSTERLORA_HOME", str(tmp_path / "studies"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    small = [
        "--base-model",
        str(tiny_base_folder),
        "--set",
        "data.synthetic.cluster_sizes=[4,4]",
        "--set",
        "clustering.sizes=[4,4]",
        "--set",
        "clustering.k=2",
    ]
    assert main(["study", "estimate", "--preset", "quick", *small, "--workers", "2", "--json"]) == 0
    printed = capsys.readouterr()
    warnings = [line.partition("warning: ")[2] for line in printed.err.splitlines() if "warning: " in line]
    assert warnings, "a base of random weights"
    assert len(set(warnings)) == len(warnings), "each once"
    left = json.loads(printed.out)
    assert left["total"] == pytest.approx(sum(left[phase] for phase in ("preparation", "gate", "fan_out", "evaluation", "beside")))
    assert min(left["gate"], left["fan_out"], left["evaluation"]) > 0
    assert main(["study", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def options() -> Iterator[tuple[str, click.Option]]:
    """Yield every option with the words that give it."""
    for words, command in commands():
        for option in command.params:
            if isinstance(option, click.Option):
                yield f"{' '.join(words)} {option.opts[0]}", option


def test_no_option_takes_infinity_or_what_is_no_number() -> None:
    numbers = [(words, option) for words, option in options() if isinstance(option.type, click.types.FloatParamType)]
    assert len(numbers) >= 6
    for _, option in numbers:
        for value in ("nan", "inf", "-inf"):
            with pytest.raises(click.BadParameter, match=r"finite|range"):
                option.type.convert(value, option, None)


BOUNDED_BY_THE_SETTINGS = {"personas", "seeds", "cluster", "batch_size", "micro_batch", "epochs"}


def test_every_number_has_an_upper_bound() -> None:
    for words, option in options():
        if isinstance(option.type, click.IntRange | click.FloatRange) and option.name not in BOUNDED_BY_THE_SETTINGS:
            assert option.type.max is not None, words
        assert type(option.type) not in {click.types.IntParamType, click.types.FloatParamType}, words


@pytest.mark.parametrize("words", [["study", "cost", "x", "--cpu-hour-price", "nan"], ["merge", "x", "--density", "nan"]])
def test_a_number_that_is_none_is_wrong_usage(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert "nan is not a finite number." in capsys.readouterr().err
