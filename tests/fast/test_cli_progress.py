"""Progress in the terminal: lines of a command, and the two views of a study that is followed."""

from uuid import UUID

import pytest

from clusterlora.cli.progress import console_log
from deployments.prefect_client import RunSnapshot, StudySnapshot
from deployments.terminal_view import LiveView, PlainView, format_duration


def run(name: str, state: str, *, number: int = 1, message: str = "", percent: float | None = None, progress: str = "") -> RunSnapshot:
    ended = state in ("Completed", "OutOfMemory", "Failed")
    return RunSnapshot(UUID(int=number), name, state, message, not ended, state == "Running", 61.0, percent, progress)


def study(parent: RunSnapshot, *runs: RunSnapshot) -> StudySnapshot:
    return StudySnapshot(parent, runs, ended=not parent.open, completed=parent.state == "Completed")


def test_outside_a_terminal_a_phase_prints_a_line_at_its_start_and_one_at_its_end(capsys: pytest.CaptureFixture[str]) -> None:
    with console_log() as log:
        log.phase("train cluster 00", total=2, unit="steps")
        log.advance(loss=1.23456)
        log.advance(loss=0.5)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "train cluster 00: 2 steps"
    assert lines[1].startswith("train cluster 00: 2/2 steps  loss 0.5  in ")
    assert len(lines) == 2


def test_a_plain_view_prints_only_changes(capsys: pytest.CaptureFixture[str]) -> None:
    parent = run("study · x", "Running", number=9)
    with PlainView() as view:
        view.show(study(parent, run("train", "Running")))
        view.show(study(parent, run("train", "Running")))
        view.show(study(parent, run("train", "OutOfMemory", message="out of memory at micro-batch 2")))
    assert capsys.readouterr().err.splitlines() == [
        "   1:01  study · x: running",
        "   1:01  train: running",
        "   1:01  train: OutOfMemory after 1:01: out of memory at micro-batch 2",
    ]


def test_a_study_that_has_already_ended_is_printed_once(capsys: pytest.CaptureFixture[str]) -> None:
    with PlainView() as view:
        view.show(study(run("study · x", "Completed", message="done")))
    assert capsys.readouterr().err == "   1:01  study · x: Completed after 1:01: done\n"


def test_a_live_view_does_not_interpret_names_as_markup(capsys: pytest.CaptureFixture[str]) -> None:
    with LiveView() as view:
        view.show(
            study(
                run("study", "Running", number=2),
                run("[red]x[/red]", "Completed"),
                run("y", "Running", number=3, percent=40, progress="[b]1/2"),
            )
        )
    assert "[red]x[/red]: Completed" in capsys.readouterr().err


@pytest.mark.parametrize(("seconds", "formatted"), [(0, "0:00"), (61.9, "1:01"), (3600, "1:00:00")])
def test_durations_are_formatted_as_minutes_and_seconds(seconds: float, formatted: str) -> None:
    assert format_duration(seconds) == formatted
