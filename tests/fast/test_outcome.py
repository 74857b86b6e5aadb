"""The recorded status of a study whose run fails or is cancelled."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import Cancelled, Crashed, Failed, Running, Scheduled

from clusterlora.config import as_mapping
from clusterlora.form import MISSION
from clusterlora.ports.run_log import SilentLog
from clusterlora.recipe import Recipe
from clusterlora.settings import ClusteringSettings, DataSettings, RuntimeSettings, Study, SyntheticSettings, prepared
from clusterlora.stages.prepare import prepare_study
from clusterlora.stores.null_tracker import NullTracker
from clusterlora.wiring import from_environment
from tasks.outcome import cancel_children, record_failure

SMALL = Study(
    name="small",
    data=DataSettings(train=1, val=1, test=1, synthetic=SyntheticSettings(cluster_sizes=(1, 2), dialogues=3)),
    clustering=ClusteringSettings(k=2),
)


@flow(name="parent")
def parent() -> None: ...


def run_of(config: Mapping[str, Any]) -> FlowRun:
    return FlowRun(flow_id=uuid4(), parameters={"config": dict(config)})


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """Return a study that is prepared and running, in a database of its own."""
    monkeypatch.setenv("CLUSTERLORA_HOME", str(tmp_path))
    monkeypatch.setenv("CLUSTERLORA_DATABASE_URL", f"sqlite:///{tmp_path / 'studies.db'}")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    prepare_study(SMALL, from_environment(), SilentLog())
    return SMALL


@pytest.fixture
def statuses(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the list of final statuses that the tracker receives."""
    statuses: list[str] = []
    monkeypatch.setattr(NullTracker, "end_study", lambda _, study, *, status: statuses.append(f"{study} {status}"))
    return statuses


@pytest.mark.parametrize(("state", "status"), [(Failed(), "failed"), (Crashed(), "failed"), (Cancelled(), "cancelled")])
def test_the_failure_of_a_run_becomes_the_status_of_its_study(study: Study, statuses: list[str], state: State[Any], status: str):
    record_failure(parent, run_of(as_mapping(study)), state)
    assert from_environment().studies.status("small") == status
    assert statuses == [f"small {status}"]


def test_a_study_whose_dtype_was_decided_is_still_the_one_that_was_asked_for(study: Study):
    assert study.model.dtype == "auto"
    assert from_environment().studies.study("small").model.dtype != "auto"
    record_failure(parent, run_of(as_mapping(study)), Failed())
    assert from_environment().studies.status("small") == "failed"


def test_a_run_without_parameters_is_of_the_study_by_default(study: Study, statuses: list[str]):
    studies = from_environment().studies
    studies.create_study(prepared(MISSION, "float32"))
    studies.set_status("mission", "running")
    record_failure(parent, FlowRun(flow_id=uuid4(), parameters={}), Failed())
    assert statuses == ["mission failed"]
    assert (studies.status("mission"), studies.status(study.name)) == ("failed", "running")


def test_other_workers_and_shards_are_still_the_same_study(study: Study, statuses: list[str]):
    record_failure(parent, run_of(as_mapping(replace(study, runtime=RuntimeSettings(shards=7)))), Failed())
    assert statuses == ["small failed"]


@pytest.mark.parametrize(
    "config",
    [as_mapping(replace(SMALL, recipe=Recipe(rank=4))), {"name": "small", "methods": ["unyfied"]}, {"name": "another"}],
    ids=["other settings", "impossible settings", "never recorded"],
)
def test_a_refused_run_leaves_the_study_of_its_name_alone(study: Study, statuses: list[str], config: dict[str, Any]):
    record_failure(parent, run_of(config), Failed())
    assert from_environment().studies.status(study.name) == "running"
    assert statuses == []


def test_a_finished_study_stays_finished_when_a_later_run_fails_before_it_starts(study: Study, statuses: list[str]):
    from_environment().studies.set_status("small", "finished")
    record_failure(parent, run_of(as_mapping(study)), Failed())
    assert from_environment().studies.status("small") == "finished"


@pytest.mark.whole
def test_a_cancelled_study_cancels_its_own_runs_and_no_others(prefect_server: str):
    with get_client(sync_client=True) as client:

        def started(study: str, state: State[Any]) -> FlowRun:
            return client.create_flow_run(parent, tags=[f"study:{study}"], state=state, parameters={})

        waiting, running, ended, stranger = (
            started("doomed", Scheduled()),
            started("doomed", Running()),
            started("doomed", Failed()),
            started("other", Running()),
        )
        itself = started("doomed", Running())
        itself.parameters = {"config": {"name": "doomed"}}
        cancel_children(parent, itself, Cancelled())
        states = [client.read_flow_run(run.id).state_name for run in (waiting, running, ended, stranger, itself)]
    assert states == ["Cancelled", "Cancelling", "Failed", "Running", "Running"]


@pytest.mark.whole
def test_a_cancelled_run_without_parameters_cancels_the_runs_of_the_default_study(prefect_server: str):
    with get_client(sync_client=True) as client:
        child = client.create_flow_run(parent, tags=["study:mission"], state=Running(), parameters={})
        cancel_children(parent, FlowRun(flow_id=uuid4(), parameters={}), Cancelled())
        assert client.read_flow_run(child.id).state_name == "Cancelling"


def test_a_cancelled_run_with_impossible_settings_has_started_nothing():
    cancel_children(parent, run_of({"name": "small", "methods": ["unyfied"]}), Cancelled())
