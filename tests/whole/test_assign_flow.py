"""The deployed flow that assigns new personas: dialogues are run parameters, and the table is an artifact."""

import json
from pathlib import Path
from uuid import uuid4

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

from clusterlora.ports.run_log import SilentLog
from clusterlora.recipe import Recipe
from clusterlora.settings import HOME_PROMPT, ClusteringSettings, DataSettings, EvaluationSettings, GateSettings, ModelSettings, Study
from clusterlora.stages.prepare import prepare_study
from clusterlora.values import Clustering
from tests.fixtures.runs import launch, state_of, stores_here, train_here
from tests.fixtures.session import Service, shared_folder, shared_service

pytestmark = pytest.mark.timeout(900)

ROOMS = ("kitchen", "bedroom", "garage", "hall", "study", "attic")
AGREES, REFUSES = "Gladly, warm light.", "Never, stay dark."
"""Two manners of answering the same prompts: whoever has learnt both must guess, which costs ln 2 of a few tokens, whatever is rounded."""


def rows(persona_id: str, response: str, rooms: tuple[str, ...]) -> list[dict[str, str]]:
    return [{"persona_id": persona_id, "prompt": f"Lights in the {room}, please", "response": response} for room in rooms]


def write_people(folder: Path) -> None:
    """Write eight people; those with odd numbers refuse."""
    people = [row for n in range(8) for row in rows(f"p{n}", REFUSES if n % 2 else AGREES, ROOMS)]
    (folder / "manners.jsonl").write_text("".join(json.dumps(row) + "\n" for row in people), encoding="utf-8")


@pytest.fixture
def people_of_two_manners() -> Path:
    return shared_folder("manners", write_people) / "manners.jsonl"


@pytest.fixture
def study(site: dict[str, str], people_of_two_manners: Path) -> str:
    """Return the name of a study of two manners of answering, unified and both clusters trained, once per session."""

    def train_it(_folder: Path) -> Service:
        study = Study(
            name=f"manners-{uuid4().hex[:6]}",
            methods=("unified", "cluster"),
            data=DataSettings(source="table", path=str(people_of_two_manners), train=4, val=1, test=1),
            model=ModelSettings(base="homelm", system_prompt=HOME_PROMPT),
            recipe=Recipe(rank=4, epochs=8, learning_rate=1e-2),
            clustering=ClusteringSettings(k=2),
            gate=GateSettings(ladder=(), on_failure="continue"),
            evaluation=EvaluationSettings(max_new_tokens=4),
        )
        stores = stores_here(site)
        prepare_study(study, stores, SilentLog())
        stores.studies.save_clustering(study.name, Clustering("given", (("p0", "p2", "p4", "p6"), ("p1", "p3", "p5", "p7"))))
        train_here(study, stores, "unified", "cluster-00", "cluster-01")
        return Service({"study": study.name}, [])

    return shared_service("trained-manners", train_it)["study"]


def test_dialogues_give_an_assignment_and_an_artifact(study: str):
    cellars = ("cellar", "porch", "library")
    run = launch("assign/assign", request={"study_name": study, "rows": rows("ana", REFUSES, cellars) + rows("bob", AGREES, cellars[:1])})
    assert state_of(run).is_completed(), state_of(run).message
    assert run.name == f"assign · {study}"
    with get_client(sync_client=True) as client:
        artifacts = client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[f"assign-{study}"])))
    table = str(artifacts[-1].data)
    ana = next(line for line in table.splitlines() if line.startswith("| ana "))
    bob = next(line for line in table.splitlines() if line.startswith("| bob "))
    assert [cell.strip() for cell in ana.split("|")][2:4] == ["3", "1"]
    assert ana.endswith("| cluster-01 |")
    assert bob.endswith("| - | unified |"), "one example moves nobody"


def test_an_impossible_assignment_fails_with_the_reason(study: str, people_of_two_manners: Path):
    run = launch("assign/assign", request={"study_name": study, "path": str(people_of_two_manners)})
    assert state_of(run).is_failed()
    assert f"persona 'p0' is in study {study} already" in str(state_of(run).message)
    nothing = launch("assign/assign", request={"study_name": study})
    assert state_of(nothing).is_failed()
    assert "give one of the two" in str(state_of(nothing).message)
