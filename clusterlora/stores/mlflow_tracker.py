"""Studies as MLflow experiments: one parent run per study, one child run per training run, models in the registry."""

import json
import logging
import shutil
import tempfile
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Param, Run, RunTag
from mlflow.exceptions import MlflowException, RestException

from clusterlora.errors import UnknownName, counted
from clusterlora.gate.report import markdown
from clusterlora.ports.adapter_store import AdapterSet
from clusterlora.ports.model_registry import About, ModelVersion
from clusterlora.ports.tracker import AdapterRun, OpenRun, TrialRun
from clusterlora.stores.champion_history import move_champion, study_of_champion
from clusterlora.stores.json_codec import from_plain, to_json
from clusterlora.stores.mlflow_forgetting import forget_studies, has_run, run_ids
from clusterlora.stores.mlflow_registry import add_version, model_versions
from clusterlora.stores.mlflow_run import (
    METRICS_PER_REQUEST,
    MlflowRun,
    batches,
    dataset_input,
    delete_artifacts,
    has_artifacts,
    metrics_of,
    mlflow_name,
    now,
    params_of,
    send,
    upload,
)
from clusterlora.stores.mlflow_server import MlflowServer, pages
from clusterlora.stores.mlflow_trials import log_trials
from clusterlora.stores.mlflow_view import KIND_OF_TRAINING, KIND_TAG, PAGE_QUERY, VIEW_TAG, view
from clusterlora.stores.outbox import Outbox, Payload, send_left_over
from clusterlora.stores.routing_table import RoutingTable
from clusterlora.stores.system_metrics import sampled
from clusterlora.values import Dataset, Verdict

log = logging.getLogger(__name__)

_PARAMS_PER_REQUEST = 100
"""Limit of MLflow's interface."""

_WAIT_FOR_PARENT_SECONDS = 10.0
"""How long to wait for the parent run of an experiment that another process created: that process may have been killed in between."""

_KIND = "clusterlora.run"
_NOTE = "mlflow.note.content"
"""What MLflow shows as the description of an experiment or run."""
_INHERITED_TAGS = ("data_digest", "git_revision", "clusterlora_version")


class MlflowTracker:
    """A Tracker on an MLflow server. What is logged during training survives an outage; other calls wait a minute, then raise."""

    def __init__(self, uri: str, *, patience_seconds: float = 60.0, outbox: Path | None = None) -> None:
        """Remember the server's address.

        Args:
            outbox: folder for messages that a training run could not send; starting a study or a run sends them.

        Raises:
            BadSettings: not the address of a server.
        """
        self._server = MlflowServer(uri, patience_seconds=patience_seconds)
        self._client = self._server.client
        self._parents: dict[str, Run] = {}
        self._outbox = outbox

    def start_study(self, study: str, *, params: Mapping[str, Any], tags: Mapping[str, str], dataset: Dataset, running: bool = True) -> str:
        run_id = self._server.call("the start of the study", lambda: self._start_study(study, params, tags, dataset, running=running))
        self._send_left_over()
        return run_id

    @contextmanager
    def adapter_run(self, study: str, *, name: str, params: Mapping[str, Any], tags: Mapping[str, str]) -> Generator[AdapterRun]:
        self._send_left_over()
        run = self._server.call(f"the start of run {name!r}", lambda: self._start_child(study, name, params, tags))
        file = self._outbox / f"{run.info.run_id}.json" if self._outbox else None
        outbox = Outbox(self._server.display_name, self._server.is_away, partial(send, self._client), file)
        opened = MlflowRun(run.info.run_id, outbox, patience_seconds=self._server.patience_seconds)
        status = "FAILED"
        try:
            with sampled(opened.system):
                yield opened
            status = "FINISHED"
        finally:
            opened.end(status)
            if unsent := outbox.close(patience_seconds=self._server.patience_seconds):
                consequence = "the next run sends it" if file else "the weights are in the adapter store"
                log.error("%s does not answer; run %r lacks %s; %s", self._server.display_name, name, ", ".join(unsent), consequence)

    def log_verdict(self, study: str, verdict: Verdict) -> None:
        outcome = "pass" if verdict.passed else "fail"

        def log_it() -> None:
            run_id = self._parent(study).info.run_id
            metrics = {f"gate/{verdict.rung}/{c.name}": c.value for c in verdict.criteria}
            tags = [RunTag(mlflow_name(f"gate.{verdict.rung}"), outcome), RunTag("gate_verdict", outcome)]
            self._client.log_batch(run_id, metrics=metrics_of(metrics), tags=tags)
            self._client.log_text(run_id, markdown(verdict), mlflow_name(f"gate/{verdict.rung}.md"))
            self._client.log_text(run_id, to_json(verdict), mlflow_name(f"gate/{verdict.rung}.json"))

        self._server.call("the gate's verdict", log_it)

    def log_trials(self, study: str, trials: Sequence[TrialRun]) -> None:
        self._server.call("the trials", lambda: log_trials(self._client, self._parent(study), trials, study))

    def log_results(self, study: str, *, folder: Path, metrics: Mapping[str, float], description: str = "") -> None:
        def log_it() -> None:
            info = self._parent(study).info
            run_id = info.run_id
            if description:
                self._client.set_experiment_tag(info.experiment_id, _NOTE, description)
                self._client.set_tag(run_id, _NOTE, description)
            self._client.log_artifacts(run_id, str(folder), "results")
            for batch in batches(metrics_of(metrics), METRICS_PER_REQUEST):
                self._client.log_batch(run_id, metrics=batch)

        self._server.call("the results", log_it)

    def page(self, study: str) -> str | None:
        return f"{self._server.address}/#/experiments/{self._parent(study).info.experiment_id}/runs?{PAGE_QUERY}"

    def link(self, study: str, name: str, address: str) -> None:
        self._server.call(f"the link to {name}", lambda: self._client.set_tag(self._parent(study).info.run_id, name, address))

    def register_router(
        self,
        study: str,
        *,
        routes: Mapping[str, Any],
        adapters: AdapterSet,
        champion: bool,
        model: str | None = None,
        about: About | None = None,
        root: str | None = None,
    ) -> str:
        name = f"{study}-{model}" if model else root or study
        table = from_plain(RoutingTable, json.loads(to_json(routes)))
        version = self._register(study, name, table, adapters, about, root=root)
        if champion:
            why = f"the comparison of study {study}"
            self._server.call("alias champion", lambda: move_champion(self._client, name, version, why))
        return f"models:/{name}/{version}"

    def champion(self, name: str) -> tuple[str, str] | None:
        return self._server.call(f"the champion of {name}", lambda: study_of_champion(self._client, name))

    def end_study(
        self, study: str, *, status: str, seconds: Mapping[str, float] | None = None, costs: Mapping[str, float] | None = None
    ) -> None:
        """End the parent run, with seconds and costs as metrics, and any child run whose process was killed.

        Statuses other than failed and killed mean finished.
        """
        run_status = {"failed": "FAILED", "killed": "KILLED", "cancelled": "KILLED"}.get(status.lower(), "FINISHED")

        def log_it() -> None:
            parent = self._parent(study)
            self._end_abandoned(parent)
            values = {f"seconds/{phase}": value for phase, value in (seconds or {}).items()} | {**(costs or {})}
            for batch in batches(metrics_of(values), METRICS_PER_REQUEST):
                self._client.log_batch(parent.info.run_id, metrics=batch)
            self._client.set_terminated(parent.info.run_id, run_status)

        self._server.call("the end of the study", log_it)

    @property
    def keeps_adapters(self) -> bool:
        return True

    def upload(self, study: str, what: Path, path: str, *, run_id: str | None) -> tuple[str, str]:
        def log_it() -> str:
            there = run_id if run_id is not None and has_run(self._client, run_id) else self._parent(study).info.run_id
            upload(self._client, there, what, path)
            return there

        uploaded_to = self._server.call(path, log_it)
        return uploaded_to, f"runs:/{uploaded_to}/{path}"

    def open_runs(self, study: str) -> tuple[OpenRun, ...]:
        def read() -> tuple[OpenRun, ...]:
            experiment = self._client.get_experiment_by_name(study)
            runs = self._all_runs(experiment.experiment_id, "attributes.status = 'RUNNING'") if experiment else []
            return tuple(
                OpenRun(
                    run.info.run_id,
                    run.info.run_name or "",
                    tags.get("training_group"),
                    int(tags["attempt"]) if "attempt" in tags else None,
                )
                for run in runs
                for tags in (run.data.tags,)
            )

        return self._server.call("the list of open runs", read)

    @property
    def address(self) -> str | None:
        return self._server.uri

    def run_ids(self, study: str) -> frozenset[str]:
        return self._server.call("the list of runs", lambda: run_ids(self._client, study))

    def has_run(self, run_id: str) -> bool:
        return self._server.call("a run", lambda: has_run(self._client, run_id))

    def forget_studies(self, studies: Sequence[str]) -> tuple[str, ...]:
        self._send_left_over()
        for study in studies:
            self._parents.pop(study, None)
        return self._server.call(f"the removal of {', '.join(studies)}", lambda: forget_studies(self._client, studies))

    def kill_run(self, run_id: str) -> None:
        self._server.call("the end of a run", lambda: self._client.set_terminated(run_id, "KILLED"))

    def versions(self, study: str) -> tuple[ModelVersion, ...]:
        return self._server.call("the list of models", lambda: model_versions(self._client, study))

    def drop_version(self, name: str, version: str) -> None:
        self._server.call(f"the removal of {name} {version}", lambda: self._client.delete_model_version(name, version))

    def download(self, uri: str, folder: Path) -> bool:
        """Fill an existing folder with what `AdapterRun.artifacts` uploaded; false when there is nothing under this URI.

        Raises:
            ServiceDown: the server is away.
        """
        if not uri.startswith("runs:/"):
            return False
        run_id, _, path = uri.removeprefix("runs:/").partition("/")
        return self._server.call(f"the download of {uri}", lambda: self._download(run_id, path, folder))

    def discard(self, uri: str) -> None:
        """Delete what `AdapterRun.artifacts` uploaded under this URI. Raises ServiceDown: the server is away."""
        run_id, _, path = uri.removeprefix("runs:/").partition("/")
        self._server.call(f"the removal of {uri}", lambda: delete_artifacts(self._client, run_id, path))

    def _send_left_over(self) -> None:
        def send_one(what: str, payload: Payload) -> None:
            try:
                self._server.call(f"{what}, left over from run {payload['run_id']}", lambda: send(self._client, payload))
            except OSError as problem:
                # A refused message would be refused again; only after an outage it is worth another try.
                if self._server.is_away():
                    raise
                log.warning("%s", problem)

        if self._outbox is not None:
            send_left_over(self._outbox, send_one)

    def _start_study(self, study: str, params: Mapping[str, Any], tags: Mapping[str, str], dataset: Dataset, *, running: bool) -> str:
        experiment_id, is_new = _experiment(self._client, study)
        parent = _find_parent(self._client, experiment_id, wait_seconds=0 if is_new else _WAIT_FOR_PARENT_SECONDS)
        if parent is None:
            created = self._client.create_run(experiment_id, tags={_KIND: "study"}, run_name=study)
            # Another process that waited in vain may have created one at the same moment: all use the oldest.
            parent = _find_parent(self._client, experiment_id) or created
            if parent.info.run_id != created.info.run_id:
                self._client.delete_run(created.info.run_id)
            else:
                self._client.log_inputs(created.info.run_id, datasets=[dataset_input(study, dataset)])
                self._describe_experiment(experiment_id, study, tags, dataset)
                if not running:
                    self._client.set_terminated(created.info.run_id)
        run_id = parent.info.run_id
        self._log_missing_params(run_id, params_of(params))
        self._client.log_batch(run_id, tags=[RunTag(k, v) for k, v in {**tags, "data_digest": dataset.digest, "study": study}.items()])
        if running:
            self._client.update_run(run_id, status="RUNNING")
        self._parents[study] = self._client.get_run(run_id)
        return run_id

    def _describe_experiment(self, experiment_id: str, study: str, tags: Mapping[str, str], dataset: Dataset) -> None:
        description = (
            f"Study {study} of clusterlora: {counted(len(dataset.personas), 'persona')}, data {dataset.digest}. One run per "
            "training, under the study's own run; the results are described here once the methods are compared."
        )
        experiment_tags = {
            VIEW_TAG: view(f"tags.`{_KIND}` = 'training'", created_at=now()),
            KIND_TAG: KIND_OF_TRAINING,
            _NOTE: description,
            "study": study,
            "data_digest": dataset.digest,
            **{name: tags[name] for name in _INHERITED_TAGS if name in tags},
        }
        for name, value in experiment_tags.items():
            self._client.set_experiment_tag(experiment_id, name, value)

    def _log_missing_params(self, run_id: str, params: Sequence[Param]) -> None:
        """Log what the run lacks. MLflow's parameters never change: a resumed study keeps the first value of a runtime setting."""
        while missing := self._missing(run_id, params):
            try:
                for batch in batches(missing, _PARAMS_PER_REQUEST):
                    self._client.log_batch(run_id, params=batch)
            except MlflowException:
                # Another launch of the same study may have logged some of them in the meantime.
                if len(self._missing(run_id, params)) == len(missing):
                    raise

    def _missing(self, run_id: str, params: Sequence[Param]) -> list[Param]:
        logged = self._client.get_run(run_id).data.params
        return [p for p in params if p.key not in logged]

    def _start_child(self, study: str, name: str, params: Mapping[str, Any], tags: Mapping[str, str]) -> Run:
        parent = self._parent(study)
        # A run of this name that is still open belongs to a killed process; nothing else would end it.
        self._end_abandoned(parent, name)
        inherited = {tag: parent.data.tags[tag] for tag in _INHERITED_TAGS if tag in parent.data.tags}
        own = {**inherited, **tags, "study": study, _KIND: "training", "mlflow.parentRunId": parent.info.run_id}
        run = self._client.create_run(parent.info.experiment_id, tags=own, run_name=name)
        for batch in batches(params_of(params), _PARAMS_PER_REQUEST):
            self._client.log_batch(run.info.run_id, params=batch)
        return run

    def _all_runs(self, experiment_id: str, filter_string: str) -> list[Run]:
        return list(pages(self._client.search_runs, [experiment_id], filter_string=filter_string))

    def _end_abandoned(self, parent: Run, name: str | None = None) -> None:
        running = f"attributes.status = 'RUNNING' and tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
        for run in self._all_runs(parent.info.experiment_id, running):
            if name in (None, run.info.run_name):
                self._client.set_terminated(run.info.run_id, "KILLED")

    def _parent(self, study: str) -> Run:
        if study not in self._parents:
            parent = _find_parent(self._client, _experiment(self._client, study)[0])
            if parent is None:
                raise UnknownName(f"study {study!r} has no run in {self._server.display_name}; prepare the study first")
            self._parents[study] = parent
        return self._parents[study]

    def _register(self, study: str, name: str, table: RoutingTable, adapters: AdapterSet, about: About | None, *, root: str | None) -> str:
        def log_it() -> str:
            run_id = self._parent(study).info.run_id
            return add_version(self._client, run_id, name, table, adapters, about or About("", {}), root=root)

        return self._server.call(f"model {name}", log_it)

    def _download(self, run_id: str, path: str, folder: Path) -> bool:
        try:
            if not has_artifacts(self._client, run_id, path):
                return False
        except RestException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise
        with tempfile.TemporaryDirectory() as temporary:
            downloaded = Path(self._client.download_artifacts(run_id, path, temporary))
            if downloaded.is_file():
                shutil.copyfile(downloaded, folder / downloaded.name)
            else:
                shutil.copytree(downloaded, folder, dirs_exist_ok=True)
        return True


def _experiment(client: MlflowClient, study: str) -> tuple[str, bool]:
    """Return the id of the study's experiment, and whether this call created it."""
    try:
        return client.create_experiment(study), True
    except MlflowException:
        # It exists already; another process may have just created it.
        experiment = client.get_experiment_by_name(study)
        if experiment is None:
            raise
        if experiment.lifecycle_stage != "active":
            raise UnknownName(f"MLflow experiment {study!r} is deleted; restore it, or choose another study name") from None
        return experiment.experiment_id, False


def _find_parent(client: MlflowClient, experiment_id: str, *, wait_seconds: float = 0) -> Run | None:
    """Return the run of the study itself, or None when there is none after waiting for it."""
    oldest = ["attributes.start_time ASC", "attributes.run_id ASC"]
    deadline = time.monotonic() + wait_seconds
    while True:
        runs = client.search_runs([experiment_id], filter_string=f"tags.`{_KIND}` = 'study'", order_by=oldest, max_results=1)
        if runs or time.monotonic() >= deadline:
            return runs[0] if runs else None
        time.sleep(0.1)
