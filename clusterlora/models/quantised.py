"""Bases whose linear layers are held in 4 or 8 bits by bitsandbytes, and the product that such a layer computes here.

A layer computes y = x W^T with W dequantised to the dtype of x for one product and dropped after it, and dx = dy W likewise. bitsandbytes'
own int8 product rounds x too, but for columns that all rows of a batch choose together: an answer would depend on its neighbours.
Source: Dettmers et al. 2022, LLM.int8() (arXiv 2208.07339); Dettmers et al. 2023, QLoRA (arXiv 2305.14314): NF4, scales quantised again.
"""

import importlib
import importlib.util
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, Any

from clusterlora.errors import ModelUnavailable
from clusterlora.models.weights import weight_files
from clusterlora.settings import Quantisation

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

INSTALL = "pip install 'bitsandbytes>=0.50,<0.51', or make quantised in a checkout"
"""How to get what quantised bases need; it is an extra, for PEFT imports it wherever it is installed, which takes seconds."""

_CLASSES = ("Linear4bit", "Linear8bitLt")


def bitsandbytes_arguments(quantisation: Quantisation, dtype: str) -> dict[str, Any]:
    """Return the arguments of transformers' BitsAndBytesConfig; none for a base that is not quantised."""
    if quantisation == "none":
        return {}
    if quantisation == "int8":
        return {"load_in_8bit": True}
    return {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": dtype,
    }


def refuse_unquantisable(folder: Path, quantisation: Quantisation) -> None:
    """Check that a base folder can be quantised on this machine. Raises ModelUnavailable."""
    if quantisation == "none":
        return
    if weight_files(folder)[0].suffix == ".gguf":
        raise ModelUnavailable(
            f"model.quantisation = {quantisation}: the base model in {folder} is a GGUF file, whose weights are rounded already; "
            "use its safetensors, or model.quantisation=none"
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelUnavailable(f"model.quantisation = {quantisation} needs bitsandbytes, which is not installed: {INSTALL}")


def is_quantised(module: "nn.Module") -> bool:
    """Return whether a module is a linear layer whose weight bitsandbytes holds in 4 or 8 bits."""
    return type(module).__name__ in _CLASSES and not getattr(getattr(module, "state", None), "has_fp16_weights", False)


def dequantised(module: Any, dtype: "torch.dtype") -> "Tensor":
    """Return the weight [d_out, d_in] of a quantised layer."""
    weight = module.weight
    if type(module).__name__ == "Linear4bit":
        functional = importlib.import_module("bitsandbytes.functional")
        return functional.dequantize_4bit(weight.data, weight.quant_state).to(dtype)
    scale = weight.SCB if module.state.SCB is None else module.state.SCB
    return weight.data.to(dtype).mul_(scale[:, None] / 127)


def has_quantised(model: "nn.Module") -> bool:
    """Return whether bitsandbytes holds any layer of a model."""
    return any(is_quantised(module) for module in model.modules())


def is_laid_out_anew(model: "nn.Module") -> bool:
    """Return whether a model has answered on a CPU with bfloat16, for which bitsandbytes lays 4-bit weights out anew and rounds scales."""
    return any(getattr(getattr(parameter, "quant_state", None), "packing_format_for_cpu", False) for parameter in model.parameters())


def compute_dequantised(model: "nn.Module") -> int:
    """Let the quantised layers of a model compute what this module describes; return how many there are."""
    layers = [module for module in model.modules() if is_quantised(module) and not isinstance(module, _Dequantising)]
    for layer in layers:
        layer.__class__ = _dequantising(type(layer))
        _compute_as_its_class(layer)
    return len(layers)


def compute_as_before(model: "nn.Module") -> None:
    """Undo `compute_dequantised`."""
    for layer in model.modules():
        if isinstance(layer, _Dequantising):
            layer.__class__ = type(layer).__bases__[1]
            _compute_as_its_class(layer)


def _compute_as_its_class(layer: Any) -> None:
    """Let the hook of a layer that is on another device than its neighbours call what the layer's class computes."""
    if "_old_forward" in layer.__dict__:
        layer._old_forward = MethodType(type(layer).forward, layer)


def quantisable(model: "nn.Module") -> Iterator["nn.Module"]:
    """Yield the modules of a model, which may be on the meta device, that bitsandbytes would hold in fewer bits."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    head: Any = model.get_output_embeddings()  # pyrefly: ignore[not-callable]
    # Subclasses of Linear are left as they are, and so is the output layer.
    yield from (module for module in model.modules() if (type(module) in (nn.Linear, Conv1D)) and module is not head)


class _Dequantising:
    """A linear layer that dequantises its weight for every product."""

    def forward(self, x: "Tensor") -> "Tensor":
        """Return x W^T + bias."""
        return _product().apply(x, self)


@lru_cache(maxsize=8)
def _dequantising(layer: type) -> type:
    return type(layer.__name__, (_Dequantising, layer), {})


@lru_cache(maxsize=1)
def _product() -> Any:
    import torch

    class Product(torch.autograd.Function):
        """x W^T + bias, which keeps no dequantised weight for the backward pass."""

        @staticmethod
        def forward(ctx: Any, x: "Tensor", layer: Any) -> "Tensor":
            ctx.layer = layer
            bias = None if layer.bias is None else layer.bias.to(x.dtype)
            return torch.nn.functional.linear(x, dequantised(layer, x.dtype), bias)

        @staticmethod
        def backward(ctx: Any, dy: "Tensor") -> tuple["Tensor | None", None]:  # pyrefly: ignore[bad-override]
            return (dy @ dequantised(ctx.layer, dy.dtype) if ctx.needs_input_grad[0] else None), None

    return Product
