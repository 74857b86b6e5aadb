"""On a GPU: CUDA graphs equal eager passes, its memory runs out, trainings resume. Run with `pytest -m gpu`."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from clusterlora.chat.encoder import PromptEncoder
from clusterlora.engine import backends, checkpoint, cuda_graphs, reference, training_loop, training_slots
from clusterlora.engine.base import BaseModel
from clusterlora.engine.generation import Question
from clusterlora.engine.inference_backends import inference_backend
from clusterlora.engine.job import TrainingJob, TrainingResult
from clusterlora.engine.kinds import read_weights
from clusterlora.errors import OutOfMemory
from clusterlora.models.base import load_base
from clusterlora.ports.run_log import SilentLog
from clusterlora.recipe import Recipe
from clusterlora.values import Turn

RECIPE = Recipe(rank=4, alpha=8, dropout=0.0, epochs=3, batch_size=2, learning_rate=5e-3)


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> list[cuda_graphs.CudaGraph]:
    """Every CUDA graph that is captured."""
    graphs: list[cuda_graphs.CudaGraph] = []
    original = cuda_graphs.CudaGraph.__init__

    def remember(self: cuda_graphs.CudaGraph, *arguments: Any) -> None:
        original(self, *arguments)
        graphs.append(self)

    monkeypatch.setattr(cuda_graphs.CudaGraph, "__init__", remember)
    return graphs


def jobs(base: BaseModel, folder: Path, n: int, *, words: int = 3, recipe: Recipe = RECIPE, n_dialogues: int = 5) -> list[TrainingJob]:
    encoder = PromptEncoder(base.tokenizer, max_length=512)
    jobs = []
    for number in range(n):
        dialogues = [
            (Turn("user", "light " * ((i + number) % words + 1)), Turn("assistant", f"Set to {i * number}.")) for i in range(n_dialogues)
        ]
        name = f"p{number}"
        jobs.append(TrainingJob(name, name, replace(recipe, seed=number), tuple(encoder.encode_dialogues(dialogues)), folder / name))
    return jobs


def train(base: BaseModel, jobs: list[TrainingJob], *, micro_batch: int = 2) -> list[TrainingResult]:
    results = training_loop.train(base, jobs, micro_batch=micro_batch, run_log=SilentLog())
    return sorted(results, key=lambda result: result.job.key)


def apart(one: TrainingResult, other: TrainingResult) -> float:
    a, b = (load_file(result.folder / "adapter_model.safetensors") for result in (one, other))
    moved = sum(float(b[name].double().pow(2).sum()) for name in b if "lora_B" in name)
    return (sum(float((a[name] - b[name]).double().pow(2).sum()) for name in a) / moved) ** 0.5


def test_trainings_with_cuda_graphs_equal_peft_alone_in_float64(
    base64: BaseModel, tmp_path: Path, captured: list[cuda_graphs.CudaGraph]
) -> None:
    base64.model.to("cuda")  # pyrefly: ignore[bad-argument-type]
    ours = train(base64, jobs(base64, tmp_path / "ours", 5))
    theirs = reference.train(base64, jobs(base64, tmp_path / "theirs", 5), micro_batch=2, run_log=SilentLog())
    assert bool(captured) == (backends.decoder_of(base64.model) is not None)
    for one, other in zip(ours, theirs, strict=True):
        assert one.losses == pytest.approx(other.losses, rel=1e-9)
        assert apart(one, other) < 1e-9


def test_a_stopped_training_resumes_with_the_same_result(tiny_base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = load_base(str(tiny_base_folder), device="cuda")
    whole = train(base, jobs(base, tmp_path / "whole", 2))
    monkeypatch.setattr(checkpoint, "CHECKPOINT_SECONDS", -1.0)
    monkeypatch.setattr(training_slots, "_WRITING_SHARE", 1e9)

    class Stopped(SilentLog):
        left = 9

        def advance(self, units: int = 1, **values: float) -> None:  # noqa: ARG002
            self.left -= units
            if not self.left:
                raise KeyboardInterrupt

    half = jobs(base, tmp_path / "half", 2)
    with pytest.raises(KeyboardInterrupt):
        list(training_loop.train(base, half, micro_batch=2, run_log=Stopped()))
    for one, other in zip(train(base, half), whole, strict=True):
        assert one.losses == pytest.approx(other.losses, rel=1e-4)


def test_a_batch_that_does_not_fit_is_trained_with_a_smaller_one(tmp_path: Path) -> None:
    base = load_base("homelm", device="cuda")
    wide = replace(RECIPE, batch_size=8, epochs=2, learning_rate=1e-4)

    def wide_jobs(name: str) -> list[TrainingJob]:
        return jobs(base, tmp_path / name, 96, words=300, recipe=wide, n_dialogues=8)

    def peak(micro_batch: int) -> tuple[int, list[TrainingResult]]:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        results = train(base, wide_jobs(f"measured-{micro_batch}"), micro_batch=micro_batch)
        return torch.cuda.max_memory_allocated(), results

    (most, plain), (least, _) = peak(8), peak(1)
    assert least < 0.3 * most
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.8 * most / torch.cuda.get_device_properties(0).total_memory)
    try:
        with pytest.raises(OutOfMemory, match=r"ran out of memory at micro-batch 8.*the next attempt uses micro-batch 4"):
            train(base, wide_jobs("tight"), micro_batch=8)
        torch.cuda.empty_cache()
        results = train(base, wide_jobs("tight"), micro_batch=1)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    for one, other in zip(results, plain, strict=True):
        assert one.losses == pytest.approx(other.losses, rel=1e-3)


def test_answers_with_cuda_graphs_equal_those_on_a_cpu(
    tiny_base_folder: Path, tmp_path: Path, captured: list[cuda_graphs.CudaGraph]
) -> None:
    on_gpu_base = load_base(str(tiny_base_folder), device="cuda")
    on_cpu_base = load_base(str(tiny_base_folder))
    folders = [result.folder for result in train(on_gpu_base, jobs(on_gpu_base, tmp_path, 3))]
    captured.clear()
    encoder = PromptEncoder(on_cpu_base.tokenizer, max_length=256)
    turns = encoder.encode_turns([((Turn("user", f"ask {'more ' * (n % 7)}{n}"),), f"yes {n}") for n in range(24)])
    questions = [Question(turn.prompt, n % 4, turn.response) for n, turn in enumerate(turns)]
    answers = []
    for base in (on_gpu_base, on_cpu_base):
        backend = inference_backend(base, [read_weights(folder) for folder in folders])
        answers.append(sorted(backend.reply(questions, max_new_tokens=40, batch_size=10), key=lambda reply: reply.number))
        backend.close()
    assert captured
    assert len({reply.ids for reply in answers[1]}) > 4
    for on_gpu, on_cpu in zip(*answers, strict=True):
        assert on_gpu.ids == on_cpu.ids
        assert on_gpu.nll == pytest.approx(on_cpu.nll, rel=1e-4)
