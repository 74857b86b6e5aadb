"""The deployed flow that gives somebody new a cluster: dialogues as rows travel with the run, and the table is an artifact."""

from pathlib import Path
from typing import Any, cast

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment

from clusterlora.settings import ClusteringSettings, DataSettings, EvaluationSettings, GateSettings, ModelSettings, Recipe, Study
from clusterlora.values import Clustering
from clusterlora.wiring import from_environment

pytestmark = [pytest.mark.timeout(900)]

ODD, EVEN = tuple(f"p{n}" for n in (1, 3, 5, 7)), tuple(f"p{n}" for n in (0, 2, 4, 6))


@pytest.fixture(scope="module")
def study(site: dict[str, str], people: Path, deep_base: Path) -> Study:
    """Return a study of two manners of answering, unified and both clusters trained."""
    from clusterlora.stages.plan import pack_named, work_plan
    from clusterlora.stages.prepare import prepare
    from clusterlora.stages.train import train_pack
    from clusterlora.stores.memory import SilentLog

    study = Study(
        name="manners",
        methods=("unified", "cluster"),
        data=DataSettings(source="table", path=str(people), train=3, val=1, test=1),
        model=ModelSettings(base=str(deep_base)),
        recipe=Recipe(rank=4, epochs=4, learning_rate=2e-2),
        clustering=ClusteringSettings(k=2),
        gate=GateSettings(ladder=(), on_failure="continue"),
        evaluation=EvaluationSettings(max_new_tokens=4),
    )
    stores, log = from_environment(), SilentLog()
    prepare(study, stores, log)
    stores.studies.save_clustering(study.name, Clustering("given", (EVEN, ODD)))
    while packs := pack_named(study, stores, tuple(work_plan(study, stores).specs)):
        for pack in packs:
            train_pack(study.name, pack, attempt=1, micro_batch=2, stores=stores, log=log)
    return study


def launch(**parameters: Any) -> FlowRun:
    return cast("FlowRun", run_deployment("assign/assign", parameters=parameters, poll_interval=1))


def rows(persona_id: str, response: str) -> list[dict[str, str]]:
    return [
        {"persona_id": persona_id, "prompt": f"Lights in the {room}, please", "response": response.format(room=room) * 5}
        for room in ("cellar", "porch", "library")
    ]


def test_rows_become_an_assignment_and_an_artifact(study: Study):
    polite = rows("ana", "Certainly, dear friend: {room} at 5. ")
    run = launch(study_name=study.name, rows=polite + rows("bob", "{room} 5, done, as always and for ever. ")[:1])
    assert run.state is not None
    assert run.state.is_completed(), run.state.message
    assert run.name == "assign · manners"
    with get_client(sync_client=True) as client:
        artifacts = client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=["assign-manners"])))
    table = str(artifacts[-1].data)
    ana = next(line for line in table.splitlines() if line.startswith("| ana "))
    bob = next(line for line in table.splitlines() if line.startswith("| bob "))
    assert [cell.strip() for cell in ana.split("|")][2:4] == ["3", "1"]
    assert ana.endswith("| cluster-01 |")
    assert bob.endswith("| - | unified |"), "one example moves nobody"


def test_what_cannot_be_assigned_fails_with_the_reason(study: Study, people: Path):
    known = launch(study_name=study.name, path=str(people))
    assert known.state is not None
    assert known.state.is_failed()
    assert "persona 'p0' is in study manners already" in str(known.state.message)
    nothing = launch(study_name=study.name)
    assert nothing.state is not None
    assert nothing.state.is_failed()
    assert "give one of the two" in str(nothing.state.message)
