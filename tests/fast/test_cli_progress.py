"""Progress as plain lines, and the views of a followed study."""

from uuid import UUID

import pytest

from clusterlora.cli.progress import console_log
from deployments.observe import Run, Snapshot
from deployments.view import LiveView, PlainView, clock


def run(name: str, state: str, *, number: int = 1, message: str = "", percent: float | None = None, progress: str = "") -> Run:
    ended = state in ("Completed", "OutOfMemory", "Failed")
    return Run(UUID(int=number), name, state, message, not ended, state == "Running", 61.0, percent, progress)


def picture(parent: Run, *runs: Run) -> Snapshot:
    return Snapshot(parent, runs, ended=not parent.open, completed=parent.state == "Completed")


def test_outside_a_terminal_a_phase_is_a_line_at_its_begin_and_one_at_its_end(capsys: pytest.CaptureFixture[str]) -> None:
    with console_log() as log:
        log.phase("train cluster 00", total=2, unit="steps")
        log.advance(loss=1.23456)
        log.advance(loss=0.5)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "train cluster 00: 2 steps"
    assert lines[1].startswith("train cluster 00: 2/2 steps  loss 0.5  in ")
    assert len(lines) == 2


def test_a_plain_view_says_only_what_changed(capsys: pytest.CaptureFixture[str]) -> None:
    parent = run("study · x", "Running", number=9)
    with PlainView() as view:
        view.show(picture(parent, run("train", "Running")))
        view.show(picture(parent, run("train", "Running")))
        view.show(picture(parent, run("train", "OutOfMemory", message="out of memory at micro-batch 2")))
    assert capsys.readouterr().err.splitlines() == [
        "   1:01  study · x: running",
        "   1:01  train: running",
        "   1:01  train: OutOfMemory after 1:01: out of memory at micro-batch 2",
    ]


def test_a_study_that_ended_before_it_was_followed_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    with PlainView() as view:
        view.show(picture(run("study · x", "Completed", message="done")))
    assert capsys.readouterr().err == "   1:01  study · x: Completed after 1:01: done\n"


def test_a_live_view_never_reads_names_as_markup(capsys: pytest.CaptureFixture[str]) -> None:
    with LiveView() as view:
        view.show(
            picture(
                run("study", "Running", number=2),
                run("[red]x[/red]", "Completed"),
                run("y", "Running", number=3, percent=40, progress="[b]1/2"),
            )
        )
    assert "[red]x[/red]: Completed" in capsys.readouterr().err


@pytest.mark.parametrize(("seconds", "shown"), [(0, "0:00"), (61.9, "1:01"), (3600, "1:00:00")])
def test_time_is_shown_as_on_a_clock(seconds: float, shown: str) -> None:
    assert clock(seconds) == shown
