"""What is done to a study on Prefect's pages is told by the command line, with the command that helps."""

import os
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import State
from prefect.states import AwaitingRetry, Cancelled, Cancelling, Completed, Failed, Running, Scheduled, Suspended

from deployments.prefect_status import StudyInPrefect, studies_in_prefect


@flow(name="study")
def idle_study(config: dict[str, Any] | None = None) -> None: ...


@flow(name="train")
def idle_training() -> None: ...


@pytest.fixture
def client(site: dict[str, str]) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as client:
        yield client


@pytest.fixture
def study() -> str:
    return f"seen-{uuid4().hex[:6]}"


def launched(client: SyncPrefectClient, study: str, *states: State[Any]) -> None:
    run = client.create_flow_run(idle_study, name=f"study · {study}", tags=[f"study:{study}"], state=Scheduled())
    for state in states:
        client.set_flow_run_state(run.id, state, force=True)


def seen(study: str, recorded: str = "running", decided_by: Callable[[str], str | None] = lambda _: None) -> StudyInPrefect:
    return studies_in_prefect({study: recorded}, os.environ, decided_by=decided_by)[study]


AGAIN = "continue it with: clusterlora study run --name"


@pytest.mark.parametrize(
    ("states", "recorded", "status", "note"),
    [
        ((), "running", "scheduled", None),
        ((Running(),), "running", "running", None),
        ((Running(), Completed()), "finished", "finished", None),
        ((Running(), Cancelling()), "running", "being cancelled", f"its run is being cancelled in Prefect; then {AGAIN} "),
        ((Running(), Cancelled()), "running", "cancelled", f"its run was cancelled in Prefect; {AGAIN} "),
        ((Suspended(timeout_seconds=60), Cancelled()), "running", "cancelled", f"its run was cancelled in Prefect; {AGAIN} "),
        ((Running(), Failed(message="no disk")), "running", "failed", f"its run failed (no disk); {AGAIN} "),
        ((Running(), Failed(), AwaitingRetry()), "failed", "scheduled again, after it was failed", None),
        ((Running(), Failed(), Running()), "failed", "running", None),
    ],
)
def test_the_state_of_the_latest_run_is_told(
    client: SyncPrefectClient, study: str, states: tuple[State[Any], ...], recorded: str, status: str, note: str | None
) -> None:
    launched(client, study, Running(), Completed())  # an earlier launch
    launched(client, study, *states)
    found = seen(study, recorded)
    assert (found.status, [str(one) for one in found.notes]) == (status, [note + study] if note else [])


def test_a_deleted_study_is_told_with_the_runs_that_go_on(client: SyncPrefectClient, study: str) -> None:
    launched(client, study, Running())
    training = client.create_flow_run(idle_training, name="train · unified", tags=[f"study:{study}"])
    client.set_flow_run_state(training.id, Running(), force=True)
    (parent,) = [run for run in client.read_flow_runs() if run.name == f"study · {study}"]
    client.delete_flow_run(parent.id)
    found = seen(study)
    assert found.status == "running by hand, or deleted in Prefect"
    deleted, going_on = map(str, found.notes)
    assert "its run was deleted" in deleted
    assert deleted.endswith(f"{AGAIN} {study}")
    assert going_on.startswith("1 run of it not yet ended (train · unified); cancel with: ")
    assert str(training.id) in going_on
    assert seen(study, "finished") == StudyInPrefect("finished")


def test_a_suspended_study_waits_for_a_decision_or_for_its_delivery(client: SyncPrefectClient, study: str) -> None:
    launched(client, study, Running(), Suspended(timeout_seconds=60))
    undecided, decided = seen(study), seen(study, decided_by=lambda _: "ann")
    assert undecided.status == "waits for a decision"
    assert f"clusterlora study decide {study}" in undecided.notes[0].fix
    assert decided.status == "waits for a recorded decision"
    assert str(decided.notes[0]) == (
        f"the decision of ann is recorded, but its run in Prefect has not got it; deliver it with: clusterlora study run --name {study}"
    )


def test_a_study_launched_from_the_page_is_known_before_it_has_begun(client: SyncPrefectClient, study: str) -> None:
    client.create_flow_run(idle_study, name="dashing-fox", parameters={"config": {"name": study}}, state=Scheduled())
    assert seen(study, "").status == "scheduled"
