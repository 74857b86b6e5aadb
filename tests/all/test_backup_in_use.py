"""A backup of a running installation: MLflow goes on while it is copied, and another server answers from what was restored."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from clusterlora.adapters.weights import weights_sha256
from clusterlora.recipe import Recipe
from clusterlora.settings import Study, prepared
from clusterlora.stores.files import FileAdapterStore
from clusterlora.values import AdapterSpec, Clustering, TrainedAdapter
from clusterlora.verify import LiveWork, verify
from clusterlora.wiring import from_environment
from deployments.backup import Place, back_up
from deployments.restore import restore
from tests.fixtures.servers import start_server
from tests.fixtures.tracked import DATA, peft_folder

pytestmark = pytest.mark.filterwarnings("ignore:.*AnyType:UserWarning")
KEY = "0123456789abcdef"


@contextmanager
def mlflow(place: Place, folder: Path) -> Generator[str]:
    """Yield the address of an MLflow server on an installation's files, started as `clusterlora up` starts it."""
    folder.mkdir()
    (place.services / "mlflow").mkdir(parents=True, exist_ok=True)
    arguments = ["--workers", "1", "--backend-store-uri", f"sqlite:///{place.services / 'mlflow' / 'mlflow.db'}"]
    arguments += ["--artifacts-destination", str(place.services / "mlflow" / "artifacts")]
    environment = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    server, address = start_server("mlflow", arguments, health="/health", folder=folder, environment=environment)
    try:
        yield address
    finally:
        server.terminate()
        server.wait()


def place_at(folder: Path) -> Place:
    results = folder / "studies"
    return Place(results=results, services=folder / "services", database=f"sqlite:///{results / 'clusterlora.db'}")


def test_an_installation_in_use_is_restored_elsewhere_and_runs_on(tmp_path: Path) -> None:
    here, there = place_at(tmp_path / "here"), place_at(tmp_path / "there")
    offered = peft_folder(tmp_path / "offered")
    with mlflow(here, tmp_path / "first") as address:
        stores = from_environment({"CLUSTERLORA_HOME": str(here.results), "MLFLOW_TRACKING_URI": address})
        stores.studies.create_study(prepared(Study(name="demo"), "float32"))
        stores.studies.save_dataset("demo", DATA)
        stores.studies.save_clustering("demo", Clustering("responses", (("p",),)))
        stores.tracker.start_study("demo", params={}, tags={}, dataset=DATA)
        with stores.tracker.adapter_run("demo", name="unified", params={}, tags={}) as run:
            uri = run.artifacts(offered, "adapters/unified")
        spec = AdapterSpec(name="unified", persona_ids=("p",), recipe=Recipe(), scope="everybody")
        adapter = TrainedAdapter(
            KEY, "unified", spec, 1, 1, 1.0, 2.0, 1.0, 7, run_id=run.run_id, uri=uri, weights_sha256=weights_sha256(offered)
        )
        stores.adapters.save(KEY, offered)
        stores.studies.save_adapter("demo", adapter)
        stores.tracker.end_study("demo", status="finished")
        stores.studies.set_status("demo", "finished")
        back_up(here, tmp_path / "all.tar")
        # What the tracker is told to discard is gone there, and nowhere else.
        stores.tracker.discard(uri)
        assert not stores.tracker.download(uri, tmp_path / "nothing")
    restore(there, tmp_path / "all.tar")
    with mlflow(there, tmp_path / "second") as address:
        stores = from_environment({"CLUSTERLORA_HOME": str(there.results), "MLFLOW_TRACKING_URI": address})
        assert list(verify(["demo"], stores, live=lambda _name: LiveWork(), repair=False)) == []
        # On a machine that has only the database, the adapter comes from the restored MLflow.
        elsewhere = FileAdapterStore(tmp_path / "elsewhere", lambda _key, folder: stores.tracker.download(uri, folder))
        fetched = elsewhere.path(KEY)
        assert fetched is not None
        assert weights_sha256(fetched) == weights_sha256(offered)
