"""vLLM's own loader reads an exported adapter: its checks accept it, and the tensors it holds add what PEFT's folder adds.

Only the loader runs, on a CPU; no engine of vLLM is started. vLLM is no dependency of the tests: docs/tutorial.md says how it was put here.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from clusterlora.serving.export import export
from tests.fixtures.registered import NAMES

pytestmark = pytest.mark.filterwarnings("ignore")


def test_vllm_reads_what_was_exported_for_it(artifacts: Path, tmp_path: Path) -> None:
    helpers = pytest.importorskip("vllm.lora.peft_helper", reason="vLLM is not installed", exc_type=ImportError)
    from vllm.config.lora import LoRAConfig  # pyright: ignore[reportMissingImports]
    from vllm.lora.lora_model import LoRAModel  # pyright: ignore[reportMissingImports]

    exported = export(artifacts, tmp_path / "vllm", "vllm")
    assert len(exported.adapters) == 2
    for name in exported.adapters:
        folder = tmp_path / "vllm" / "adapters" / name
        helper = helpers.PEFTHelper.from_local_dir(str(folder), max_position_embeddings=512)
        helper.validate_legal(LoRAConfig(max_lora_rank=exported.max_rank))
        loaded = LoRAModel.from_local_checkpoint(str(folder), set(NAMES), helper, lora_model_id=1, device="cpu", dtype=torch.float32)
        ours = load_file(folder / "adapter_model.safetensors")
        layers = {tensor.removesuffix(".lora_A.weight") for tensor in ours if tensor.endswith(".lora_A.weight")}
        assert len(loaded.loras) == len(layers) > 0
        for layer in layers:
            theirs = loaded.get_lora(layer.removeprefix("base_model.model."))
            a, b = ours[f"{layer}.lora_A.weight"], ours[f"{layer}.lora_B.weight"]
            expected = b @ a * (helper.lora_alpha / helper.r)
            assert torch.allclose(theirs.lora_b @ theirs.lora_a * theirs.scaling, expected, rtol=1e-5, atol=1e-6)
