"""When a worker of the local pools asks Prefect for runs: when one was made, when there is room again, and after a while."""

import asyncio
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from prefect.workers.base import BaseWorker
from prefect.workers.process import ProcessWorker

from deployments.local_worker import ASK_SECONDS, FULL_SECONDS, RETRY_SECONDS, Bell, LocalWorker


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "bell"


@pytest.fixture
def bell(file: Path, clock: Clock) -> Bell:
    bell = Bell(file, clock)
    assert bell.is_due(1), "at first nothing is known"
    assert not bell.is_due(1)
    return bell


def ring(file: Path, at: int) -> None:
    file.touch()
    os.utime(file, ns=(at, at))


def test_a_run_that_was_made_is_asked_for_at_once_and_once(bell: Bell, file: Path) -> None:
    ring(file, 1)
    assert bell.is_due(1)
    assert not bell.is_due(1)
    ring(file, 2)
    assert bell.is_due(1)


def test_without_a_bell_it_is_asked_every_ten_seconds(bell: Bell, clock: Clock) -> None:
    clock.now = ASK_SECONDS - 0.1
    assert not bell.is_due(1)
    clock.now = ASK_SECONDS
    assert bell.is_due(1)
    assert not bell.is_due(1)


def test_room_that_is_there_again_is_asked_for_and_a_bell_heard_without_room_is_not_lost(bell: Bell, file: Path) -> None:
    assert not bell.is_due(0)
    ring(file, 1)
    assert not bell.is_due(0), "what could be taken has no room"
    assert bell.is_due(1)
    assert not bell.is_due(1)


def test_room_that_was_taken_between_two_looks_is_seen(bell: Bell) -> None:
    assert bell.is_due(4)
    assert not bell.is_due(3)
    assert bell.is_due(4)


def test_a_worker_that_took_a_run_asks_again_unless_it_is_full(bell: Bell) -> None:
    bell.taken()
    assert bell.is_due(1), "another worker was faster, and there may be more runs"
    assert not bell.is_due(1)
    bell.taken()
    assert not bell.is_due(0)


def test_a_server_that_does_not_answer_is_asked_again_soon(bell: Bell, clock: Clock) -> None:
    clock.now = ASK_SECONDS
    assert bell.is_due(1)
    bell.unanswered()
    assert not bell.is_due(1)
    clock.now += RETRY_SECONDS
    assert bell.is_due(1)
    assert not bell.is_due(1)


def test_a_full_worker_asks_within_the_minute_that_prefect_allows(bell: Bell, clock: Clock) -> None:
    clock.now = FULL_SECONDS - 0.1
    assert not bell.is_due(0)
    clock.now = FULL_SECONDS
    assert bell.is_due(0)
    assert FULL_SECONDS < 60


def test_prefects_own_process_worker_stays_what_others_start() -> None:
    assert BaseWorker.get_worker_class_from_type("process") is ProcessWorker
    assert LocalWorker.type == ProcessWorker.type


def test_a_run_whose_former_process_is_ending_waits_and_keeps_no_other_back(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []

    async def take(_worker: ProcessWorker, flow_run_response: list[Any]) -> list[Any]:
        taken.extend(one.flow_run.id for one in flow_run_response)
        return []

    async def offered() -> None:
        worker = LocalWorker(work_pool_name="gpu")
        worker._limiter = anyio.CapacityLimiter(4)
        worker.limiter.acquire_on_behalf_of_nowait("resumed")
        runs = [SimpleNamespace(flow_run=SimpleNamespace(id=name)) for name in ("resumed", "other")]
        await worker._submit_scheduled_flow_runs(runs)  # pyrefly: ignore[bad-argument-type]

    monkeypatch.setattr(ProcessWorker, "_submit_scheduled_flow_runs", take)
    asyncio.run(offered())
    assert taken == ["other"]
