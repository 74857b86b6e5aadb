"""A person is forgotten where MLflow and Prefect have written of them: both servers' files are searched byte by byte."""

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterTags

from clusterlora.metadata import RegisteredChampion
from clusterlora.ports.stores import Stores
from clusterlora.pseudonyms import pseudonym
from clusterlora.requests import AssignmentRequest, ForgetRequest
from clusterlora.settings import Study
from clusterlora.stages.cluster import cluster_study
from clusterlora.stages.forget import read_certificate
from clusterlora.stages.prepare import prepare_study
from clusterlora.stages.remaining import run_remaining
from clusterlora.values import Clustering
from clusterlora.wiring import from_environment
from flows.assign import assign
from flows.compare import compare
from flows.forget import forget
from tests.fast.test_forget import LEAVES, PEOPLE, canaries_of, small_study, write_people
from tests.fixtures.canaries import mean_exposure, traces
from tests.fixtures.session import session_folder
from tests.fixtures.stages import LOG

# MLflow warns of its own type hints when its model flavours are imported.
pytestmark = [pytest.mark.timeout(900), pytest.mark.filterwarnings("ignore:.*AnyType:UserWarning")]


@pytest.fixture
def stores(prefect_server: str, mlflow_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stores:
    """Return stores of a home of its own, tracked by the session's MLflow."""
    monkeypatch.setenv("CLUSTERLORA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CLUSTERLORA_STACK_HOME", str(session_folder()))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    monkeypatch.delenv("CLUSTERLORA_DATABASE_URL", raising=False)
    return from_environment()


def finished(base: Path, data: Path, stores: Stores) -> Study:
    """Run a study to its end, then let Prefect write of the person: parameters with their text, a table with their id."""
    write_people(data, PEOPLE)
    study = small_study(base, data)
    prepare_study(study, stores, LOG)
    stores.studies.save_clustering(study.name, Clustering("given", (tuple(PEOPLE[:3]), tuple(PEOPLE[3:]))))
    cluster_study(study.name, stores, LOG)
    run_remaining(study.name, stores, LOG)
    rows = tuple(json.loads(line) for line in data.read_text().splitlines() if LEAVES in line)
    refused = assign(AssignmentRequest(study_name=study.name, rows=rows), return_state=True)  # pyrefly: ignore[no-matching-overload]
    assert refused.is_failed(), "who is in the study is nobody new: states, logs and events have the reason with the id"
    compare(study.name)
    return study


def test_a_person_is_in_no_byte_of_mlflow_and_prefect_and_the_champion_is_another_version(
    stores: Stores, tiny_base_folder: Path, tmp_path: Path
) -> None:
    study = finished(tiny_base_folder, tmp_path / "people.jsonl", stores)
    words = (LEAVES, *canaries_of(LEAVES))
    client = MlflowClient(str(stores.tracker.address))
    before = {adapter.name: adapter for adapter in stores.studies.adapters(study.name)}
    assert all(traces(session_folder() / server, *words) for server in ("mlflow", "prefect")), "both have the person before"
    digest = pseudonym(stores.home, LEAVES, make_key=True)

    file = Path(forget(ForgetRequest(digest=digest)))

    assert traces(stores.home, *words) == []
    for server in ("mlflow", "prefect"):
        assert traces(session_folder() / server, *words) == []
    (done,) = read_certificate(file).studies
    after = {adapter.name: adapter for adapter in stores.studies.adapters(study.name)}
    assert {record.name for record in done.removed} == {"unified", "cluster-00", "persona-0001"}
    for adapter in after.values():
        assert stores.tracker.has_run(str(adapter.run_id)), "what was kept is in MLflow, too"
        folder = tmp_path / "downloaded" / adapter.key
        folder.mkdir(parents=True)
        assert stores.tracker.download(str(adapter.uri), folder)
    gone = {record.key for record in done.removed}
    registered = stores.tracker.versions(study.name)
    assert registered
    assert not gone & {key for version in registered for key in version.adapter_keys}
    if done.champion_after is not None:
        assert stores.tracker.champion(study.name) == (study.name, done.champion_after)
        assert stores.studies.metadata(study.name, RegisteredChampion) is not None
    else:
        assert stores.tracker.champion(study.name) is None
    experiments = [one.name for one in client.search_experiments(filter_string=f"name LIKE '{study.name}%'")]
    assert experiments == [study.name]
    learned = [f"It is {one}." for one in canaries_of(LEAVES)]
    still, chance = mean_exposure(tiny_base_folder, stores.adapters.path(after["cluster-00"].key), learned, prompt="Say word 3")
    assert still < chance + 1.5
    with get_client(sync_client=True) as prefect:
        tagged = FlowRunFilter(tags=FlowRunFilterTags(all_=[f"study:{study.name}"]))
        assert prefect.read_flow_runs(flow_run_filter=tagged) == []
    assert before.keys() - after.keys() == {"persona-0001"}
