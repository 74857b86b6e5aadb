"""The tracker while a real MLflow server cannot be reached, for a moment or for good."""

import contextlib
import logging
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from mlflow import MlflowClient

from clusterlora.stores.mlflow_tracker import MlflowTracker
from tests.fixtures.tracked import peft_folder, runs

# MLflow warns of its own type hints when its model flavours are imported.
pytestmark = [pytest.mark.filterwarnings("ignore:.*AnyType:UserWarning")]


class Line:
    """A loopback connection to a server that can be cut and restored, as a network does it."""

    def __init__(self, uri: str) -> None:
        self._server_address = (str(urlsplit(uri).hostname), int(urlsplit(uri).port or 0))
        self._open: list[socket.socket] = []
        self._address = ("127.0.0.1", 0)
        self.restore()
        self.uri = f"http://127.0.0.1:{self._address[1]}"

    def restore(self) -> None:
        self._listener = socket.create_server(self._address)
        self._address = self._listener.getsockname()
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def cut(self) -> None:
        for end in [self._listener, *self._open]:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self._open.clear()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, far = listener.accept()[0], socket.create_connection(self._server_address)
                self._open += [near, far]
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=(source, sink), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)


@pytest.fixture
def line(mlflow_server: str) -> Iterator[Line]:
    line = Line(mlflow_server)
    yield line
    line.cut()


def test_a_training_survives_an_outage_and_loses_no_point(line: Line, client: MlflowClient, study: str, tmp_path: Path) -> None:
    tracker = MlflowTracker(line.uri, patience_seconds=6)
    folder = peft_folder(tmp_path / "trained")
    with tracker.adapter_run(study, name="group", params={}, tags={}) as run:
        run.curve("train/loss", [(1, 2.0)])
        first = run.artifacts(folder, "adapters/first")
        line.cut()
        run.curve("train/loss", [(2, 1.5)])
        # Waited for as long as patience lasts, then uploaded when the server is back.
        second = run.artifacts(folder, "adapters/second")
        assert client.list_artifacts(run.run_id, "adapters/second") == []
        line.restore()
        run.curve("train/loss", [(3, 1.0)])
    (child,) = runs(client, study)
    assert child.info.status == "FINISHED"
    assert [(m.step, m.value) for m in client.get_metric_history(child.info.run_id, "train/loss")] == [(1, 2.0), (2, 1.5), (3, 1.0)]
    for name, uri in (("first", first), ("second", second)):
        (tmp_path / name).mkdir()
        assert tracker.download(uri, tmp_path / name)


def test_a_permanent_outage_loses_the_log_and_not_the_training(
    line: Line, client: MlflowClient, study: str, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = MlflowTracker(line.uri, patience_seconds=0.5)
    with caplog.at_level(logging.WARNING), tracker.adapter_run(study, name="group", params={}, tags={}) as run:
        line.cut()
        run.curve("train/loss", [(1, 2.0)])
    assert "run 'group' lacks 1 points of train/loss, system metrics, the end of the run" in caplog.text
    line.restore()
    tracker.end_study(study, status="finished")
    (child,) = runs(client, study)
    assert child.info.status == "KILLED"
