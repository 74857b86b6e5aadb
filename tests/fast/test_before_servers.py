"""Whatever `study run` cannot use is refused before a server starts, with invented people and the built-in base as with own data."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from clusterlora.cli import main, usable_inputs
from clusterlora.errors import BadSettings
from clusterlora.models.base import base_revision
from deployments import launch


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Return the names of the studies that servers were started for."""
    names: list[str] = []

    def run_study(study: Any, **_options: Any) -> SimpleNamespace:
        names.append(study.name)
        return SimpleNamespace(completed=True)

    monkeypatch.setattr(launch, "run_study", run_study)
    monkeypatch.setenv("CLUSTERLORA_HOME", str(tmp_path / "studies"))
    monkeypatch.setenv("CLUSTERLORA_STACK_HOME", str(tmp_path / "no-stack"))
    return names


def run(*settings: str) -> int:
    return main(["study", "run", "--preset", "quick", *(word for setting in settings for word in ("--set", setting))])


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (['recipe.target_modules=["nope"]'], "recipe.target_modules = nope: the base model has no such layer; it has q_proj"),
        (["model.max_length=100000"], "model.max_length = 100000 and evaluation.max_new_tokens = 64 exceed the 1024 positions"),
        (["evaluation.max_new_tokens=1000", "model.max_length=1024"], "exceed the 1024 positions"),
        (["model.template_date=nope"], "model.template_date = 'nope': write it as YYYY-MM-DD"),
        (['model.template_arguments=[["a b","1"]]'], "model.template_arguments: 'a b' is not a name"),
        (["model.embedding=./nowhere/e"], "./nowhere/e"),
        (["runtime.gpu_pool=nope"], "runtime.gpu_pool = 'nope': this machine's Prefect has no deployment that trains in that pool"),
        (["runtime.gpu_pool=gpu-docker"], "runtime.gpu_pool = 'gpu-docker'"),
        (
            [
                'evaluation.metrics=["embedding_similarity","nll","judge"]',
                "judge.address=http://127.0.0.1:9/v1",
                "judge.model=m",
                "judge.preferences=/nowhere/x.jsonl",
            ],
            "/nowhere/x.jsonl",
        ),
        (["judge.address=http://[::1"], "judge.address = 'http://[::1': is no address"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_invented_people_and_the_built_in_base_cannot_do_starts_no_server(
    settings: list[str], says: str, started: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*settings) == 1
    printed = capsys.readouterr().err
    assert says in printed
    assert "unexpected" not in printed
    assert printed.count("error: ") == 1
    assert started == []


def test_a_study_as_it_comes_starts_without_a_model_being_opened(started: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(_study: Any) -> None:
        raise AssertionError("a model was opened")

    monkeypatch.setattr(usable_inputs, "_refuse_unusable", opened)
    assert run() == 0
    assert started == ["quick"]
    assert base_revision("homelm")


def test_settings_that_fit_are_looked_at_and_start(started: list[str]) -> None:
    assert run('recipe.target_modules=["q_proj"]', "model.max_length=300") == 0
    assert started == ["quick"]


def test_people_without_descriptions_are_not_clustered_by_them(
    started: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "sun moon tree river stone cloud".split()  # noqa: SIM905
    rows = [
        {"persona_id": who, "prompt": f"{who} asks number {n} please {word}", "response": f"{n * 7} is what {who} gets {word}"}
        for who in ("ana", "ben", "cleo", "dan")
        for n, word in enumerate(words)
    ]
    data = tmp_path / "people.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    own = ["--data", str(data), "--base-model", "homelm", "--set", "data.on_misfit=warn", "--set", "clustering.k=2"]
    assert main(["study", "run", *own, "--set", "clustering.algorithm=description"]) == 1
    assert "persona 'ana' has no description, nor have 3 others; add them, or set clustering.algorithm=responses" in capsys.readouterr().err
    assert started == []


def test_a_pool_that_a_file_describes_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from deployments import apply

    (tmp_path / "gpu-big.json").write_text("{}", encoding="utf-8")
    monkeypatch.setattr(apply, "POOLS", tmp_path)
    launch.refuse_unknown_pool("gpu-big", home=tmp_path)
    with pytest.raises(BadSettings, match="'gpu-small'"):
        launch.refuse_unknown_pool("gpu-small", home=tmp_path)


def test_a_configuration_without_an_end_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "run", "--config", "/dev/zero"]) == 1
    assert "/dev/zero: has more than 1,000,000 characters, so it is no configuration; name the TOML file" in capsys.readouterr().err
