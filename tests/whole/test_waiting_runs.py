"""Why a run waits is said with the command that helps: a paused pool, a paused queue, a pool without workers, busy workers."""

import os
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.states import Running

from deployments import waiting_runs
from deployments.prefect_status import studies_in_prefect
from deployments.waiting_runs import PoolProblem, pool_problems

LOGIN = 'eval "$(clusterlora up --exports)" && '


@flow(name="nothing to do")
def idle() -> None: ...


@flow(name="study")
def idle_study(config: dict[str, Any] | None = None) -> None: ...


def why_waiting(study: str) -> tuple[str, ...]:
    return tuple(map(str, waiting_runs.why_waiting(study, os.environ)))


@pytest.fixture
def client(site: dict[str, str]) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as client:
        yield client


@pytest.fixture
def pool(client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A process pool of its own with one online worker and a deployment; a run that is late at all waits."""
    monkeypatch.setattr(waiting_runs, "GRACE_SECONDS", 0.0)
    name = f"pool-{uuid4().hex[:6]}"
    client.create_work_pool(WorkPoolCreate(name=name, type="process"))
    client.send_worker_heartbeat(name, "worker of a test")
    yield name
    client.delete_work_pool(name)


def late_run(client: SyncPrefectClient, pool: str, study: str, name: str = "train · unified") -> None:
    deployment = client.create_deployment(client.create_flow(idle), name=f"for-{pool}-{uuid4().hex[:6]}", work_pool_name=pool)
    client.create_flow_run_from_deployment(deployment, name=name, tags=[f"study:{study}"])


def test_nothing_is_said_while_nothing_waits(client: SyncPrefectClient, pool: str) -> None:
    assert why_waiting("nobody") == ()
    assert pool_problems([pool], os.environ) == ()


def test_a_run_of_a_paused_pool_says_how_to_resume_it(client: SyncPrefectClient, pool: str) -> None:
    late_run(client, pool, pool)
    client.update_work_pool(pool, WorkPoolUpdate(is_paused=True))
    assert why_waiting(pool) == (
        f"train · unified waits for pool {pool}, which is paused; resume it: {LOGIN}prefect work-pool resume {pool}",
    )
    assert pool_problems([pool, "absent"], os.environ) == (
        PoolProblem(pool, "is paused", f"resume it: {LOGIN}prefect work-pool resume {pool}"),
    )


def test_a_run_of_a_paused_queue_says_how_to_resume_it(client: SyncPrefectClient, pool: str) -> None:
    late_run(client, pool, pool)
    (queue,) = client.read_work_queues(work_pool_name=pool)
    client.update_work_queue(queue.id, is_paused=True)
    (reason,) = why_waiting(pool)
    assert reason.endswith(f"prefect work-queue resume {queue.name} --pool {pool}")


def test_a_run_of_a_pool_without_workers_says_how_to_start_one(client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting_runs, "GRACE_SECONDS", 0.0)
    local, docker = (f"{kind}-{uuid4().hex[:6]}" for kind in ("process", "docker"))
    for name in (local, docker):
        client.create_work_pool(WorkPoolCreate(name=name, type=name.partition("-")[0]))
        late_run(client, name, name)
        late_run(client, name, name, "train · fan-out")
    assert why_waiting(local) == (f"2 runs wait (train · unified, ...) for pool {local}, which has no worker; start one: clusterlora up",)
    assert why_waiting(docker)[0].endswith(f"start one: {LOGIN}prefect worker start --pool {docker} --type docker")


def test_workers_busy_with_others_are_said_only_when_nothing_of_the_study_runs(
    client: SyncPrefectClient, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    late_run(client, pool, pool)
    assert why_waiting(pool) == (), "a worker may be about to take it"
    monkeypatch.setattr(waiting_runs, "BUSY_SECONDS", 0.0)
    (reason,) = why_waiting(pool)
    assert "which is busy with other runs" in reason
    run = client.create_flow_run(idle, name="train · cluster 00", tags=[f"study:{pool}"])
    client.set_flow_run_state(run.id, Running(), force=True)
    assert why_waiting(pool) == ()


def test_a_study_whose_run_cannot_start_says_so_wherever_studies_are_shown(client: SyncPrefectClient, pool: str) -> None:
    deployment = client.create_deployment(client.create_flow(idle_study), name=f"for-{pool}", work_pool_name=pool)
    name = f"seen-{uuid4().hex[:6]}"
    # Launched from the page, a run has no tag and a name of Prefect's before it begins.
    client.create_flow_run_from_deployment(deployment, name="dashing-fox", parameters={"config": {"name": name}})
    client.update_work_pool(pool, WorkPoolUpdate(is_paused=True))
    seen = studies_in_prefect({name: ""}, os.environ, decided_by=lambda _: None)[name]
    assert seen.status == "scheduled"
    assert [str(note) for note in seen.notes] == [
        f"dashing-fox waits for pool {pool}, which is paused; resume it: {LOGIN}prefect work-pool resume {pool}"
    ]
