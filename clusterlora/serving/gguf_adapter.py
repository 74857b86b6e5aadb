"""Adapters as GGUF files, which llama.cpp and Ollama add to a base in the same format.

A file holds `general.type` = adapter, `adapter.type` = lora, `adapter.lora.alpha`, and for each layer its A and B under llama.cpp's name of
the layer, `.lora_a` and `.lora_b` appended; llama.cpp scales B A by alpha over the rank of that B. Where its attention rotates neighbours
(its architecture `llama`), the rows of queries and keys are in another order than in transformers, and so are those of B.
Source: llama.cpp, convert_lora_to_gguf.py, convert_hf_to_gguf.py (`permute`) and src/llama-adapter.h (`get_scale`).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from clusterlora.durable import put_in_place
from clusterlora.errors import BadData

if TYPE_CHECKING:
    from torch import Tensor

ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
"""llama.cpp's names of the bases whose adapters were loaded by it and gave the same answers."""

_PERMUTED = frozenset({"llama"})


def write_gguf(path: Path, factors: Mapping[str, "tuple[Tensor, Tensor]"], config: Any) -> None:
    """Write the factors of an adapter, scales folded into B, as a GGUF file in float32.

    Layers of lower rank get rows of zeros, so that one alpha, the rank, is a scale of 1 for all of them.

    Args:
        config: the configuration of the base model.

    Raises:
        BadData: the base's architecture is not among those that were tried, or a layer has no name in it.
    """
    from gguf import GGUFWriter, get_tensor_name_map
    from gguf.constants import MODEL_ARCH_NAMES

    name = (config.architectures or [""])[0]
    if name not in ARCHITECTURES:
        raise BadData(f"--format gguf is for {', '.join(ARCHITECTURES)}; this base is {name or 'of no known class'}: export --format peft")
    architecture = ARCHITECTURES[name]
    number = next(number for number, known in MODEL_ARCH_NAMES.items() if known == architecture)
    names = get_tensor_name_map(number, config.num_hidden_layers)
    rank = max((a.shape[0] for a, _ in factors.values()), default=1)
    partial = path.with_name(f".{path.name}.partial")
    writer = GGUFWriter(partial, architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(rank))
    for layer, (a, b) in factors.items():
        tensor = names.get_name(f"{layer}.weight", try_suffixes=(".weight",))
        if tensor is None or ".layers." not in layer:
            raise BadData(f"llama.cpp has no adapters on layer {layer}; export --format peft")
        missing = rank - a.shape[0]
        down = np.pad(a.float().cpu().numpy(), ((0, missing), (0, 0)))
        up = np.pad(b.float().cpu().numpy(), ((0, 0), (0, missing)))
        if architecture in _PERMUTED and layer.rpartition(".")[2] in ("q_proj", "k_proj"):
            n_heads = config.num_attention_heads if layer.endswith("q_proj") else config.num_key_value_heads
            up = permuted(up, n_heads)
        writer.add_tensor(f"{tensor}.lora_a", np.ascontiguousarray(down))
        writer.add_tensor(f"{tensor}.lora_b", np.ascontiguousarray(up))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    put_in_place(partial, path)


def permuted(rows: Float[np.ndarray, "out x"], n_heads: int) -> Float[np.ndarray, "out x"]:
    """Return the rows of each head with those that are rotated together side by side: 0, n/2, 1, n/2 + 1, ..."""
    half = rows.shape[0] // n_heads // 2
    return rows.reshape(n_heads, 2, half, -1).swapaxes(1, 2).reshape(rows.shape)
