"""Studies as MLflow experiments: one parent run per study, one child run per training run, models in the registry."""

import json
import logging
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset as MlflowDataset
from mlflow.entities import DatasetInput, InputTag, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException, RestException

from clusterlora.errors import ServiceDown, UnknownName
from clusterlora.gate.report import markdown
from clusterlora.ports import AdapterRun
from clusterlora.settings import EvaluationSettings, ModelSettings
from clusterlora.stores.json_codec import from_plain, plain, to_json
from clusterlora.stores.mlflow_registry import add_version
from clusterlora.stores.mlflow_server import MlflowServer
from clusterlora.stores.outbox import Outbox
from clusterlora.stores.routing_table import KeyedLayer, KeyedStack, RoutingTable
from clusterlora.values import Dataset, TrainedAdapter, Verdict

log = logging.getLogger(__name__)

_METRICS_PER_REQUEST = 1000
_PARAMS_PER_REQUEST = 100
_PARAM_CHARACTERS = 6000
"""Limits of MLflow's interface."""

_KIND = "clusterlora.run"
_INHERITED_TAGS = ("data_digest", "git_revision", "clusterlora_version")


class MlflowTracker:
    """A Tracker on an MLflow server. What is logged during training survives an outage; the rest waits a minute, then says so."""

    def __init__(self, uri: str, *, patience_seconds: float = 60.0) -> None:
        """Remember the server's address.

        Raises:
            BadSettings: not the address of a server.
        """
        self._server = MlflowServer(uri, patience_seconds=patience_seconds)
        self._client = self._server.client
        self._parents: dict[str, Run] = {}

    def start_study(self, study: str, *, params: Mapping[str, Any], tags: Mapping[str, str], dataset: Dataset) -> str:
        return self._server.call("the start of the study", lambda: self._start_study(study, params, tags, dataset))

    @contextmanager
    def adapter_run(self, study: str, *, name: str, params: Mapping[str, Any], tags: Mapping[str, str]) -> Iterator[AdapterRun]:
        run = self._server.call(f"the start of run {name!r}", lambda: self._start_child(study, name, params, tags))
        outbox = Outbox(self._server.shown, self._server.is_away)
        status = "FAILED"
        try:
            yield MlflowRun(run.info.run_id, self._client, outbox, patience_seconds=self._server.patience_seconds)
            status = "FINISHED"
        finally:
            outbox.put("the end of the run", lambda: self._client.set_terminated(run.info.run_id, status))
            if lost := outbox.close(patience_seconds=self._server.patience_seconds):
                log.error("%s stayed away; run %r lacks %s (weights are in the adapter store)", self._server.shown, name, ", ".join(lost))

    def log_verdict(self, study: str, verdict: Verdict) -> None:
        outcome = "pass" if verdict.passed else "fail"

        def send() -> None:
            run_id = self._parent(study).info.run_id
            metrics = {f"gate/{verdict.rung}/{c.name}": c.value for c in verdict.criteria}
            tags = [RunTag(f"gate.{verdict.rung}", outcome), RunTag("gate_verdict", outcome)]
            self._client.log_batch(run_id, metrics=_metrics(metrics), tags=tags)
            self._client.log_text(run_id, markdown(verdict), f"gate/{verdict.rung}.md")
            self._client.log_text(run_id, to_json(verdict), f"gate/{verdict.rung}.json")

        self._server.call("the gate's verdict", send)

    def log_results(self, study: str, *, folder: Path, metrics: Mapping[str, float]) -> None:
        def send() -> None:
            run_id = self._parent(study).info.run_id
            self._client.log_artifacts(run_id, str(folder), "results")
            for batch in _batches(_metrics(metrics), _METRICS_PER_REQUEST):
                self._client.log_batch(run_id, metrics=batch)

        self._server.call("the results", send)

    def register_adapter(
        self, study: str, *, model: str, adapter: TrainedAdapter, folder: Path, base_model: str, settings: ModelSettings | None = None
    ) -> None:
        from clusterlora.models.base import base_revision

        table = RoutingTable(
            study=study,
            method=model,
            model=settings or ModelSettings(base=base_model),
            base_revision=base_revision(base_model),
            max_new_tokens=EvaluationSettings().max_new_tokens,
            default=KeyedStack((KeyedLayer(adapter.key),)),
            names={adapter.key: adapter.name},
        )
        self._register(study, f"{study}-{model}", table, {adapter.key: folder}, {"adapter_key": adapter.key})

    def register_router(
        self, study: str, *, routes: Mapping[str, Any], adapter_folders: Mapping[str, Path], champion: bool, model: str | None = None
    ) -> str:
        name = f"{study}-{model}" if model else study
        table = from_plain(RoutingTable, json.loads(to_json(routes)))
        version = self._register(study, name, table, adapter_folders, {})
        if champion:
            self._server.call("alias champion", lambda: self._client.set_registered_model_alias(name, "champion", version))
        return f"models:/{name}/{version}"

    def end_study(self, study: str, *, status: str) -> None:
        """End the parent run, and any child run whose process was killed. Statuses other than failed and killed mean finished."""
        ended = {"failed": "FAILED", "killed": "KILLED", "cancelled": "KILLED"}.get(status.lower(), "FINISHED")

        def send() -> None:
            parent = self._parent(study)
            self._end_abandoned(parent)
            self._client.set_terminated(parent.info.run_id, ended)

        self._server.call("the end of the study", send)

    def download(self, uri: str, folder: Path) -> bool:
        """Fill an existing folder with what `AdapterRun.artifacts` uploaded; false when there is nothing under this URI.

        Raises:
            ServiceDown: the server is away.
        """
        if not uri.startswith("runs:/"):
            return False
        run_id, _, path = uri.removeprefix("runs:/").partition("/")
        return self._server.call(f"the download of {uri}", lambda: self._download(run_id, path, folder))

    def _start_study(self, study: str, params: Mapping[str, Any], tags: Mapping[str, str], dataset: Dataset) -> str:
        experiment_id = _experiment(self._client, study)
        parent = _find_parent(self._client, experiment_id)
        if parent is None:
            parent = self._client.create_run(experiment_id, tags={_KIND: "study"}, run_name=study)
            self._client.log_inputs(parent.info.run_id, datasets=[_dataset_input(study, dataset)])
        run_id = parent.info.run_id
        # MLflow's parameters never change: a resumed study keeps the first value of a runtime setting.
        missing = [p for p in _params(params) if p.key not in parent.data.params]
        for batch in _batches(missing, _PARAMS_PER_REQUEST):
            self._client.log_batch(run_id, params=batch)
        self._client.log_batch(run_id, tags=[RunTag(k, v) for k, v in {**tags, "data_digest": dataset.digest, "study": study}.items()])
        self._client.update_run(run_id, status="RUNNING")
        self._parents[study] = self._client.get_run(run_id)
        return run_id

    def _start_child(self, study: str, name: str, params: Mapping[str, Any], tags: Mapping[str, str]) -> Run:
        parent = self._parent(study)
        # Somebody was killed in the middle of it: nobody else will end that run.
        self._end_abandoned(parent, name)
        inherited = {tag: parent.data.tags[tag] for tag in _INHERITED_TAGS if tag in parent.data.tags}
        own = {**inherited, **tags, "study": study, _KIND: "training", "mlflow.parentRunId": parent.info.run_id}
        run = self._client.create_run(parent.info.experiment_id, tags=own, run_name=name)
        for batch in _batches(_params(params), _PARAMS_PER_REQUEST):
            self._client.log_batch(run.info.run_id, params=batch)
        return run

    def _end_abandoned(self, parent: Run, name: str | None = None) -> None:
        running = f"attributes.status = 'RUNNING' and tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
        for run in self._client.search_runs([parent.info.experiment_id], filter_string=running):
            if name in (None, run.info.run_name):
                self._client.set_terminated(run.info.run_id, "KILLED")

    def _parent(self, study: str) -> Run:
        if study not in self._parents:
            parent = _find_parent(self._client, _experiment(self._client, study))
            if parent is None:
                raise UnknownName(f"study {study!r} has no run in {self._server.shown}; prepare the study first")
            self._parents[study] = parent
        return self._parents[study]

    def _register(self, study: str, name: str, table: RoutingTable, folders: Mapping[str, Path], tags: Mapping[str, str]) -> str:
        def send() -> str:
            return add_version(self._client, self._parent(study).info.run_id, name, table, folders, tags)

        return self._server.call(f"model {name}", send)

    def _download(self, run_id: str, path: str, folder: Path) -> bool:
        try:
            if not self._client.list_artifacts(run_id, path):
                return False
        except RestException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise
        with tempfile.TemporaryDirectory() as temporary:
            shutil.copytree(self._client.download_artifacts(run_id, path, temporary), folder, dirs_exist_ok=True)
        return True


class MlflowRun:
    """An open child run. Nothing it is told is lost to an outage that ends before the run, and none of it is waited for."""

    def __init__(self, run_id: str, client: MlflowClient, outbox: Outbox, *, patience_seconds: float) -> None:
        self.run_id = run_id
        self._client = client
        self._outbox = outbox
        self._patience_seconds = patience_seconds

    def curve(self, name: str, points: Sequence[tuple[int, float]]) -> None:
        timestamp = _now()
        metrics = [Metric(name, value, timestamp, step) for step, value in points]
        for batch in _batches(metrics, _METRICS_PER_REQUEST):
            self._outbox.put(f"{len(batch)} points of {name}", partial(self._client.log_batch, self.run_id, metrics=batch))

    def metrics(self, values: Mapping[str, float]) -> None:
        for batch in _batches(_metrics(values), _METRICS_PER_REQUEST):
            self._outbox.put(f"{len(batch)} metrics", partial(self._client.log_batch, self.run_id, metrics=batch))

    def artifacts(self, folder: Path, path: str) -> str:
        """Upload a folder; return its URI. In an outage it is uploaded later, and must stay where it is until the run ends.

        Raises:
            ServiceDown: the server refused it.
        """
        sent = self._outbox.put(f"artifacts {path}", partial(self._client.log_artifacts, self.run_id, str(folder), path))
        if self._outbox.wait(sent, patience_seconds=self._patience_seconds) and (error := sent.exception()):
            raise ServiceDown(f"MLflow refused artifacts {path}: {error}; look at the server's log and its artifact store") from error
        return f"runs:/{self.run_id}/{path}"


def _experiment(client: MlflowClient, study: str) -> str:
    try:
        return client.create_experiment(study)
    except MlflowException:
        # Made before, or by somebody else a moment ago.
        experiment = client.get_experiment_by_name(study)
        if experiment is None:
            raise
        if experiment.lifecycle_stage != "active":
            raise UnknownName(f"MLflow experiment {study!r} is deleted; restore it, or choose another study name") from None
        return experiment.experiment_id


def _find_parent(client: MlflowClient, experiment_id: str) -> Run | None:
    oldest = ["attributes.start_time ASC"]
    found = client.search_runs([experiment_id], filter_string=f"tags.`{_KIND}` = 'study'", order_by=oldest, max_results=1)
    return found[0] if found else None


def _dataset_input(study: str, dataset: Dataset) -> DatasetInput:
    n_by_split = {s: sum(len(p.of_split(s)) for p in dataset.personas) for s in ("train", "val", "test")}
    profile = json.dumps({"personas": len(dataset.personas), "dialogues": n_by_split})
    entity = MlflowDataset(study, dataset.digest, "study database", json.dumps({"study": study}), profile=profile)
    return DatasetInput(entity, [InputTag("mlflow.data.context", "training")])


def _params(values: Mapping[str, Any], prefix: str = "") -> list[Param]:
    """Return nested settings as dotted parameters."""
    params: list[Param] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            params += _params(value, f"{prefix}{name}.")  # pyright: ignore[reportUnknownArgumentType]
        else:
            params.append(Param(f"{prefix}{name}", str(plain(value))[:_PARAM_CHARACTERS]))
    return params


def _metrics(values: Mapping[str, float]) -> list[Metric]:
    timestamp = _now()
    return [Metric(name, value, timestamp, 0) for name, value in values.items()]


def _batches(values: Sequence[Any], size: int) -> Iterator[list[Any]]:
    remaining = iter(values)
    while batch := list(islice(remaining, size)):
        yield batch


def _now() -> int:
    return time.time_ns() // 1_000_000
