"""Progress in the Prefect UI."""

import time
from collections.abc import Iterator
from types import SimpleNamespace
from uuid import UUID, uuid4

import httpx
import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.logging import disable_run_logger

from clusterlora.progress.timing import duration
from tasks import run_log
from tasks.run_log import PrefectRunLog, artifact_key


def test_an_artifact_key_keeps_only_what_prefect_accepts():
    assert artifact_key("gate", "My_Study.2", "Lower LR") == "gate-my-study-2-lower-lr"


@pytest.mark.parametrize(("seconds", "words"), [(0.4, "0 s"), (89, "89 s"), (120, "2 min"), (3 * 3600 + 300, "3 h 05 min")])
def test_a_duration_is_formatted_for_people(seconds: float, words: str):
    assert duration(seconds) == words


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[float, str]]]:
    """Percent and words of the artifact each time it is drawn, outside a run and without a server."""
    pictures: list[tuple[float, str]] = []

    def create(percent: float, *, key: str, description: str) -> UUID:
        pictures.append((percent, description))
        return uuid4()

    def update(artifact: UUID, percent: float, *, description: str) -> None:
        pictures.append((percent, description))

    monkeypatch.setattr(run_log, "create_progress_artifact", create)
    monkeypatch.setattr(run_log, "update_progress_artifact", update)
    with disable_run_logger():
        yield pictures


def test_a_phase_that_does_more_than_it_planned_is_complete(drawn: list[tuple[float, str]]):
    log = PrefectRunLog("mission", "train")
    log.phase("train unified", total=2, unit="steps")
    log.advance(3)
    first_percent, (percent, words) = drawn
    assert first_percent == (0.0, "train unified: 0/2 steps")
    assert percent == 100.0
    assert words.startswith("train unified: 3/2 steps · took ")


def test_what_is_done_once_before_the_first_units_is_no_part_of_the_pace(drawn: list[tuple[float, str]], monkeypatch: pytest.MonkeyPatch):
    moment = 1e6
    monkeypatch.setattr(run_log, "time", SimpleNamespace(monotonic=lambda: moment))
    log = PrefectRunLog("mission", "evaluate")
    log.phase("answer", total=101, unit="answers")
    moment += 90
    log.advance()
    assert log.text() == "answer: 1/101 answers", "one answer after 90 seconds of preparation tells no pace"
    moment += 10
    log.advance(20)
    assert log.text() == "answer: 21/101 answers · about 40 s left"


def test_a_phase_with_nothing_to_do_is_complete_when_it_begins(drawn: list[tuple[float, str]]):
    PrefectRunLog("mission", "train").phase("train unified", total=0, unit="steps")
    ((percent, words),) = drawn
    assert percent == 100.0
    assert words.startswith("train unified: 0/0 steps · took ")


def test_the_picture_is_drawn_again_only_when_it_is_time_or_the_phase_is_complete(
    drawn: list[tuple[float, str]], monkeypatch: pytest.MonkeyPatch
):
    moment = 1e6
    monkeypatch.setattr(run_log, "time", SimpleNamespace(monotonic=lambda: moment))
    log = PrefectRunLog("mission", "train")
    log.phase("train unified", total=4, unit="steps")
    log.advance(1)
    assert [percent for percent, _ in drawn] == [0.0]
    moment += run_log.ARTIFACT_EVERY_SECONDS
    log.advance(1)
    assert [percent for percent, _ in drawn] == [0.0, 50.0]
    log.advance(2)
    assert [percent for percent, _ in drawn] == [0.0, 50.0, 100.0]


@pytest.mark.whole
def test_a_phase_is_one_progress_artifact_with_facts_and_an_estimate(prefect_server: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(run_log, "ARTIFACT_EVERY_SECONDS", 0.0)
    seen: list[tuple[float, str]] = []

    def artifacts() -> list[tuple[float, str]]:
        with get_client(sync_client=True) as client:
            stored = client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=["progress-mission-train"])))
        return [(float(str(artifact.data)), artifact.description or "") for artifact in stored]

    @flow
    def training() -> None:
        log = PrefectRunLog("mission", "train")
        log.phase("train unified", total=4, unit="steps")
        time.sleep(0.05)
        log.advance(1, loss=3.0)
        log.advance(1, loss=2.5)
        seen.extend(artifacts())
        log.advance(2, loss=1.25)

    training()
    ((early, early_words),) = seen
    assert early == 50.0
    assert early_words.startswith("train unified: 2/4 steps · loss 2.5 · about ")
    ((late, late_words),) = artifacts()
    assert late == 100.0
    assert "4/4 steps · loss 1.25 · took" in late_words


@pytest.mark.whole
def test_an_unreachable_server_loses_the_progress_artifact_and_not_the_work(prefect_server: str, monkeypatch: pytest.MonkeyPatch):
    def nobody_there(*_: object, **__: object) -> None:
        raise httpx.ConnectError("connection refused")

    monkeypatch.setattr(run_log, "create_progress_artifact", nobody_there)

    @flow
    def training() -> str:
        log = PrefectRunLog("mission", "train")
        log.phase("train", total=2, unit="steps")
        log.advance(2)
        return log.text()

    assert training().startswith("train: 2/2 steps")
