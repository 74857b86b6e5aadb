"""A whole study on servers that ask for passwords: it finishes, nobody else is let in, and no file but two ever holds a password."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.fast.test_containers import MLFLOW_ENDPOINTS, PREFECT_ENDPOINTS, status_of

pytestmark = [pytest.mark.timeout(900)]

STUDY = """
name = "locked"
methods = ["baseline", "unified", "cluster"]
data = {train = 1, val = 1, test = 1, synthetic = {cluster_sizes = [2, 2], dialogues = 3}}
recipe.epochs = 1
clustering = {k = 2, sizes = [2, 2], min_size = 1}
gate = {ladder = [], on_failure = "continue"}
evaluation = {max_new_tokens = 4, bootstrap_draws = 100}
runtime.shards = 1
"""
MAY_KNOW = ("passwords.json", "auth.ini")


@dataclass
class Locked:
    """A stack with passwords on which a study ran: its home, its addresses, and all that commands printed."""

    home: Path
    prefect: str
    mlflow: str
    study: dict[str, Any]
    printed: str

    def passwords(self) -> dict[str, str]:
        return json.loads((self.home / "stack" / "passwords.json").read_text())


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Locked]:
    """Return a finished study, run by two commands; the servers are still up."""
    pytest.importorskip("flask_wtf", reason="MLflow's passwords need flask-wtf; make install")
    home = tmp_path_factory.mktemp("locked")
    # Tests of flows, in the same process before, named their own servers.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_", "CLUSTERLORA_"))}
    environment |= {"CLUSTERLORA_HOME": str(home / "studies"), "CLUSTERLORA_STACK_HOME": str(home / "stack")}
    printed: list[str] = []

    def said(*words: str) -> Any:
        command = [str(Path(sys.executable).with_name("clusterlora")), *words, "--json"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        printed.extend((done.stdout, done.stderr))
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout)

    (home / "study.toml").write_text(STUDY)
    try:
        stack = said("up", "--auth", "--workers", "1")
        study = said("study", "run", "--config", str(home / "study.toml"))
        yield Locked(home, stack["prefect"], stack["mlflow"], study, "".join(printed))
    finally:
        said("down")


def test_the_study_finishes_and_its_adapters_are_registered(locked: Locked) -> None:
    assert locked.study["status"] == "finished"
    assert locked.study["adapters"] == 3
    assert locked.study["champion"]


def test_nobody_is_let_in_without_the_password(locked: Locked) -> None:
    known = locked.passwords()
    doors = [(f"{locked.prefect}/api/{path}", known["prefect"], b"{}") for path in PREFECT_ENDPOINTS]
    doors += [(f"{locked.mlflow}/{path}", known["mlflow"], None) for path in MLFLOW_ENDPOINTS]
    for url, password, body in doors:
        for who in ((None, ""), ("clusterlora", "wrong"), ("nobody", password)):
            assert status_of(url, *who, body=body) == 401, (url, who)
        assert status_of(url, "clusterlora", password, body=body) == 200, url


def test_no_log_table_or_artifact_holds_a_password(locked: Locked) -> None:
    """Of everything that servers, workers, runs and commands wrote: logs, Prefect's and MLflow's databases, results."""
    files = [file for file in locked.home.rglob("*") if file.is_file()]
    assert {"prefect-server.log", "worker-gpu-0.log", "summary.md", "prefect.db"} <= {file.name for file in files}
    for secret in locked.passwords().values():
        assert secret not in locked.printed
        assert {file.name for file in files if secret.encode() in file.read_bytes()} <= set(MAY_KNOW)
        assert secret.encode() in (locked.home / "stack" / "passwords.json").read_bytes()
