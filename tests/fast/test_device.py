"""The lock on a device is real: other processes wait for it, and it dies with its holder."""

import fcntl
import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
from prefect.logging import disable_run_logger

from clusterlora.cli import main
from clusterlora.engine.base import frozen_base
from clusterlora.errors import BadSettings
from clusterlora.models.model_cache import base_model, embedder
from clusterlora.settings import ModelSettings, PreparedModel
from tasks import device
from tasks.device import exclusive, visible_gpu
from tasks.study_task import TaskContext, study_task

# The package has a command of the same name.
doctor = import_module("clusterlora.cli.doctor")

HOLD = """
import fcntl, sys
with open(sys.argv[1], "a+") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(locks: Path) -> "subprocess.Popen[str]":
    """Return another process that holds GPU-0's lock until its input ends, without the weight of importing Prefect."""
    command = [sys.executable, "-c", HOLD, str(locks / "GPU-0.lock")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_run_waits_until_the_first_has_left_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waited_while_held: list[bool] = []
    with holder(tmp_path) as first, disable_run_logger():

        def let_go(_seconds: float) -> None:
            assert first.stdin is not None
            waited_while_held.append(first.poll() is None)
            first.stdin.close()

        # Whoever waits sleeps between two tries.
        monkeypatch.setattr(device, "time", SimpleNamespace(sleep=let_go))
        with exclusive("GPU-0", tmp_path):
            assert waited_while_held[0]
            assert first.wait() == 0


def test_a_killed_run_frees_the_device_at_once(tmp_path: Path) -> None:
    with holder(tmp_path) as first:
        first.kill()
        first.wait()
        with exclusive("GPU-0", tmp_path):
            assert int((tmp_path / "GPU-0.lock").read_text()) > 0


def test_a_run_does_not_wait_for_another_device(tmp_path: Path):
    with holder(tmp_path) as first, exclusive("GPU-1", tmp_path):
        assert first.poll() is None


def test_no_other_run_gets_the_device_while_a_run_holds_it(tmp_path: Path):
    with (
        exclusive("GPU-0", tmp_path),
        (tmp_path / "GPU-0.lock").open("a+") as other,
        pytest.raises(BlockingIOError),
    ):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_on_a_cpu_nothing_is_locked(tmp_path: Path):
    with exclusive(None, tmp_path / "locks"):
        assert not (tmp_path / "locks").exists()


def seen_by_pytorch(monkeypatch: pytest.MonkeyPatch, *, gpu: bool) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _index: SimpleNamespace(uuid="5ebc"))


@pytest.mark.parametrize("given", ["3", "0,1", "GPU-5ebc", "MIG-5ebc"])
def test_a_worker_that_was_given_a_gpu_refuses_to_work_without_it(given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLUSTERLORA_HOME", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    worked: list[str] = []

    @study_task("work", on_gpu=True)
    def work(_context: TaskContext) -> None:
        worked.append("on a GPU" if visible_gpu() else "on a CPU")

    seen_by_pytorch(monkeypatch, gpu=False)
    with pytest.raises(BadSettings) as refusal:
        work.fn()
    (line,) = str(refusal.value).splitlines()
    assert line.startswith(f"CUDA_VISIBLE_DEVICES = '{given}' gives this process a GPU, and PyTorch sees none")
    assert line.endswith("start the command, or after `clusterlora down` its workers, with CUDA_VISIBLE_DEVICES= (nothing)")
    assert worked == []
    seen_by_pytorch(monkeypatch, gpu=True)
    work.fn()
    assert worked == ["on a GPU"]


def test_the_doctor_says_that_a_gpu_that_was_given_is_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    monkeypatch.setattr(doctor.shutil, "which", lambda _: None)
    seen_by_pytorch(monkeypatch, gpu=False)
    check = doctor._gpu()
    assert (check.good, check.fix) == (False, "set it to nothing (CUDA_VISIBLE_DEVICES=) for the CPU")
    assert check.found == "CUDA_VISIBLE_DEVICES = '3' gives this process a GPU, and PyTorch sees none"
    monkeypatch.setattr(doctor.shutil, "which", lambda _: "/usr/bin/nvidia-smi")
    for hidden in ("", "-1", "NoDevFiles"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        check = doctor._gpu()
        assert (check.good, check.found) == (True, f"hidden by CUDA_VISIBLE_DEVICES={hidden}; training uses the CPU")


@pytest.mark.parametrize("name", ["a" * 300, "taken/below"], ids=["too long", "below a file"])
def test_the_doctor_checks_all_else_where_the_results_folder_cannot_be_made(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").touch()
    monkeypatch.setenv("CLUSTERLORA_HOME", str(tmp_path / name))
    monkeypatch.setenv("CLUSTERLORA_STACK_HOME", str(tmp_path / "stack"))
    assert main(["doctor", "--json"]) == 1
    found = {check["what"]: check for check in json.loads(capsys.readouterr().out)}
    assert {"python", "memory", "results", "model cache", "servers", "GPU", "homelm"} <= found.keys()
    assert not found["database"]["good"]


def test_the_doctor_checks_all_else_where_a_base_cannot_be_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CLUSTERLORA_HOME", str(tmp_path / "studies"))
    monkeypatch.setenv("CLUSTERLORA_STACK_HOME", str(tmp_path / "stack"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    monkeypatch.setattr(doctor.shutil, "which", lambda _: None)
    seen_by_pytorch(monkeypatch, gpu=False)
    assert main(["doctor", "--base-model", "homelm", "--json"]) == 1
    found = {check["what"]: check for check in json.loads(capsys.readouterr().out)}
    assert {"python", "database", "servers", "homelm"} <= found.keys()
    assert [name for name in ("GPU", "base model") if found[name]["good"]] == []
    assert found["base model"]["found"].startswith("not measured: CUDA_VISIBLE_DEVICES = '3' gives this process a GPU")
    assert "clusterlora doctor" not in json.dumps(found["base model"])


WITHOUT = """
import sys
from importlib.machinery import PathFinder

class Others(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] == sys.argv[1] else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Others
from clusterlora.cli import main
sys.exit(main(["doctor", "--base-model", "homelm", "--json"]))
"""


@pytest.mark.whole
@pytest.mark.parametrize("devices", ["", "0"])
def test_the_doctor_says_that_pytorch_is_missing_and_checks_all_else(tmp_path: Path, devices: str) -> None:
    homes = {"CLUSTERLORA_HOME": str(tmp_path / "studies"), "CLUSTERLORA_STACK_HOME": str(tmp_path / "stack")}
    environment = {**os.environ, **homes, "CUDA_VISIBLE_DEVICES": devices, "PATH": str(tmp_path)}
    completed = subprocess.run([sys.executable, "-c", WITHOUT, "torch"], env=environment, capture_output=True, text=True, check=False)
    assert completed.returncode == 1, completed.stderr
    found = {check["what"]: check for check in json.loads(completed.stdout)}
    assert {"python", "database", "servers", "homelm"} <= found.keys()
    assert (found["packages"]["found"], found["packages"]["fix"]) == ("missing: torch", "run: make install")
    assert found["GPU"]["good"] == (devices == "")
    assert (found["base model"]["good"], found["base model"]["fix"]) == (False, "run: make install")


@pytest.mark.whole
def test_the_doctor_says_that_mlflow_is_missing_and_checks_all_else(tmp_path: Path) -> None:
    homes = {"CLUSTERLORA_HOME": str(tmp_path / "studies"), "CLUSTERLORA_STACK_HOME": str(tmp_path / "stack")}
    environment = {**os.environ, **homes, "MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
    completed = subprocess.run([sys.executable, "-c", WITHOUT, "mlflow"], env=environment, capture_output=True, text=True, check=False)
    assert completed.returncode == 1, completed.stderr
    found = {check["what"]: check for check in json.loads(completed.stdout)}
    assert {"python", "results", "servers", "GPU", "homelm"} <= found.keys()
    assert (found["packages"]["found"], found["database"]["fix"]) == ("missing: mlflow", "run: make install")


def test_a_command_of_its_own_refuses_to_load_a_base_without_the_gpu_that_it_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    seen_by_pytorch(monkeypatch, gpu=False)
    for load in (
        lambda: base_model(PreparedModel(base="homelm")),
        lambda: embedder(ModelSettings()),
        lambda: frozen_base("homelm", None).__enter__(),
    ):
        with pytest.raises(BadSettings, match="PyTorch sees none"):
            load()


@pytest.mark.parametrize("given", [None, "", "-1", "-1,0"])
def test_a_worker_that_was_given_no_gpu_works_on_the_cpu(given: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if given is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    seen_by_pytorch(monkeypatch, gpu=False)
    assert visible_gpu() is None
