"""Adapters on disk: what is written in one stream is what safetensors writes."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save

from clusterlora.engine.peft_folder import read_peft_tensors, write_peft_folder
from clusterlora.recipe import Recipe


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_file_of_tensors_is_safetensors_own_byte_for_byte(tmp_path: Path, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = {"b.lora_A.weight": (2, 5), "b.lora_B.weight": (7, 2), "a.lora_A.weight": (2, 7), "a.lora_B.weight": (3, 2)}
    for number in range(2):  # the second has a layout that is known
        tensors = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}
        tensors["a.lora_B.weight"] = torch.randn(2, 3, generator=generator).to(dtype).T  # no tensor of its own memory
        folder = tmp_path / str(number)
        write_peft_folder(folder, tensors, Recipe(rank=2), base="base")
        file = folder / "adapter_model.safetensors"
        prefixed = {f"base_model.model.{name}": tensor.contiguous() for name, tensor in tensors.items()}
        assert file.read_bytes() == save(prefixed, metadata={"format": "pt"})
        with safe_open(file, framework="pt") as opened:
            assert opened.metadata() == {"format": "pt"}
        assert all(torch.equal(load_file(file)[name], tensor) for name, tensor in prefixed.items())
        assert all(torch.equal(tensor, tensors[name]) for name, tensor in read_peft_tensors(folder).items())
