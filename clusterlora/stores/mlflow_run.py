"""An open training run at MLflow: everything logged to it goes through an outbox, as messages that survive its process."""

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset as MlflowDataset
from mlflow.entities import DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import RestException

from clusterlora.errors import ServiceDown
from clusterlora.stores.json_codec import plain
from clusterlora.stores.outbox import Outbox, Payload
from clusterlora.values import Dataset

METRICS_PER_REQUEST = 1000
"""MLflow's own limit."""

_PARAM_CHARACTERS = 6000
"""MLflow's own limit."""

_NOT_IN_NAMES = re.compile(r"[^\w./ :-]")
"""What MLflow refuses in names, such as the + between an adapter and a rung."""


def delete_artifacts(client: MlflowClient, run_id: str, path: str) -> None:
    """Delete a folder or a file of a run's artifacts; nothing happens when it, or the run, is not there."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    try:
        if not has_artifacts(client, run_id, path):
            return
        uri = client.get_run(run_id).info.artifact_uri
    except RestException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return
        raise
    get_artifact_repository(str(uri), tracking_uri=client.tracking_uri).delete_artifacts(path)


def has_artifacts(client: MlflowClient, run_id: str, path: str) -> bool:
    """Return whether a run has a file of this path among its artifacts, or a folder that is not empty."""
    beside = client.list_artifacts(run_id, str(PurePosixPath(path).parent))
    return any(file.path == path and not file.is_dir for file in beside) or bool(client.list_artifacts(run_id, path))


class MlflowRun:
    """An open child run. Nothing logged to it is lost to an outage, and logging metrics and tags never waits for the server."""

    def __init__(self, run_id: str, outbox: Outbox, *, patience_seconds: float) -> None:
        self.run_id = run_id
        self._outbox = outbox
        self._patience_seconds = patience_seconds

    def curve(self, name: str, points: Sequence[tuple[int, float]]) -> None:
        timestamp = now()
        for batch in batches([[mlflow_name(name), value, timestamp, step] for step, value in points], METRICS_PER_REQUEST):
            self._put(f"{len(batch)} points of {name}", metrics=batch)

    def metrics(self, values: Mapping[str, float]) -> None:
        timestamp = now()
        for batch in batches([[mlflow_name(name), value, timestamp, 0] for name, value in values.items()], METRICS_PER_REQUEST):
            self._put(f"{len(batch)} metrics", metrics=batch)

    def system(self, values: Mapping[str, float], step: int) -> None:
        """Log one sample of the machine's load."""
        timestamp = now()
        self._put("system metrics", metrics=[[name, value, timestamp, step] for name, value in values.items()])

    def tag(self, values: Mapping[str, str]) -> None:
        self._put("tags", tags=dict(values))

    def end(self, status: str) -> None:
        """End the run after everything else has been sent."""
        self._put("the end of the run", status=status)

    def artifacts(self, what: Path, path: str) -> str:
        """Upload a folder, or a file whose name the path ends with; return its URI.

        During an outage it is uploaded later, so it must stay where it is.

        Raises:
            ServiceDown: the server refused it.
        """
        sent = self._put(f"artifacts {path}", folder=str(what), path=path)
        if not self._outbox.wait(sent, patience_seconds=self._patience_seconds):
            self._outbox.save()
        elif error := sent.exception():
            raise ServiceDown(f"MLflow refused artifacts {path}: {error}; look at the server's log and its artifact store") from error
        return f"runs:/{self.run_id}/{path}"

    def _put(self, what: str, **content: Any) -> Any:
        return self._outbox.put(what, {"run_id": self.run_id, **content})


def send(client: MlflowClient, payload: Payload) -> None:
    """Send one payload of a run; sending it twice changes nothing."""
    run_id = payload["run_id"]
    if "metrics" in payload:
        client.log_batch(run_id, metrics=[Metric(*point) for point in payload["metrics"]])
    elif "tags" in payload:
        client.log_batch(run_id, tags=[RunTag(name, value) for name, value in payload["tags"].items()])
    elif "folder" in payload:
        upload(client, run_id, Path(payload["folder"]), payload["path"])
    else:
        client.set_terminated(run_id, payload["status"])


def upload(client: MlflowClient, run_id: str, what: Path, path: str) -> None:
    """Upload a folder as `path` of a run's artifacts, or a file, whose name `path` ends with.

    Raises:
        FileNotFoundError: it is not there any more; MLflow would upload nothing without a word.
    """
    if not what.exists():
        raise FileNotFoundError(f"{what} was removed or replaced before it was uploaded; `clusterlora study verify --repair` uploads again")
    if what.is_file():
        client.log_artifact(run_id, str(what), str(PurePosixPath(path).parent))
    else:
        client.log_artifacts(run_id, str(what), path)


def metrics_of(values: Mapping[str, float]) -> list[Metric]:
    """Return values as MLflow metrics with the present time."""
    timestamp = now()
    return [Metric(mlflow_name(name), value, timestamp, 0) for name, value in values.items()]


def params_of(values: Mapping[str, Any], prefix: str = "") -> list[Param]:
    """Return nested settings as dotted parameters."""
    params: list[Param] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            params += params_of(value, f"{prefix}{name}.")
        else:
            params.append(Param(f"{prefix}{name}", str(plain(value))[:_PARAM_CHARACTERS]))
    return params


def dataset_input(study: str, dataset: Dataset) -> DatasetInput:
    """Return what a run says of its data: the digest, and how many there are."""
    n_by_split = {s: sum(len(p.of_split(s)) for p in dataset.personas) for s in ("train", "val", "test")}
    profile = json.dumps({"personas": len(dataset.personas), "dialogues": n_by_split})
    entity = MlflowDataset(study, dataset.digest, "study database", json.dumps({"study": study}), profile=profile)
    return DatasetInput(entity, [InputTag("mlflow.data.context", "training")])


def mlflow_name(name: str) -> str:
    """Return a metric's, tag's or file's name with the characters that MLflow refuses replaced by dashes."""
    return _NOT_IN_NAMES.sub("-", name)


def batches(values: Sequence[Any], size: int) -> Iterator[list[Any]]:
    """Yield the values in lists of at most `size`."""
    remaining = iter(values)
    while batch := list(islice(remaining, size)):
        yield batch


def now() -> int:
    """Return the present time in MLflow's unit: milliseconds since 1970."""
    return time.time_ns() // 1_000_000
