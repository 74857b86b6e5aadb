"""A life of the local stack, with passwords: it starts, runs a study, restarts what dies, and ends; only two files hold a password."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from deployments import processes, stack
from tests.fixtures.doors import MLFLOW_ENDPOINTS, PREFECT_ENDPOINTS, status_of
from tests.fixtures.session import FOLDER, shared_folder

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


@pytest.fixture(scope="session")
def home() -> Path:
    """Return a folder with everything that a stack and a study on it have written: the stack has lived from `up` to `down`."""
    pytest.importorskip("flask_wtf", reason="MLflow's passwords need flask-wtf; make install")
    return shared_folder("locked", _live)


@pytest.fixture(scope="session")
def life(home: Path) -> dict[str, Any]:
    """Return what came of each step."""
    return json.loads((home / "life.json").read_text(encoding="utf-8"))


def _live(home: Path) -> None:
    folder, life, printed = home / "stack", dict[str, Any](), list[str]()
    ours = {"CLUSTERLORA_HOME": str(home / "studies"), "CLUSTERLORA_STACK_HOME": str(folder)}

    def said(*words: str) -> Any:
        command = [str(Path(sys.executable).with_name("clusterlora")), *words, "--json"]
        done = subprocess.run(command, env=os.environ, capture_output=True, text=True, check=False)
        printed.extend((done.stdout, done.stderr))
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout)

    folder.mkdir()
    (home / "study.toml").write_text(STUDY)
    with pytest.MonkeyPatch.context() as patch, socket.socket() as taken:
        # Tests of flows, in the same process before, named their own servers.
        for name in [name for name in os.environ if name.startswith(("PREFECT_", "MLFLOW_", "CLUSTERLORA_")) and name != FOLDER]:
            patch.delenv(name)
        for name, value in ours.items():
            patch.setenv(name, value)
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        life["taken"] = taken.getsockname()[1]
        (folder / "stack.json").write_text(json.dumps({"ports": {"prefect_port": life["taken"], "mlflow_port": life["taken"]}}))
        try:
            life["up"] = said("up", "--auth", "--workers", "1")
            life["study"] = said("study", "run", "--config", str(home / "study.toml"), "--workers", "1")
            life["answers"] = _answers(life["up"], json.loads((folder / "passwords.json").read_text()))
            life |= _restart(folder)
        finally:
            life["down"] = said("down")
    life["printed"] = "".join(printed)
    living = stack.status(folder)
    life["left"] = [*(living.running if living else ()), *stack.died(folder)]
    (home / "life.json").write_text(json.dumps(life), encoding="utf-8")


def _answers(addresses: dict[str, str], passwords: dict[str, str]) -> list[tuple[str, str, int]]:
    """Return what both servers answer to whom: address, who, status."""
    doors = [(f"{addresses['prefect']}/api/{path}", passwords["prefect"], b"{}") for path in PREFECT_ENDPOINTS]
    doors += [(f"{addresses['mlflow']}/{path}", passwords["mlflow"], None) for path in MLFLOW_ENDPOINTS]
    found: list[tuple[str, str, int]] = []
    for url, password, body in doors:
        strangers = {"nobody": (None, ""), "wrong password": ("clusterlora", "wrong"), "wrong name": ("stranger", password)}
        for who, (user, word) in {**strangers, "owner": ("clusterlora", password)}.items():
            found.append((url, who, status_of(url, user, word, body=body)))
    return found


def _restart(folder: Path) -> dict[str, Any]:
    """Kill one worker, start the stack again, kill another; return what the books say of it."""
    before = stack.status(folder)
    assert before is not None
    processes.stop([before.running["worker-gpu-0"]], patience_seconds=0)
    again = stack.up(folder, workers=1, log=lambda _: None)
    kept = [name for name in before.running if again.running[name] == before.running[name]]
    processes.stop([again.running["worker-cpu"]], patience_seconds=0)
    return {"again": again.started, "kept": kept, "moved": again.addresses != before.addresses, "died": stack.died(folder)}


def test_it_starts_everything_and_avoids_taken_ports(life: dict[str, Any]) -> None:
    assert set(life["up"]["started"]) == {"prefect-server", "mlflow-server", "warm", "worker-cpu", "worker-gpu-0"}
    assert not {str(life["taken"])} & {life["up"][server].rpartition(":")[2] for server in ("prefect", "mlflow")}


def test_the_study_finishes_and_its_adapters_are_registered(life: dict[str, Any]) -> None:
    assert life["study"]["status"] == "finished"
    assert life["study"]["adapters"] == 3
    assert life["study"]["champion"]


def test_nobody_is_let_in_without_the_password(life: dict[str, Any]) -> None:
    assert len(life["answers"]) == 4 * (len(PREFECT_ENDPOINTS) + len(MLFLOW_ENDPOINTS))
    for url, who, status in life["answers"]:
        assert status == (200 if who == "owner" else 401), (url, who)


def test_no_log_table_or_artifact_holds_a_password(home: Path, life: dict[str, Any]) -> None:
    """Of everything that servers, workers, runs and commands wrote: logs, Prefect's and MLflow's databases, results."""
    files = [file for file in home.rglob("*") if file.is_file()]
    assert {"prefect-server.log", "worker-gpu-0.log", "summary.md", "prefect.db"} <= {file.name for file in files}
    passwords = home / "stack" / "passwords.json"
    for secret in json.loads(passwords.read_text()).values():
        assert secret not in life["printed"]
        assert {file.name for file in files if secret.encode() in file.read_bytes()} <= set(MAY_KNOW)
        assert secret.encode() in passwords.read_bytes()


def test_what_died_is_started_again_and_what_lives_is_kept(life: dict[str, Any]) -> None:
    assert life["again"] == ["worker-gpu-0"]
    assert set(life["kept"]) == {"prefect-server", "mlflow-server", "warm", "worker-cpu"}
    assert not life["moved"]


def test_what_died_is_noticed_and_everything_else_ends_with_down(life: dict[str, Any]) -> None:
    assert life["died"] == ["worker-cpu"]
    assert set(life["down"]) == {"prefect-server", "mlflow-server", "warm", "worker-gpu-0"}
    assert life["left"] == []
