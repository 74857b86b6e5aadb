"""A command does what takes memory in a process that ends."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from clusterlora.cli import cli, main
from clusterlora.cli.child import in_child
from clusterlora.errors import BadData, TrainingDiverged


@pytest.fixture(autouse=True)
def _without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)


def test_the_result_comes_from_another_process() -> None:
    assert in_child(os.getpid, doing="trying") != os.getpid()


def test_with_torch_in_this_process_the_work_is_done_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", sys)
    assert in_child(os.getpid, doing="trying") == os.getpid()


def test_an_error_is_raised_with_its_message_and_kind() -> None:
    def refuse() -> None:
        raise BadData("people.jsonl:3: no prompt\npeople.jsonl:4: no prompt")

    with pytest.raises(BadData, match=r"people\.jsonl:3: no prompt\npeople\.jsonl:4"):
        in_child(refuse, doing="trying")


def test_an_error_that_cannot_be_sent_is_told_in_words() -> None:
    class Local(Exception):
        pass

    def fail() -> None:
        raise Local("out of paper")

    with pytest.raises(RuntimeError, match="Local: out of paper"):
        in_child(fail, doing="trying")


def test_an_error_with_fields_keeps_them() -> None:
    def diverge() -> None:
        raise TrainingDiverged("the loss is no number", adapters=("unified",))

    with pytest.raises(TrainingDiverged) as raised:
        in_child(diverge, doing="trying")
    assert raised.value.adapters == ("unified",)


def test_a_killed_child_is_told() -> None:
    with pytest.raises(MemoryError, match="the process that was trying was killed"):
        in_child(lambda: os.kill(os.getpid(), 9), doing="trying")


def test_a_child_that_crashed_is_not_told_to_lack_memory() -> None:
    with pytest.raises(RuntimeError, match="the process that was trying ended by SIGTERM"):
        in_child(lambda: os.kill(os.getpid(), signal.SIGTERM), doing="trying")


def test_what_follows_a_study_imports_no_torch() -> None:
    """The command waits as long as the study takes; PyTorch and transformers are 700 MB."""
    code = "import sys, deployments.launch, clusterlora.cli.study; print({'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_what_waits_to_be_written_is_written_once() -> None:
    code = "from clusterlora.cli.child import in_child; print('one'); in_child(int, doing='trying'); print('two')"
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=buffered)
    assert done.stdout == "one\ntwo\n"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="whether a process waits is read from Linux's /proc")
def test_whoever_is_interrupted_goes_on_in_one_process() -> None:
    code = """
import os, pathlib, signal, time
from clusterlora.cli.child import in_child
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever starts the tests may ignore it
def work():
    # Until the fork is over, Python drops what a signal raises.
    while pathlib.Path(f"/proc/{os.getppid()}/stat").read_text().rpartition(")")[2].split()[0] != "S":
        time.sleep(0.01)
    os.kill(os.getppid(), signal.SIGINT)
    return "x" * 1_000_000
try:
    in_child(work, doing="trying")
except BaseException as error:
    print(type(error).__name__, flush=True)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("KeyboardInterrupt\n", "")


@pytest.mark.parametrize(("error", "told"), [(MemoryError(), "an allocation failed"), (MemoryError("5 GB"), "5 GB")])
def test_memory_that_ran_out_is_told_as_that(
    error: MemoryError, told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(**_: object) -> None:
        raise error

    monkeypatch.setattr(cli.commands["compare"], "callback", full)
    assert main(["compare"]) == 1
    assert capsys.readouterr().err.startswith(f"error: the memory of this machine ran out: {told}; end other programs")


@pytest.mark.parametrize("address", ["http://[::1", "http://", "https://host:port", "mlflow:5000", "http://host:0"])
def test_a_tracking_address_that_is_none_is_named(
    address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLUSTERLORA_HOME", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    assert main(["registry", "list"]) == 1
    assert f"error: MLflow tracking URI {address!r} is not a server's address;" in capsys.readouterr().err
