"""A truncated checkpoint is ignored, and the previous one is kept until the next is complete."""

import logging
import os
import signal
from pathlib import Path

import pytest
import torch

from clusterlora.chat.encoder import TokenSequence
from clusterlora.engine import checkpoint
from clusterlora.engine.checkpoint import Checkpoint
from clusterlora.engine.job import TrainingJob
from clusterlora.recipe import Recipe


@pytest.fixture
def job(tmp_path: Path) -> TrainingJob:
    sequences = (TokenSequence((1, 2, 3), (False, True, True)),)
    return TrainingJob("0123456789abcdef", "unified", Recipe(rank=1, epochs=2), sequences, tmp_path / "scratch")


def checkpoint_of(loss: float) -> Checkpoint:
    return Checkpoint({"l.lora_A.weight": torch.full((1, 2), loss)}, {}, {}, (loss,), (loss,))


def file_of(job: TrainingJob) -> Path:
    (file,) = job.scratch.iterdir()
    return file


def test_a_checkpoint_cut_at_any_length_counts_as_none_and_the_log_says_so(job: TrainingJob, caplog: pytest.LogCaptureFixture) -> None:
    checkpoint.write(job, checkpoint_of(0.5))
    file = file_of(job)
    whole = file.read_bytes()
    for length in range(len(whole)):
        caplog.clear()
        file.write_bytes(whole[:length])
        assert checkpoint.read(job) is None, f"{length} of {len(whole)} bytes"
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        assert f"{file} of unified is damaged" in record.getMessage()
    file.write_bytes(whole)
    read = checkpoint.read(job)
    assert read is not None
    assert (read.losses, read.val_losses) == ((0.5,), (0.5,))


NO_CHECKPOINTS = {"zeros": b"\0" * 64, "nothing": b"", "json": b"{}", "text": (8).to_bytes(8, "little") + b"not json"}


@pytest.mark.parametrize("damage", NO_CHECKPOINTS.values(), ids=NO_CHECKPOINTS)
def test_a_file_that_is_no_checkpoint_counts_as_none(job: TrainingJob, damage: bytes) -> None:
    checkpoint.write(job, checkpoint_of(0.5))
    file_of(job).write_bytes(damage)
    assert checkpoint.read(job) is None


def test_a_damaged_checkpoint_gives_way_to_the_next(job: TrainingJob) -> None:
    checkpoint.write(job, checkpoint_of(0.5))
    file_of(job).write_bytes(b"")
    checkpoint.write(job, checkpoint_of(0.25))
    read = checkpoint.read(job)
    assert read is not None
    assert read.losses == (0.25,)


@pytest.mark.whole
def test_a_process_killed_while_writing_leaves_a_whole_checkpoint(job: TrainingJob) -> None:
    checkpoint.write(job, checkpoint_of(1.0))
    for _ in range(5):
        ready, write_end = os.pipe()
        child = os.fork()
        if child == 0:
            for number in range(1_000_000):
                checkpoint.write(job, checkpoint_of(float(number)))
                os.write(write_end, b"x")
        os.close(write_end)
        # Killed in the middle of some later writing.
        os.read(ready, 3)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(ready)
        assert checkpoint.read(job) is not None
