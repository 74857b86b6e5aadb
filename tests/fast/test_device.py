"""The lock on a device is real: other processes wait for it, and it dies with its holder."""

import fcntl
import subprocess
import sys
import time
from pathlib import Path

import pytest
from prefect.logging import disable_run_logger

from tasks import device
from tasks.device import exclusive

HOLD = """
import fcntl, sys, time
with open(sys.argv[1], "a+") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def holder(locks: Path, seconds: float) -> "subprocess.Popen[str]":
    """Return another process that holds GPU-0's lock, without the weight of importing Prefect."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(locks / "GPU-0.lock"), str(seconds)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_run_waits_until_the_first_has_left_the_device(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(device, "ASK_AGAIN_SECONDS", 0.05)
    with holder(tmp_path, 1.0) as first, disable_run_logger():
        started = time.monotonic()
        with exclusive("GPU-0", tmp_path):
            waited = time.monotonic() - started
            assert first.wait(5) == 0
    assert waited > 0.5


def test_a_killed_run_frees_the_device_at_once(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(device, "ASK_AGAIN_SECONDS", 0.05)
    with holder(tmp_path, 600) as first:
        first.kill()
        first.wait()
        with disable_run_logger(), exclusive("GPU-0", tmp_path):
            assert int((tmp_path / "GPU-0.lock").read_text()) > 0


def test_another_device_is_not_waited_for(tmp_path: Path):
    with holder(tmp_path, 600) as first:
        with exclusive("GPU-1", tmp_path):
            assert first.poll() is None
        first.kill()


def test_nobody_else_gets_the_device_while_a_run_holds_it(tmp_path: Path):
    with (
        exclusive("GPU-0", tmp_path),
        (tmp_path / "GPU-0.lock").open("a+") as other,
        pytest.raises(BlockingIOError),
    ):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_on_a_cpu_nothing_is_locked(tmp_path: Path):
    with exclusive(None, tmp_path / "locks"):
        assert not (tmp_path / "locks").exists()
