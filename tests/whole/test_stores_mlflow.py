"""The tracker against a real MLflow server: runs, models and the UI."""

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from browser.chromium import Tab
from clusterlora.adapters.held import HeldAdapters
from clusterlora.errors import BadSettings, ServiceDown, UnknownName
from clusterlora.ports.tracker import TrialRun
from clusterlora.settings import Study, prepared
from clusterlora.stores import system_metrics
from clusterlora.stores.files import FileAdapterStore
from clusterlora.stores.json_codec import plain
from clusterlora.stores.mlflow_run import MlflowRun
from clusterlora.stores.mlflow_tracker import MlflowTracker
from clusterlora.stores.outbox import Outbox
from clusterlora.stores.routing_table import KeyedAdapter, KeyedComposition
from clusterlora.values import Criterion, Verdict
from tests.fixtures.tracked import DATA, HEADER, TAGS, peft_folder, runs, start

# MLflow warns of its own type hints when its model flavours are imported.
pytestmark = [pytest.mark.filterwarnings("ignore:.*AnyType:UserWarning")]


def parent(client: MlflowClient, study: str) -> Run:
    (run,) = runs(client, study, "study")
    return run


def routes_to(key: str, study: str, base: Path) -> dict[str, Any]:
    model = plain(prepared(Study(), "float32").model) | {"base": str(base)}
    common = {"study": study, "method": "cluster", "model": model, "base_revision": "r", "max_new_tokens": 8}
    return common | {"default": KeyedComposition((KeyedAdapter(key),)), "names": {key: "cluster-00"}}


def test_a_study_is_an_experiment_with_a_parent_run(tracker: MlflowTracker, client: MlflowClient, study: str) -> None:
    run = parent(client, study)
    assert run.info.run_name == study
    assert run.info.status == "RUNNING"
    assert run.data.params == {"recipe.rank": "8", "methods": "['unified', 'cluster']"}
    assert run.data.tags["git_revision"] == "abc123"
    assert run.data.tags["data_digest"] == DATA.digest
    assert run.inputs is not None
    (used,) = run.inputs.dataset_inputs
    assert used.dataset.digest == DATA.digest
    tracker.end_study(study, status="finished")
    assert parent(client, study).info.status == "FINISHED"


def test_all_settings_of_a_study_become_parameters(tracker: MlflowTracker, client: MlflowClient) -> None:
    tracker.start_study("all-settings", params=plain(Study()), tags={}, dataset=DATA)
    params = parent(client, "all-settings").data.params
    assert params["recipe.learning_rate"] == "0.0005"
    assert params["data.synthetic.cluster_sizes"] == "[16, 52, 25, 35, 72]"


def test_starting_again_finds_the_same_run_and_keeps_its_parameters(mlflow_server: str, client: MlflowClient, study: str) -> None:
    again = MlflowTracker(mlflow_server)
    first = parent(client, study).info.run_id
    again.end_study(study, status="failed")
    assert start(again, study, runtime={"shards": 4}) == first
    assert start(MlflowTracker(mlflow_server), study, runtime={"shards": 8}) == first
    run = parent(client, study)
    assert run.info.status == "RUNNING"
    assert run.data.params["runtime.shards"] == "4"
    assert run.inputs is not None
    assert len(run.inputs.dataset_inputs) == 1


@pytest.mark.parametrize("status", ["finished", "failed"])
def test_a_step_of_a_study_that_ended_leaves_its_run_ended(tracker: MlflowTracker, client: MlflowClient, study: str, status: str) -> None:
    tracker.end_study(study, status=status)
    before = parent(client, study).info
    again = tracker.start_study(study, params={}, tags=TAGS, dataset=DATA, running=False)
    after = parent(client, study).info
    assert (again, after.status, after.end_time) == (before.run_id, before.status, before.end_time)


def test_a_step_of_a_study_that_is_running_leaves_it_running_and_one_that_is_new_has_ended(
    tracker: MlflowTracker, client: MlflowClient, study: str
) -> None:
    tracker.start_study(study, params={}, tags=TAGS, dataset=DATA, running=False)
    assert parent(client, study).info.status == "RUNNING"
    tracker.start_study(f"{study}-new", params={}, tags=TAGS, dataset=DATA, running=False)
    assert parent(client, f"{study}-new").info.status == "FINISHED"


def test_many_who_start_a_study_at_once_end_up_with_one_run(mlflow_server: str, client: MlflowClient) -> None:
    trackers = [MlflowTracker(mlflow_server, patience_seconds=2) for _ in range(6)]
    with ThreadPoolExecutor(len(trackers)) as threads:
        started = list(threads.map(lambda tracker: start(tracker, "started-by-many"), trackers))
    assert started.count(parent(client, "started-by-many").info.run_id) == len(trackers)
    run = parent(client, "started-by-many")
    assert run.data.params["recipe.rank"] == "8"
    assert run.inputs is not None
    assert run.inputs.dataset_inputs


def test_a_child_run_has_tags_of_its_study_and_its_curves(tracker: MlflowTracker, client: MlflowClient, study: str) -> None:
    with tracker.adapter_run(study, name="cluster 00's", params={"rank": 8}, tags={"cluster": "0"}) as run:
        run.curve("train/loss", [(step, 1 / step) for step in range(1, 2502)])
        run.metrics({"train/tokens": 10.0, "broken": math.nan})
    (child,) = runs(client, study)
    assert child.info.status == "FINISHED"
    assert child.info.run_name == "cluster 00's"
    assert child.data.params == {"rank": "8"}
    assert child.data.tags["mlflow.parentRunId"] == parent(client, study).info.run_id
    assert {child.data.tags[t] for t in ("study", "cluster", "git_revision", "data_digest")} == {study, "0", "abc123", DATA.digest}
    assert len(client.get_metric_history(child.info.run_id, "train/loss")) == 2501
    assert child.data.metrics["train/tokens"] == 10.0


def test_a_child_run_records_the_load_of_its_machine(
    tracker: MlflowTracker, client: MlflowClient, study: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(system_metrics, "EVERY_SECONDS", 0.05)
    with tracker.adapter_run(study, name="group", params={}, tags={}) as run:
        run.curve("train/loss", [(step, 1 / step) for step in range(1, 11)])
        sum(n * n for n in range(3_000_000))
    (child,) = runs(client, study)
    for name in ("cpu_utilization_percentage", "system_memory_usage_megabytes", "system_memory_usage_percentage"):
        history = client.get_metric_history(child.info.run_id, f"system/{name}")
        assert [point.step for point in history] == list(range(len(history)))
        assert len(history) > 1
        assert max(point.value for point in history) > 0


def test_gpu_utilisation_is_parsed_from_nvidia_smi() -> None:
    assert system_metrics.parse_gpu("87, 1000, 81559, 350.25\n") == {
        "gpu_0_utilization_percentage": 87.0,
        "gpu_0_memory_usage_megabytes": 1000 * 2**20 / 1e6,
        "gpu_0_memory_usage_percentage": 1000 / 81559 * 100,
        "gpu_0_power_usage_watts": 350.25,
    }
    assert system_metrics.parse_gpu("[N/A], 1000, 2000, [N/A]").keys() == {"gpu_0_memory_usage_megabytes", "gpu_0_memory_usage_percentage"}
    assert system_metrics.parse_gpu("No devices were found") == {}


@pytest.mark.all
def test_the_experiment_offers_a_layout_of_charts_that_mlflows_page_draws(
    tracker: MlflowTracker, client: MlflowClient, study: str, mlflow_server: str, tab: Tab
) -> None:
    for method in ("unified", "cluster"):
        with tracker.adapter_run(study, name=f"{method}'s", params={}, tags={"method": method}) as run:
            run.curve("train/loss", [(step, 1 / step) for step in range(1, 11)])
            run.metrics({"train/seconds": 2.0})
    experiment = client.get_experiment_by_name(study)
    assert experiment is not None
    tags = experiment.tags
    assert (tags["mlflow.experimentKind"], tags["study"]) == ("custom_model_development", study)
    assert f"Study {study} of clusterlora" in tags["mlflow.note.content"]
    page = tracker.page(study)
    assert page is not None
    assert page.startswith(f"{mlflow_server}/#/experiments/{experiment.experiment_id}/runs?")
    tab.open(page, until="document.body")
    for words in ("Training runs", "Group: cluster", "Group: unified", "cluster's (train/loss)", "train/seconds"):
        tab.wait_for_text(words)
    tab.click("[...document.querySelectorAll('button')].find(b => b.getAttribute('data-component-id').endsWith('saved_views.trigger'))")
    tab.wait_for_text("SAVED VIEWS")


def trial(number: int, round_number: int, loss: float | None) -> TrialRun:
    params = {
        "learning_rate": 1e-4 * (number + 1),
        "epochs": 2,
        "rank": 8,
        "alpha": 16.0,
        "dropout": 0.0,
        "target_modules": ("q_proj", "v_proj"),
    }
    params |= {"init": "base"}
    return TrialRun(f"trial {number:02d} · unified", params, "unified", round_number, 4 * round_number, loss)


def test_every_trial_is_one_run_however_often_its_rounds_are_logged(tracker: MlflowTracker, client: MlflowClient, study: str) -> None:
    first = [trial(0, 1, 1.5), trial(1, 1, 1.25), trial(2, 1, None)]
    tracker.log_trials(study, first)
    tracker.log_trials(study, first)
    tracker.log_trials(study, [trial(1, 2, 1.0)])
    found = {run.info.run_name: run for run in runs(client, study, "trial")}
    assert {name: run.info.status for name, run in found.items()} == {
        "trial 00 · unified": "FINISHED",
        "trial 01 · unified": "FINISHED",
        "trial 02 · unified": "FAILED",
    }
    best = found["trial 01 · unified"]
    assert best.data.params["learning_rate"] == "0.0002"
    assert best.data.tags["mlflow.parentRunId"] == parent(client, study).info.run_id
    assert [(point.step, point.value) for point in client.get_metric_history(best.info.run_id, "val/loss")][-1] == (2, 1.0)


@pytest.mark.all
def test_the_experiment_offers_a_view_in_which_mlflows_page_draws_the_trials(tracker: MlflowTracker, study: str, tab: Tab) -> None:
    tracker.log_trials(study, [trial(number, 1, 1 / (1 + number)) for number in range(4)])
    page = tracker.page(study)
    assert page is not None
    tab.open(page.replace("viewStateShareKey=training", "viewStateShareKey=trials"), until="document.body")
    for words in ("Trials of recipes", "trial 03 · unified", "val/loss"):
        tab.wait_for_text(words)
    tab.wait_until("document.querySelector('.parcoords') !== null")


def test_a_training_that_raises_leaves_a_failed_run(tracker: MlflowTracker, client: MlflowClient, study: str) -> None:
    with pytest.raises(MemoryError), tracker.adapter_run(study, name="group", params={}, tags={}):
        raise MemoryError
    (child,) = runs(client, study)
    assert child.info.status == "FAILED"


def test_the_run_of_a_killed_process_is_ended_by_the_next_try(tracker: MlflowTracker, client: MlflowClient, study: str) -> None:
    killed = tracker.adapter_run(study, name="cluster 00's", params={}, tags={})
    killed.__enter__()
    elsewhere = tracker.adapter_run(study, name="cluster 01", params={}, tags={})
    elsewhere.__enter__()
    with tracker.adapter_run(study, name="cluster 00's", params={}, tags={}):
        statuses = sorted((r.info.run_name, r.info.status) for r in runs(client, study))
    assert statuses == [("cluster 00's", "KILLED"), ("cluster 00's", "RUNNING"), ("cluster 01", "RUNNING")]
    tracker.end_study(study, status="killed")
    assert {r.info.status for r in runs(client, study)} == {"KILLED", "FINISHED"}
    assert parent(client, study).info.status == "KILLED"


def test_an_adapter_moves_through_the_artifact_store(tracker: MlflowTracker, study: str, tmp_path: Path) -> None:
    with tracker.adapter_run(study, name="group", params={}, tags={}) as run:
        uri = run.artifacts(peft_folder(tmp_path / "trained"), "adapters/cluster-00")
    other_machine = FileAdapterStore(tmp_path / "other", fetch=lambda _key, folder: tracker.download(uri, folder))
    fetched = other_machine.path("0123abcd")
    assert fetched is not None
    assert (fetched / "adapter_model.safetensors").read_bytes() == HEADER + b"weights"


@pytest.mark.parametrize("uri", ["runs:/{run}/adapters/nothing", "runs:/0123456789abcdef0123456789abcdef/adapters/x", "memory:/a/b"])
def test_an_artifact_that_was_not_uploaded_is_not_found(
    tracker: MlflowTracker, client: MlflowClient, study: str, tmp_path: Path, uri: str
) -> None:
    assert tracker.download(uri.format(run=parent(client, study).info.run_id), tmp_path) is False


def test_verdict_and_results_are_on_the_parent_run(tracker: MlflowTracker, client: MlflowClient, study: str, tmp_path: Path) -> None:
    def verdict(rung: str, passed: bool) -> Verdict:
        similarity = Criterion("mean_similarity", 0.79, 0.83, passed, 0.7, 0.8, "0.79 is not above 0.83")
        return Verdict(rung, "cluster-00", (similarity, Criterion("above_unified", 0.01, 0.0, True, None, None, "")), 16, 96)

    tracker.log_verdict(study, verdict("study", False))
    tracker.log_verdict(study, verdict("lower-lr", True))
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "comparison.png").write_bytes(b"png")
    (tmp_path / "summary.csv").write_text("method")
    tracker.log_results(study, folder=tmp_path, metrics={"unified/embedding_similarity": 0.82})
    run = parent(client, study)
    assert (run.data.tags["gate.study"], run.data.tags["gate.lower-lr"], run.data.tags["gate_verdict"]) == ("fail", "pass", "pass")
    assert run.data.metrics["gate/study/mean_similarity"] == 0.79
    assert run.data.metrics["unified/embedding_similarity"] == 0.82
    assert [f.path for f in client.list_artifacts(run.info.run_id, "gate")] == [
        f"gate/{name}" for name in ("lower-lr.json", "lower-lr.md", "study.json", "study.md")
    ]
    assert [f.path for f in client.list_artifacts(run.info.run_id, "results/figures")] == ["results/figures/comparison.png"]


def test_names_that_mlflow_would_refuse_are_written_with_dashes(tracker: MlflowTracker, client: MlflowClient, study: str) -> None:
    with tracker.adapter_run(study, name="cluster-00+lower-lr", params={}, tags={}) as run:
        run.curve("train/loss/cluster-00+lower-lr", [(1, 0.5)])
        run.metrics({"merge/energy_kept/merged-00+ties-0.2": 0.9})
    tracker.log_verdict(study, Verdict("lr+wd", "cluster-00", (Criterion("above_unified", 0.01, 0.0, True, None, None, ""),), 16, 96))
    tracker.end_study(study, status="finished", seconds={"train cluster-00+lower-lr": 3.0})
    (child,) = runs(client, study)
    logged = {name: value for name, value in child.data.metrics.items() if not name.startswith("system/")}
    assert logged == {"train/loss/cluster-00-lower-lr": 0.5, "merge/energy_kept/merged-00-ties-0.2": 0.9}
    own = parent(client, study)
    assert own.data.metrics == {"gate/lr-wd/above_unified": 0.01, "seconds/train cluster-00-lower-lr": 3.0}
    assert own.data.tags["gate.lr-wd"] == "pass"


def test_unsent_messages_of_a_dead_run_are_sent_when_the_study_is_relaunched(
    client: MlflowClient, study: str, mlflow_server: str, tmp_path: Path
) -> None:
    folder = peft_folder(tmp_path / "trained")
    run = client.create_run(parent(client, study).info.experiment_id)
    outbox = Outbox("MLflow", lambda: True, lambda _: None, tmp_path / "outbox" / "run.json")
    cut_off = MlflowRun(run.info.run_id, outbox, patience_seconds=0.1)
    cut_off.curve("train/loss", [(1, 2.0), (2, 1.0)])
    cut_off.metrics({"train/adapters": 1.0})
    cut_off.tag({"outcome": "done"})
    uri = cut_off.artifacts(folder, "adapters/unified")
    cut_off.end("FINISHED")
    assert len(outbox.close(patience_seconds=0.1)) == 5

    again = MlflowTracker(mlflow_server, outbox=tmp_path / "outbox")
    again.start_study(study, params={}, tags={}, dataset=DATA)
    sent = client.get_run(run.info.run_id)
    assert sent.info.status == "FINISHED"
    assert (sent.data.metrics, sent.data.tags["outcome"]) == ({"train/loss": 1.0, "train/adapters": 1.0}, "done")
    assert [point.value for point in client.get_metric_history(run.info.run_id, "train/loss")] == [2.0, 1.0]
    arrived = tmp_path / "arrived"
    arrived.mkdir()
    assert again.download(uri, arrived)
    assert (arrived / "adapter_model.safetensors").read_bytes() == (folder / "adapter_model.safetensors").read_bytes()
    assert list((tmp_path / "outbox").iterdir()) == []


def test_an_adapter_is_registered_once_per_key(
    tracker: MlflowTracker, client: MlflowClient, study: str, tmp_path: Path, tiny_base_folder: Path
) -> None:
    folder = peft_folder(tmp_path / "trained")
    for key in ("aaaa", "aaaa", "bbbb"):
        routes = routes_to(key, study, tiny_base_folder)
        tracker.register_router(study, routes=routes, adapters=HeldAdapters({key: folder}), champion=False, model="cluster-00")
    versions = [v for v in tracker.versions(study) if v.name == f"{study}-cluster-00"]
    assert sorted((v.version, v.adapter_keys, v.whole) for v in versions) == [("1", ("aaaa",), True), ("2", ("bbbb",), True)]
    assert client.get_registered_model(f"{study}-cluster-00").aliases == {}, "nothing was compared, so nothing may be promoted"


def test_a_registered_model_holds_no_pickle_and_no_base_weights(
    tracker: MlflowTracker, client: MlflowClient, study: str, tmp_path: Path, tiny_base_folder: Path
) -> None:
    folder = peft_folder(tmp_path / "trained")
    routes = routes_to("aaaa", study, tiny_base_folder)
    tracker.register_router(study, routes=routes, adapters=HeldAdapters({"aaaa": folder}), champion=False, model="unified")
    path = Path(client.download_artifacts(parent(client, study).info.run_id, "models", str(tmp_path)))
    names = {file.name for file in path.rglob("*") if file.is_file()}
    assert {"routes.json", "adapter_model.safetensors", "adapter_config.json", "router_model.py", "MLmodel"} <= names
    assert not {name for name in names if Path(name).suffix in {".pkl", ".bin", ".pt"} or name == "model.safetensors"}


def test_the_champion_alias_moves_with_the_champion(
    tracker: MlflowTracker, client: MlflowClient, study: str, tmp_path: Path, tiny_base_folder: Path
) -> None:
    folder = peft_folder(tmp_path / "trained")

    def register(key: str, *, champion: bool) -> str:
        routes = routes_to(key, study, tiny_base_folder) | {"personas": {"p": KeyedComposition()}}
        return tracker.register_router(study, routes=routes, adapters=HeldAdapters({key: folder}), champion=champion)

    first = register("aaaa", champion=True)
    second = register("bbbb", champion=False)
    assert (first, second) == (f"models:/{study}/1", f"models:/{study}/2")
    assert str(client.get_model_version_by_alias(study, "champion").version) == "1"
    assert register("bbbb", champion=True) == second
    assert str(client.get_model_version_by_alias(study, "champion").version) == "2"


def test_an_unknown_study_is_named(tracker: MlflowTracker) -> None:
    with pytest.raises(UnknownName, match="study 'never-started' has no run"):
        tracker.end_study("never-started", status="finished")


@pytest.mark.parametrize("uri", ["sqlite:///mlflow.db", "./mlruns", "file:///tmp/mlruns", "databricks"])
def test_a_tracking_uri_without_a_server_is_refused(uri: str) -> None:
    with pytest.raises(BadSettings, match="mlflow server"):
        MlflowTracker(uri)


def test_an_unavailable_server_is_named_without_its_password() -> None:
    with pytest.raises(ServiceDown, match=r"MLflow at http://\*\*\*@127\.0\.0\.1:1 does not answer") as refusal:
        start(MlflowTracker("http://me:hunter2@127.0.0.1:1", patience_seconds=0.1), "study")
    assert "hunter2" not in str(refusal.value)
