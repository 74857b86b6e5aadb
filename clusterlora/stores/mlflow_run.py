"""A training run at MLflow that is under way: what it is told goes through an outbox, as letters that survive its process."""

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, RunTag

from clusterlora.errors import ServiceDown
from clusterlora.stores.outbox import Letter, Outbox

METRICS_PER_REQUEST = 1000
"""MLflow's own limit."""

_NOT_IN_NAMES = re.compile(r"[^\w./ :-]")
"""What MLflow refuses in names, such as the + between an adapter and a rung."""


class MlflowRun:
    """An open child run. Nothing it is told is lost to an outage, and none of it is waited for."""

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
        """Log a sample of how busy the machine is."""
        timestamp = now()
        self._put("system metrics", metrics=[[name, value, timestamp, step] for name, value in values.items()])

    def tag(self, values: Mapping[str, str]) -> None:
        self._put("tags", tags=dict(values))

    def end(self, status: str) -> None:
        """End the run once everything else is sent."""
        self._put("the end of the run", status=status)

    def artifacts(self, folder: Path, path: str) -> str:
        """Upload a folder; return its URI. In an outage it is uploaded later, and must stay where it is.

        Raises:
            ServiceDown: the server refused it.
        """
        sent = self._put(f"artifacts {path}", folder=str(folder), path=path)
        if not self._outbox.wait(sent, patience_seconds=self._patience_seconds):
            self._outbox.save()
        elif error := sent.exception():
            raise ServiceDown(f"MLflow refused artifacts {path}: {error}; look at the server's log and its artifact store") from error
        return f"runs:/{self.run_id}/{path}"

    def _put(self, what: str, **content: Any) -> Any:
        return self._outbox.put(what, {"run_id": self.run_id, **content})


def send(client: MlflowClient, letter: Letter) -> None:
    """Send a letter of a run's. Sent twice it changes nothing."""
    run_id = letter["run_id"]
    if "metrics" in letter:
        client.log_batch(run_id, metrics=[Metric(*point) for point in letter["metrics"]])
    elif "tags" in letter:
        client.log_batch(run_id, tags=[RunTag(name, value) for name, value in letter["tags"].items()])
    elif "folder" in letter:
        client.log_artifacts(run_id, letter["folder"], letter["path"])
    else:
        client.set_terminated(run_id, letter["status"])


def metrics_of(values: Mapping[str, float]) -> list[Metric]:
    """Return values as metrics of this moment."""
    timestamp = now()
    return [Metric(mlflow_name(name), value, timestamp, 0) for name, value in values.items()]


def mlflow_name(of: str) -> str:
    """Return a name of a metric, a tag or a file as MLflow takes it."""
    return _NOT_IN_NAMES.sub("-", of)


def batches(values: Sequence[Any], size: int) -> Iterator[list[Any]]:
    """Yield the values in lists of at most so many."""
    remaining = iter(values)
    while batch := list(islice(remaining, size)):
        yield batch


def now() -> int:
    """Return the moment as MLflow counts it: milliseconds since 1970."""
    return time.time_ns() // 1_000_000
