"""Adapters of GPT-2, whose layers store their weights transposed, load in PEFT and are what the engine computes with."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.utils import set_peft_model_state_dict
from safetensors.torch import load_file

from clusterlora.engine.base import BaseModel
from clusterlora.engine.job import TrainingResult
from clusterlora.engine.kinds import ADAPTER_KINDS
from clusterlora.engine.peft_folder import write_factors
from clusterlora.engine.stacked import read_adapter
from clusterlora.engine.training import train
from clusterlora.ports.run_log import SilentLog
from tests.fixtures.families import jobs, sequences

pytestmark = pytest.mark.numeric

IDS = torch.tensor([sequences(5)[0].ids])
SCALED = ("attn.c_proj", "attn.c_attn", "mlp.c_fc")
"""Layers whose outputs IA3 scales; of the MLP's last one, it scales the inputs."""


def trained(base: BaseModel, kind: str, folder: Path) -> TrainingResult:
    job = jobs("gpt2", folder)[0]
    recipe = replace(job.recipe, kind=kind, learning_rate=5e-2)
    (result,) = train(base, [replace(job, recipe=recipe)], micro_batch=2, run_log=SilentLog())
    return result


def in_peft(base: BaseModel, folder: Path) -> Any:
    """Return the base with an adapter as PEFT loads it, in float64 throughout."""
    model: Any = PeftModel.from_pretrained(base.model, str(folder), autocast_adapter_dtype=False).double().eval()
    # PEFT makes some adapters in float32, whatever the base is.
    set_peft_model_state_dict(model, load_file(folder / "adapter_model.safetensors"))
    return model


def by_hand(base: BaseModel, folder: Path, kind: str) -> Any:
    """Return the base with an adapter multiplied into its weights [d_in, d_out], as its kind is defined."""
    tensors = {name.removeprefix("base_model.model."): tensor for name, tensor in load_file(folder / "adapter_model.safetensors").items()}
    config = json.loads((folder / "adapter_config.json").read_text())
    layers: dict[str, Any] = dict(base.model.named_modules())
    for name, layer in layers.items():
        if f"{name}.ia3_l" in tensors:
            vector = tensors[f"{name}.ia3_l"].flatten()
            if name.endswith(SCALED):
                layer.weight.data.mul_(vector)
                layer.bias.data.mul_(vector)
            else:
                layer.weight.data.mul_(vector[:, None])
        if f"{name}.lora_A.weight" in tensors:
            rank = config["r"]
            scale = config["lora_alpha"] / (rank**0.5 if kind == "rslora" else rank)
            weight = layer.weight.data + scale * (tensors[f"{name}.lora_B.weight"] @ tensors[f"{name}.lora_A.weight"]).T
            if kind == "dora":
                weight *= tensors[f"{name}.lora_magnitude_vector"] / weight.norm(dim=0)
            layer.weight.data.copy_(weight)
    return base.model


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits


@pytest.mark.parametrize("kind", ["lora", "rslora", "dora", "ia3"])
def test_an_adapter_of_gpt2_is_the_same_in_peft_merged_and_by_hand(kind: str, base_of: Callable[[str], BaseModel], tmp_path: Path) -> None:
    folder = trained(base_of("gpt2"), kind, tmp_path).folder
    expected, bare = logits(by_hand(base_of("gpt2"), folder, kind)), logits(base_of("gpt2").model)
    size = float(expected.abs().max())
    assert float((expected - bare).abs().max()) > 1e-2 * size, "it has learned"
    model = in_peft(base_of("gpt2"), folder)
    assert float((logits(model) - expected).abs().max()) < 1e-9 * size
    assert float((logits(model.merge_and_unload()) - expected).abs().max()) < 1e-9 * size


def test_factors_that_were_added_up_are_written_for_the_base_that_they_were_trained_on(
    base_of: Callable[[str], BaseModel], tmp_path: Path
) -> None:
    result = trained(base_of("gpt2"), "lora", tmp_path)
    base = base_of("gpt2")
    config = json.loads((result.folder / "adapter_config.json").read_text())
    write_factors(tmp_path / "merged", read_adapter(result.folder), result.job.recipe, base=base.name, configs=[config])
    assert json.loads((tmp_path / "merged" / "adapter_config.json").read_text())["fan_in_fan_out"] is True
    expected = logits(by_hand(base_of("gpt2"), result.folder, "lora"))
    model = in_peft(base, tmp_path / "merged")
    assert float((logits(model) - expected).abs().max()) < 1e-9 * float(expected.abs().max())
    assert float((logits(model.merge_and_unload()) - expected).abs().max()) < 1e-9 * float(expected.abs().max())


def test_ia3_scales_the_inputs_of_the_mlps_last_layer_and_the_outputs_of_all_others(base_of: Callable[[str], BaseModel]) -> None:
    config: Any = ADAPTER_KINDS["ia3"].peft_config(base_of("gpt2"), replace(jobs("gpt2", Path())[0].recipe, kind="ia3"))
    assert set(config.target_modules) == {"c_attn", "attn.c_proj", "c_fc", "mlp.c_proj"}
    assert set(config.feedforward_modules) == {"mlp.c_proj"}
