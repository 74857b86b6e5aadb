"""What `doctor --base-model` says of memory before a base is loaded is what training on it then takes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from clusterlora.cli import main
from clusterlora.engine import memory
from clusterlora.models.base import base_to_measure, load_base
from clusterlora.models.footprint import weight_bytes

MEASURED = """
import json, re, sys, torch
from pathlib import Path
from clusterlora.engine import memory_estimate, training_loop
from clusterlora.engine.job import TrainingJob
from clusterlora.engine.worker_threads import n_worker_threads
from clusterlora.models.base import base_to_measure, load_base
from clusterlora.models.targets import block_weights, resolved
from clusterlora.chat.encoder import TokenSequence
from clusterlora.ports.run_log import SilentLog
from clusterlora.recipe import Recipe
import peft

folder, scratch, length = sys.argv[1], Path(sys.argv[2]), 256
resident = lambda kind: int(re.search(kind + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
meta = base_to_measure(folder)
recipe = resolved(Recipe(rank=8, epochs=1, batch_size=4), block_weights(meta.model))
arguments = {"itemsize": 4, "quantisation": "none", "micro_batch": 4, "max_length": length, "device_type": "cpu", "free": 1 << 40}
estimate = memory_estimate.estimate_memory(meta, recipe, n_workers=n_worker_threads(torch.device("cpu")), **arguments)
before = resident("VmRSS")
row = TokenSequence(tuple(3 + i % 250 for i in range(length)), tuple(i > length // 2 for i in range(length)))
jobs = [TrainingJob(str(n), str(n), recipe, (row,) * 4, scratch / str(n)) for n in range(4)]
list(training_loop.train(load_base(folder), jobs, micro_batch=4, run_log=SilentLog()))
print(json.dumps([estimate.base + 4 * estimate.adapter + estimate.one_pass, resident("VmHWM") - before]))
"""


@pytest.fixture(scope="module")
def folder(tiny_base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a base of 70 MB."""
    target = tmp_path_factory.mktemp("base")
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_base_folder)
    config = LlamaConfig(
        vocab_size=2000,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=20,
        num_attention_heads=8,
        num_key_value_heads=4,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(target)
    tokenizer.save_pretrained(target)
    return target


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs /proc: Linux")
def test_training_takes_the_estimated_memory_within_a_factor_of_one_and_a_half(folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", MEASURED, str(folder), str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    estimated, measured = json.loads(ran.stdout.splitlines()[-1])
    assert estimated / 1.5 < measured < estimated * 1.5, f"{measured / estimated:.2f} times the estimate"


def test_the_weights_of_a_base_are_counted_without_loading_them(folder: Path) -> None:
    loaded = sum(parameter.nbytes for parameter in load_base(str(folder)).model.parameters())
    assert weight_bytes(base_to_measure(str(folder)).model, 4) == loaded


def doctor(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, str]:
    main(["doctor", "--json", *arguments])
    return next(check for check in json.loads(capsys.readouterr().out) if check["what"] == "base model")


def test_the_doctor_says_whether_a_base_fits_as_it_is_in_4_bit_or_not_at_all(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    free = {"bytes": 1 << 40}
    monkeypatch.setattr(memory, "free_memory_bytes", lambda _device: free["bytes"])
    asked = ("--base-model", str(folder), "--set", "model.max_length=96", "--set", "recipe.batch_size=64", "--set", "runtime.micro_batch=1")
    fitting = doctor(capsys, *asked, "--set", "model.dtype=float32")
    assert fitting["good"]
    assert "in float32: fits into the" in fitting["found"]
    free["bytes"] = 110_000_000
    tight = doctor(capsys, *asked, "--set", "model.dtype=float32")
    assert not tight["good"]
    assert (": fits in 8 bit into the 0.11 GB free" in tight["found"], tight["fix"]) == (True, "--set model.quantisation=int8")
    free["bytes"] = 1_000_000
    too_small = doctor(capsys, *asked)
    assert "does not fit into the 0.00 GB free on cpu" in too_small["found"]
    assert too_small["fix"] == "lower model.max_length=96, or use a smaller base"
    larger_rank = doctor(capsys, *asked, "--set", "recipe.rank=64")
    assert "an adapter of rank 64 " in larger_rank["found"]
    assert torch.get_default_dtype() == torch.float32


def test_the_doctor_sums_the_gpus_that_a_base_may_be_spread_over(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "free_memory_by_device", lambda: [145_000_000, 155_000_000])
    asked = ("--base-model", str(folder), "--set", "model.max_length=96", "--set", "recipe.batch_size=64", "--set", "runtime.micro_batch=1")
    on_one = doctor(capsys, *asked, "--set", "model.dtype=float32")
    assert not on_one["good"]
    way = "2 GPUs together and one worker that sees the 2 GPUs (clusterlora down; clusterlora up --workers 1)"
    assert f"--set model.device_map=auto for the {way}" in on_one["fix"]
    together = doctor(capsys, *asked, "--set", "model.dtype=float32", "--set", "model.device_map=auto")
    assert together["good"]
    assert ": fits into the 0.30 GB free on 2 GPUs together" in together["found"]
    # Each of many small cards has room for its share of the base, none for a pass.
    monkeypatch.setattr(memory, "free_memory_by_device", lambda: [20_000_000] * 40)
    assert not doctor(capsys, *asked, "--set", "model.dtype=float32", "--set", "model.device_map=auto")["good"]


def test_settings_without_a_base_to_measure_are_a_misuse(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--set", "recipe.rank=4"]) == 2
    assert "name it with --config or --base-model" in capsys.readouterr().err
