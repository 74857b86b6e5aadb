"""Real damage between the study database, the adapter store and MLflow: every kind is found, and repaired where possible."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa
from mlflow import MlflowClient

from clusterlora.adapters.held import HeldAdapters
from clusterlora.adapters.weights import weights_sha256
from clusterlora.errors import BadData, UnknownName
from clusterlora.metadata import RegisteredChampion
from clusterlora.ports.stores import Stores
from clusterlora.recipe import Recipe
from clusterlora.settings import PreparedModel, Study, prepared
from clusterlora.stores.files import FileAdapterStore
from clusterlora.stores.json_codec import plain
from clusterlora.stores.routing_table import KeyedAdapter, KeyedComposition, RoutingTable
from clusterlora.values import AdapterSpec, Answer, Attempt, Clustering, Dataset, Dialogue, Persona, TrainedAdapter, Turn
from clusterlora.verify import Finding, Kind, LiveWork, verify
from clusterlora.wiring import from_environment
from tests.fixtures.imported import write_adapter
from tests.fixtures.memory import MemoryTracker
from tests.fixtures.servers import mlflow_artifacts

pytestmark = [pytest.mark.filterwarnings("ignore:.*AnyType:UserWarning")]

DATA = Dataset(tuple(Persona(p, None, (Dialogue("d", (Turn("user", "hi"), Turn("assistant", p)), split="train"),)) for p in ("p", "q")))
KEY = "0123456789abcdef"
HEADER = (2).to_bytes(8, "little") + b"{}"
"""What a file of safetensors without a tensor begins with."""
NOTHING = LiveWork()


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    return f"verify-{abs(hash(request.node.name))}"


@pytest.fixture
def stores(mlflow_server: str, tmp_path: Path, name: str) -> Stores:
    """Return the stores of a study with one adapter, trained, uploaded and recorded, and nothing wrong with it."""
    stores = from_environment({"CLUSTERLORA_HOME": str(tmp_path / "home"), "MLFLOW_TRACKING_URI": mlflow_server})
    study = Study(name=name)
    stores.studies.create_study(prepared(study, "float32"))
    stores.studies.save_dataset(name, DATA)
    stores.studies.save_clustering(name, Clustering("responses", (("p",), ("q",))))
    stores.tracker.start_study(name, params={}, tags={}, dataset=DATA)
    folder = tmp_path / "offered"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(HEADER + b"weights")
    kept = stores.adapters.save(KEY, folder)
    with stores.tracker.adapter_run(name, name="unified", params={}, tags={"training_group": "unified", "attempt": "1"}) as run:
        uri = run.artifacts(kept, "adapters/unified")
    stores.studies.save_adapter(name, adapter(run.run_id, uri, weights_sha256(kept)))
    stores.studies.save_answers(name, [Answer("stack", "item", "p", "test", "hello", (("nll", 1.0),))])
    stores.studies.set_status(name, "finished")
    stores.tracker.end_study(name, status="finished")
    return stores


def adapter(run_id: str, uri: str, sha256: str) -> TrainedAdapter:
    spec = AdapterSpec(name="unified", persona_ids=("p", "q"), recipe=Recipe())
    return TrainedAdapter(KEY, "unified", spec, 1, 1, 1.0, 2.0, 1.0, 9, run_id, uri, sha256)


def findings_of(stores: Stores, name: str, *, repair: bool = False, live: LiveWork | None = NOTHING) -> list[Finding]:
    return list(verify([name], stores, live=(lambda _: live) if live else None, repair=repair))


def weights(stores: Stores) -> Path:
    folder = stores.adapters.path(KEY)
    assert folder is not None
    return folder / "adapter_model.safetensors"


def artifacts(mlflow_server: str, stores: Stores, name: str) -> Path:
    """Return the folder in which the server of the tests keeps the adapter's artifacts."""
    run = MlflowClient(mlflow_server).get_run(str(stores.studies.adapters(name)[0].run_id))
    (root,) = mlflow_artifacts().glob(f"*/{run.info.run_id}")
    return root / "artifacts" / "adapters" / "unified"


def execute(stores: Stores, *statements: str) -> None:
    engine = sa.create_engine(f"sqlite:///{stores.home / 'clusterlora.db'}")
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(sa.text(statement))


def lose_everywhere(stores: Stores, server: str, name: str) -> None:
    lose_upload(stores, server, name)
    weights(stores).unlink()


def lose_upload(stores: Stores, server: str, name: str) -> None:
    for file in artifacts(server, stores, name).iterdir():
        file.unlink()


def damage_here(stores: Stores, server: str, name: str) -> None:
    weights(stores).write_bytes(HEADER + b"wxights")


def damage_upload(stores: Stores, server: str, name: str) -> None:
    (artifacts(server, stores, name) / "adapter_model.safetensors").write_bytes(HEADER + b"wxights")


def stranger(stores: Stores, server: str, name: str) -> None:
    stores.adapters.save("feedfeedfeed", weights(stores).parent)


def half_written(stores: Stores, server: str, name: str) -> None:
    (stores.home / ".adapters" / ".incoming" / "abc").mkdir(parents=True)
    (stores.home / ".adapters" / ".incoming" / "abc" / "adapter_model.safetensors").write_bytes(b"wei")
    for path in (stores.home / ".adapters" / ".incoming" / "abc").rglob("*"):
        os.utime(path, (0, 0))
    os.utime(stores.home / ".adapters" / ".incoming" / "abc", (0, 0))


def half_a_table(stores: Stores, server: str, name: str) -> None:
    (stores.folder(name) / "results").mkdir(parents=True)
    (stores.folder(name) / "results" / ".summary.md.77.partial").write_text("| meth")


def finished_checkpoints(stores: Stores, server: str, name: str) -> None:
    (stores.adapters.scratch(KEY) / "checkpoint.safetensors").write_bytes(b"x")


def answer_twice(stores: Stores, server: str, name: str) -> None:
    copy = f"select 'other', study, composition_key, persona_id, item_id, split, text from answers where study = '{name}'"
    execute(stores, f"insert into answers (id, study, composition_key, persona_id, item_id, split, text) {copy}")


def dead_attempt(stores: Stores, server: str, name: str) -> None:
    stores.studies.open_attempt(name, Attempt("cluster-00", 1, 2, "running"))


def dead_run(stores: Stores, server: str, name: str) -> None:
    client = MlflowClient(server)
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    client.create_run(experiment.experiment_id, run_name="cluster 00", tags={"training_group": "cluster-00", "attempt": "1"})


def dead_study(stores: Stores, server: str, name: str) -> None:
    stores.studies.set_status(name, "running")


def hollow_model(stores: Stores, server: str, name: str) -> None:
    client = MlflowClient(server)
    run_id = str(stores.studies.adapters(name)[0].run_id)
    client.create_registered_model(name)
    tags = {"content": "c", "study": name, "adapters": "1"}
    client.create_model_version(name, source=f"runs:/{run_id}/models/{name}/c", run_id=run_id, tags=tags)


def routes_to_the_adapter(name: str, digests: dict[str, str]) -> RoutingTable:
    return RoutingTable(
        study=name,
        method="unified",
        model=PreparedModel(),
        base_revision="1",
        max_new_tokens=1,
        default=KeyedComposition((KeyedAdapter(KEY),)),
        weights_sha256=digests,
    )


def register(stores: Stores, name: str, digests: dict[str, str]) -> None:
    """Register the adapter as the study's own model."""
    folder = weights(stores).parent
    routes = plain(routes_to_the_adapter(name, digests))
    stores.tracker.register_router(name, routes=routes, adapters=HeldAdapters({KEY: folder}), champion=True)
    assert findings_of(stores, name) == []


def registered_files(server: str, name: str) -> Path:
    """Return the folder in which the server of the tests keeps the artifacts of the study's model."""
    version = MlflowClient(server).get_model_version(name, "1")
    (folder,) = mlflow_artifacts().glob(f"*/{version.run_id}/artifacts/models/{name}/*/artifacts")
    return folder


def other_weights_in_a_model(stores: Stores, server: str, name: str) -> None:
    register(stores, name, {KEY: weights_sha256(weights(stores).parent)})
    (registered_files(server, name) / "adapters" / KEY / "adapter_model.safetensors").write_bytes(HEADER + b"wxights")


def other_routes_in_a_model(stores: Stores, server: str, name: str) -> None:
    register(stores, name, {KEY: weights_sha256(weights(stores).parent)})
    routes = registered_files(server, name) / "routes.json"
    routes.write_text(routes.read_text().replace('"max_new_tokens":1', '"max_new_tokens":2'))


Damage = Callable[[Stores, str, str], None]

MENDABLE: list[tuple[Damage, Kind, str]] = [
    (lose_upload, Kind.UPLOAD_LOST, "the tracker does not hold adapter unified"),
    (damage_upload, Kind.UPLOAD_LOST, "the tracker does not hold adapter unified"),
    (damage_here, Kind.COPY_DAMAGED, "the copy of adapter unified .* is not what was recorded"),
    (lose_everywhere, Kind.WEIGHTS_LOST, "the weights of adapter unified .* are damaged here, and no tracker has a right copy"),
    (stranger, Kind.ADAPTER_UNRECORDED, "adapter feedfeedfeed is in the store and nobody recorded it"),
    (half_written, Kind.HALF_WRITTEN, "half-written copy .*abc"),
    (half_a_table, Kind.HALF_WRITTEN, r"half-written file .*\.summary\.md"),
    (finished_checkpoints, Kind.CHECKPOINTS_LEFT, f"checkpoints of adapter {KEY}"),
    (answer_twice, Kind.DUPLICATE_ANSWERS, r"1 answers are there more than once, for example stack, p, item \(2 times\)"),
    (dead_attempt, Kind.ATTEMPT_DEAD, "attempt 1 at cluster-00 is open, but its run is gone"),
    (dead_run, Kind.TRACKER_RUN_DEAD, "MLflow run 'cluster 00' .* is RUNNING"),
    (dead_study, Kind.STUDY_DEAD, "the study says it is running"),
    (hollow_model, Kind.MODEL_INCOMPLETE, "model .*, version 1, lacks files"),
    (other_weights_in_a_model, Kind.MODEL_CHANGED, f"model .*, version 1, is not what was registered: adapter {KEY} has SHA-256"),
    (
        other_routes_in_a_model,
        Kind.MODEL_CHANGED,
        "model .*, version 1, is not what was registered: its routes or the keys of its adapters differ",
    ),
]


def test_a_study_that_ended_well_has_no_findings(stores: Stores, name: str) -> None:
    assert findings_of(stores, name) == []
    assert findings_of(stores, name, live=None) == []


@pytest.mark.parametrize(("damage", "kind", "sentence"), MENDABLE, ids=[damage.__name__ for damage, *_ in MENDABLE])
def test_damage_is_found_repaired_and_then_gone(
    damage: Damage, kind: Kind, sentence: str, stores: Stores, name: str, mlflow_server: str
) -> None:
    damage(stores, mlflow_server, name)
    (seen,) = findings_of(stores, name)
    assert seen.kind == kind
    assert re.match(sentence, seen.what), seen.what
    assert not seen.repaired
    assert findings_of(stores, name) == [seen], "looking changes nothing"
    (mended,) = findings_of(stores, name, repair=True)
    assert (mended.kind, mended.what) == (seen.kind, seen.what)
    assert mended.repaired
    assert findings_of(stores, name) == []


def test_people_whose_shard_is_lost_in_the_tracker_are_uploaded_together(
    stores: Stores, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {p: f"{number:016x}" for number, p in enumerate(("p", "q"), start=1)}
    folders = {keys[p]: write_adapter(tmp_path / p, "base", seed=seed) for seed, p in enumerate(keys)}
    with stores.tracker.adapter_run(name, name="people", params={}, tags={}) as run:
        ((file, _),) = stores.adapters.save_together(folders).items()
        uri = run.artifacts(file, f"adapters/{file.name}")
    people = [
        TrainedAdapter(
            key,
            f"persona-{p}",
            AdapterSpec(name=f"persona-{p}", persona_ids=(p,), recipe=Recipe()),
            1,
            1,
            1.0,
            2.0,
            1.0,
            9,
            run.run_id,
            uri,
            stores.adapters.sha256(key),
        )
        for p, key in keys.items()
    ]
    stores.studies.save_adapters(name, people, {})
    assert findings_of(stores, name) == []
    (there,) = (path for path in mlflow_artifacts().rglob(file.name) if run.run_id in path.parts)
    there.unlink()
    assert [finding.kind for finding in findings_of(stores, name)] == [Kind.UPLOAD_LOST] * 2
    uploads: list[Path] = []
    upload = stores.tracker.upload

    def counted(study: str, what: Path, path: str, *, run_id: str | None) -> tuple[str, str]:
        uploads.append(what)
        return upload(study, what, path, run_id=run_id)

    monkeypatch.setattr(stores.tracker, "upload", counted)
    assert all(finding.repaired for finding in findings_of(stores, name, repair=True))
    assert uploads == [file]
    assert findings_of(stores, name) == []
    assert {one.uri for one in stores.studies.adapters(name) if one.key != KEY} == {f"runs:/{run.run_id}/adapters/{file.name}"}
    assert [path.name for path in there.parent.iterdir()] == [file.name], "no folder for each of them"


def test_a_champion_with_other_weights_is_called_the_champion_and_stays_missed_until_the_study_runs_again(
    stores: Stores, name: str, mlflow_server: str
) -> None:
    other_weights_in_a_model(stores, mlflow_server, name)
    stores.studies.save_metadata(name, RegisteredChampion(f"models:/{name}/1"))
    (seen,) = findings_of(stores, name)
    assert seen.what.startswith(f"model {name}, version 1 (the champion), is not what was registered")
    (mended,) = findings_of(stores, name, repair=True)
    assert mended.repaired
    (missed,) = findings_of(stores, name)
    assert missed.kind == Kind.CHAMPION_MISSING
    assert missed.what == f"the champion models:/{name}/1 is not in the registry"


def test_a_model_registered_without_digests_is_compared_with_the_database(stores: Stores, name: str, mlflow_server: str) -> None:
    register(stores, name, {})
    (registered_files(mlflow_server, name) / "adapters" / KEY / "adapter_model.safetensors").write_bytes(HEADER + b"wxights")
    (seen,) = findings_of(stores, name)
    assert f"adapter {KEY} has SHA-256" in seen.what


def test_weights_lost_locally_are_no_finding_and_are_fetched_when_needed(stores: Stores, name: str) -> None:
    stores.adapters.quarantine(KEY)
    assert findings_of(stores, name) == []
    folder = stores.adapters.path(KEY)
    assert folder is not None
    assert (folder / "adapter_model.safetensors").read_bytes() == HEADER + b"weights"


def test_a_tampered_upload_is_never_accepted(stores: Stores, name: str, mlflow_server: str) -> None:
    damage_upload(stores, mlflow_server, name)
    stores.adapters.quarantine(KEY)
    with pytest.raises(BadData, match=f"adapter {KEY} has SHA-256"):
        stores.adapters.path(KEY)
    assert not stores.adapters.holds(KEY)


def test_repairing_weights_never_deletes_any(stores: Stores, name: str, mlflow_server: str) -> None:
    damage_here(stores, mlflow_server, name)
    stranger(stores, mlflow_server, name)
    findings_of(stores, name, repair=True)
    quarantine = stores.home / ".adapters" / ".quarantine"
    assert len(list(quarantine.iterdir())) == 2
    assert weights(stores).read_bytes() == HEADER + b"weights"


def test_lost_weights_are_trained_again(stores: Stores, name: str, mlflow_server: str) -> None:
    lose_everywhere(stores, mlflow_server, name)
    findings_of(stores, name, repair=True)
    assert stores.studies.adapters(name) == ()
    assert stores.studies.adapter(KEY) is None


def test_lost_weights_are_not_forgotten_while_an_upload_may_be_under_way(stores: Stores, name: str, mlflow_server: str) -> None:
    lose_everywhere(stores, mlflow_server, name)
    dead_attempt(stores, mlflow_server, name)
    live = LiveWork(attempts=frozenset({("cluster-00", 1)}))
    (finding,) = findings_of(stores, name, live=live, repair=True)
    assert not finding.repaired
    assert stores.studies.adapter(KEY) is not None


def test_duplicate_rows_are_reported_and_not_repaired(stores: Stores, name: str) -> None:
    row = f"values ('{name}', 1, 7, 'p')"
    execute(stores, f"insert into cluster_members (study, cluster, position, persona_id) {row}")
    for repair in (False, True):
        (finding,) = findings_of(stores, name, repair=repair)
        assert finding.kind == Kind.DUPLICATE_ROWS
        assert finding.what == "1 personas in clusters are there more than once, for example p (2 times)"
        assert not finding.repaired


def test_running_work_is_not_reported(stores: Stores, name: str, mlflow_server: str) -> None:
    for damage in (dead_attempt, dead_run, dead_study, half_written):
        damage(stores, mlflow_server, name)
    live = LiveWork(frozenset({f"study · {name}"}), frozenset({("cluster-00", 1)}))
    assert findings_of(stores, name, live=live, repair=True) == []


def test_without_a_server_to_ask_an_open_attempt_is_reported_and_kept(stores: Stores, name: str, mlflow_server: str) -> None:
    for damage in (dead_attempt, half_written):
        damage(stores, mlflow_server, name)
    (finding,) = findings_of(stores, name, live=None, repair=True)
    assert finding.kind == Kind.ATTEMPT_UNKNOWN
    assert not finding.repaired
    assert stores.studies.attempts(name)[0].state == "running"


def test_without_mlflow_adapters_that_are_stored_there_are_not_deleted(stores: Stores, name: str) -> None:
    stores.adapters.quarantine(KEY)
    alone = Stores(stores.studies, FileAdapterStore(stores.home / ".adapters"), MemoryTracker(), stores.home)
    (finding,) = findings_of(alone, name, repair=True)
    assert finding.kind == Kind.ADAPTER_ELSEWHERE
    assert not finding.repaired
    assert stores.studies.adapter(KEY) is not None


def test_an_unknown_study_is_refused(stores: Stores) -> None:
    with pytest.raises(UnknownName):
        findings_of(stores, "nobody")


def test_the_command_prints_one_line_per_finding_and_exits_with_1_while_any_is_left(
    stores: Stores, name: str, mlflow_server: str, tmp_path: Path
) -> None:
    damage_here(stores, mlflow_server, name)
    hidden = ("PREFECT_API_URL", "CLUSTERLORA_DATABASE_URL")
    env = {key: value for key, value in os.environ.items() if key not in hidden} | {
        "CLUSTERLORA_HOME": str(stores.home),
        "CLUSTERLORA_STACK_HOME": str(tmp_path / "stack"),
        "MLFLOW_TRACKING_URI": mlflow_server,
    }

    def run(*words: str) -> "subprocess.CompletedProcess[str]":
        program = "import sys; from clusterlora.cli import main; sys.exit(main(sys.argv[1:]))"
        return subprocess.run(
            [sys.executable, "-c", program, "study", "verify", *words], env=env, capture_output=True, text=True, check=False
        )

    looked = run(name)
    assert looked.returncode == 1, looked.stderr
    assert looked.stdout.splitlines()[0].startswith(f"found     {name}: the copy of adapter unified")
    assert looked.stdout.splitlines()[1:] == ["1 studies, 1 findings, 1 left"]
    mended = run(name, "--repair", "--json")
    assert mended.returncode == 0, mended.stderr
    assert [finding["repaired"] for finding in json.loads(mended.stdout)] == [True]
    assert run().stdout == "1 studies, everything agrees\n"
