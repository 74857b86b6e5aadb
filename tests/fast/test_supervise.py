"""Which pids count as running flow runs."""

import os
import sys
from pathlib import Path

import pytest

from deployments import processes
from deployments.supervise import is_flow_process


@pytest.mark.parametrize("argument", ["prefect.flow_engine", "deployments.run"])
def test_a_process_that_runs_a_flow_or_is_about_to_counts_as_one_until_it_ends(argument: str, tmp_path: Path) -> None:
    argv = (sys.executable, "-c", "import time; time.sleep(3600)", argument)
    process = processes.start(argv, env=os.environ, folder=tmp_path, log_file=tmp_path / "x.log")
    assert is_flow_process(process.pid)
    processes.stop([process])
    assert not is_flow_process(process.pid)


def test_a_recycled_pid_of_another_program_does_not_count(tmp_path: Path) -> None:
    process = processes.start(("sleep", "3600"), env=os.environ, folder=tmp_path, log_file=tmp_path / "x.log")
    assert not is_flow_process(process.pid)
    processes.stop([process])
