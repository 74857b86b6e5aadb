"""Commands work without a reachable Prefect server, say so, and print no traceback."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from clusterlora import private_files
from clusterlora.planning.study_state import read_state
from clusterlora.ports.stores import Stores
from clusterlora.settings import ClusteringSettings, GateSettings, Study, prepared
from clusterlora.values import Attempt, Clustering, Criterion, Dataset, Dialogue, Persona, Turn, Verdict
from clusterlora.wiring import from_environment
from deployments import processes
from deployments.service_specs import Addresses, free_port
from deployments.services_state import ServicesState

STUDY = "waiting"


@dataclass(frozen=True)
class Machine:
    """A study that waits for a decision, on a stack whose Prefect server is dead while a worker of it lives."""

    stores: Stores
    environment: dict[str, str]
    prefect: str

    def run(self, *words: str) -> "subprocess.CompletedProcess[str]":
        program = "import sys; from clusterlora.cli import main; sys.exit(main(sys.argv[1:]))"
        return subprocess.run([sys.executable, "-c", program, *words], env=self.environment, capture_output=True, text=True, check=False)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    stores = from_environment({"CLUSTERLORA_HOME": str(tmp_path / "studies")})
    stores.studies.create_study(
        prepared(
            Study(name=STUDY, clustering=ClusteringSettings(k=2, sizes=(1, 1)), gate=GateSettings(ladder=(), on_failure="ask")), "float32"
        )
    )
    dialogue = Dialogue("d", (Turn("user", "hi"), Turn("assistant", "hello")), split="train")
    stores.studies.save_dataset(STUDY, Dataset((Persona("p", None, (dialogue,)), Persona("q", None, (dialogue,)))))
    stores.studies.save_clustering(STUDY, Clustering("responses", (("p",), ("q",))))
    refused = Criterion("above_unified", -0.1, 0.0, False, None, None, "")
    stores.studies.save_verdict(STUDY, Verdict("own", "cluster-00", (refused,), 1, 1))
    stores.studies.open_attempt(STUDY, Attempt("unified", 1, 2, "running"))
    home, port = tmp_path / "stack", free_port()
    private_files.make_folder(home)
    worker = processes.start(["sleep", "600"], env=os.environ, folder=tmp_path, log_file=home / "worker.log")
    ServicesState(Addresses(port, free_port()), {"worker-gpu-1": worker}).save(home)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("CLUSTERLORA_", "PREFECT_", "MLFLOW_"))}
    environment |= {"CLUSTERLORA_HOME": str(tmp_path / "studies"), "CLUSTERLORA_STACK_HOME": str(home), "MLFLOW_TRACKING_URI": ""}
    yield Machine(stores, environment, f"http://127.0.0.1:{port}")
    processes.stop([worker])


def test_a_decision_is_recorded_and_the_command_says_when_it_takes_effect(machine: Machine) -> None:
    done = machine.run("study", "decide", STUDY, "--go-on", "--by", "ann")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"stored; it takes effect with: clusterlora study run --name {STUDY}\n"
    assert f"Prefect at {machine.prefect}/api does not answer" in done.stderr
    assert "Traceback" not in done.stderr
    assert [(one.choice, one.by) for one in read_state(STUDY, machine.stores).decisions] == [("continue", "ann")]


def test_verify_checks_everything_that_needs_no_server_and_names_what_it_skipped(machine: Machine) -> None:
    half = machine.stores.folder(STUDY) / "results" / ".summary.md.7.partial"
    half.parent.mkdir(parents=True)
    half.touch()
    done = machine.run("study", "verify", "--repair")
    assert done.returncode == 1, done.stderr
    assert done.stdout.splitlines() == [
        f"found     {STUDY}: attempt 1 at unified is open, and no Prefect server can be asked about its run; "
        "start it: clusterlora up, or set PREFECT_API_URL",
        "1 studies, 1 findings, 1 left",
    ]
    assert f"Prefect at {machine.prefect}/api does not answer" in done.stderr
    assert "Traceback" not in done.stderr
    assert half.exists(), "it may belong to the open attempt"
