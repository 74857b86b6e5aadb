"""The method of docs/extending.md, added to a checkout as its readers add it, in a study that runs on a worker of that checkout."""

import os
import shutil
from pathlib import Path

import pytest

from clusterlora.config import as_mapping
from clusterlora.settings import RuntimeSettings
from tests.fixtures.examples import add_example
from tests.fixtures.prefect import CHECKOUT, own_worker
from tests.fixtures.runs import launch, runs_of, small_study, state_of, stores_here

# MLflow warns of its own type hints when its model flavours are imported.
pytestmark = [pytest.mark.timeout(900), pytest.mark.filterwarnings("ignore:.*AnyType:UserWarning")]

POOL = "gpu-own-method"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Return a checkout with the documentation's method; other files are hard links where the file system allows it."""

    def linked(source: str, target: str) -> str:
        try:
            os.link(source, target)
        except OSError:
            return shutil.copy2(source, target)
        return target

    folder = tmp_path / "checkout"
    for part in ("clusterlora", "deployments", "flows", "tasks"):
        shutil.copytree(CHECKOUT / part, folder / part, copy_function=linked, ignore=shutil.ignore_patterns("__pycache__"))
    add_example("A method", folder)
    return folder


def test_a_method_added_as_documented_is_trained_compared_and_registered_by_a_study_on_workers(
    checkout: Path, site: dict[str, str], people: Path, tiny_base_folder: Path
) -> None:
    from mlflow import MlflowClient

    study = small_study("added", people, tiny_base_folder, methods=("unified", "pairs"), runtime=RuntimeSettings(shards=1, gpu_pool=POOL))
    with own_worker(POOL, site, flows=("study", "train", "evaluate"), checkout=checkout):
        run = launch(f"study/study-{POOL}", config=as_mapping(study))
    assert state_of(run).is_completed(), state_of(run).message

    trained = {run.name.split(" · ")[1]: {*run.tags} for run in runs_of(study, name="train ·")}
    assert "method:pairs" in trained["fan-out 1/1"]
    stores = stores_here(site)
    adapters = [adapter for adapter in stores.studies.adapters(study.name) if adapter.spec.scope == "group"]
    assert sorted(len(adapter.spec.persona_ids) for adapter in adapters) == [2, 2, 2, 2]
    summary = (stores.folder(study.name) / "results" / "summary.csv").read_text()
    assert {line.split(",")[0] for line in summary.splitlines()[1:]} == {"unified", "pairs"}
    client = MlflowClient(site["MLFLOW_TRACKING_URI"])
    versions = client.search_model_versions(f"tags.study = '{study.name}'")
    # So few items make no champion, which would be a model under the study's own name.
    assert {version.name for version in versions} == {f"{study.name}-unified", f"{study.name}-pairs"}
