"""A study is followed to its end, through crashes of its own run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from clusterlora.settings import Study
from deployments import launch
from deployments.observe import Run, Snapshot
from deployments.services import Addresses
from deployments.stack import Stack


def ended(state: str) -> Snapshot:
    run = Run(uuid4(), "study", state, "the run's process is gone", open=False, running=False, seconds=1.0)
    return Snapshot(run, (run,), ended=True, completed=state == "Completed")


@pytest.mark.parametrize(
    ("ends", "launches"),
    [
        (["Completed"], 1),
        (["Failed", "Completed"], 1),
        (["Crashed", "Completed"], 2),
        (["Crashed", "Crashed", "GateRefused"], 3),
        (["Crashed", "Crashed", "Crashed", "Completed"], 3),
    ],
)
def test_a_study_whose_own_run_crashed_is_launched_again_and_what_failed_is_not(
    ends: Sequence[str], launches: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = Stack(tmp_path, Addresses(1, 2), {})
    monkeypatch.setattr(launch.local_stack, "died", lambda _home: ("prefect-server",))
    states, launched, told = iter(ends), [], []

    def start(study: Study, _stack: Stack) -> Any:
        launched.append(study.name)
        return uuid4()

    monkeypatch.setattr(launch.local_stack, "up", lambda *_, **__: stack)
    monkeypatch.setattr(launch, "launch", start)
    monkeypatch.setattr(launch, "follow", lambda *_: ended(next(states)))
    found = launch.run_study(Study(name="x"), home=tmp_path, workers=None, stay=False, say=told.append, results=False)
    assert found.parent.state == ends[launches - 1]
    assert launched == ["x"] * launches
    assert sum("is launched again" in line for line in told) == launches - 1


def test_a_study_whose_stack_was_stopped_is_not_launched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch.local_stack, "up", lambda *_, **__: Stack(tmp_path, Addresses(1, 2), {}))
    monkeypatch.setattr(launch, "launch", lambda *_: uuid4())
    monkeypatch.setattr(launch, "follow", lambda *_: ended("Crashed"))
    said: list[str] = []
    found = launch.run_study(Study(name="x"), home=tmp_path, workers=None, stay=False, say=said.append, results=False)
    assert found.parent.state == "Crashed"
    assert not any("launched again" in line for line in said)
