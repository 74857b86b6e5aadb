"""The start command of all work pools: it reads the flow of a run from the server and starts only this project's flows."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

import pytest

from clusterlora.models import device
from deployments import run

CHECKOUT = Path(__file__).resolve().parents[2]
FLOW_OF_RUN: dict[str, str | None] = {
    "ours": "flows.train.train",
    "strange": "os.abort",
    "path": "flows/train.py:train",
    "like-ours": "flows.train.train ; touch x",
    "none": None,
    "adhoc": None,
}


class Server(BaseHTTPRequestHandler):
    """As much of Prefect's API as a run asks; it is too busy at first, as SQLite makes it."""

    logins: ClassVar[list[str | None]] = []
    busy = 1

    def do_GET(self) -> None:
        Server.logins.append(self.headers["Authorization"])
        kind, name = self.path.removeprefix("/api/").split("/")
        Server.busy, is_busy = 0, Server.busy
        body: dict[str, Any] = (
            {"deployment_id": None if name == "adhoc" else name} if kind == "flow_runs" else {"entrypoint": FLOW_OF_RUN[name]}
        )
        self.send_response(503 if is_busy else 200)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, format: str, *args: Any) -> None: ...  # noqa: A002


@pytest.fixture
def api() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/api"
        server.shutdown()


@pytest.mark.parametrize("name", [name for name in FLOW_OF_RUN if name != "ours"])
def test_a_run_of_any_other_flow_is_refused(api: str, name: str) -> None:
    environment = {**os.environ, "PREFECT_API_URL": api, "PREFECT__FLOW_RUN_ID": name}
    argv = [sys.executable, "-m", "deployments.run"]
    done = subprocess.run(argv, env=environment, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {FLOW_OF_RUN[name]!r} is not a flow of this project")


def test_a_run_of_a_flow_of_ours_becomes_that_flow(api: str, monkeypatch: pytest.MonkeyPatch) -> None:
    became: list[Any] = []
    monkeypatch.setattr(os, "execv", lambda program, argv: became.append((program, argv)))
    monkeypatch.setenv("PREFECT_API_URL", api)
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "clusterlora:secret")
    for name in (*run.ENVIRONMENT, "PREFECT__FLOW_RUN_ID"):
        monkeypatch.setenv(name, "ours")
    run.main()
    assert became == [(sys.executable, [sys.executable, "-m", "deployments.fork_server", "prefect.flow_engine", "flows.train.train"])]
    assert {name: os.environ[name] for name in run.ENVIRONMENT} == run.ENVIRONMENT
    assert Server.logins[-1] == "Basic Y2x1c3RlcmxvcmE6c2VjcmV0"


@pytest.mark.parametrize(("set_before", "n_threads"), [(None, "2"), ("1", "1")])
def test_a_run_in_a_container_has_as_many_threads_as_it_may_use_cores(
    api: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, set_before: str | None, n_threads: str
) -> None:
    (tmp_path / "cpu.max").write_text("150000 100000")
    monkeypatch.setattr(device, "_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(os, "execv", lambda *_: None)
    names = {"PREFECT_API_URL": api, "PREFECT__FLOW_RUN_ID": "ours"}
    with patch.dict(os.environ, names | ({"OMP_NUM_THREADS": set_before} if set_before else {})):
        if set_before is None:
            os.environ.pop("OMP_NUM_THREADS", None)
        run.main()
        assert os.environ["OMP_NUM_THREADS"] == n_threads
