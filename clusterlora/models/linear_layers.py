"""The linear layers of a base model, however transformers or bitsandbytes store their weights."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from clusterlora.models.quantised import dequantised, is_quantised


@dataclass(frozen=True, slots=True)
class LinearLayer:
    """A module that computes y = x W^T + bias with a W [d_out, d_in]."""

    module: nn.Module
    d_out: int
    d_in: int
    bias: Float[Tensor, " d_out"] | None
    stored: Float[Tensor, "d_out d_in"] | None
    """W, for a GPT-2 style Conv1D a view of what it stores; None where bitsandbytes holds it in fewer bits."""

    def weight(self, dtype: torch.dtype) -> Float[Tensor, "d_out d_in"]:
        """Return W: what is stored, or else what that stands for, in `dtype`."""
        return dequantised(self.module, dtype) if self.stored is None else self.stored


_PLAIN = ("Linear", "FalconLinear")
"""Classes that compute x W^T + bias and nothing else; other subclasses of Linear quantise."""


def linear_layer(module: nn.Module) -> LinearLayer | None:
    """Return a module as a linear layer; None if it is neither a plain Linear, nor a Conv1D, nor one that bitsandbytes quantised."""
    if isinstance(module, nn.Linear) and is_quantised(module):
        return LinearLayer(module, module.out_features, module.in_features, module.bias, None)
    if isinstance(module, nn.Linear) and type(module).__name__ in _PLAIN:
        return _stored(module, module.weight)
    if type(module) is Conv1D:
        return _stored(module, module.weight.T)
    return None


def _stored(module: nn.Linear | Conv1D, weight: Float[Tensor, "d_out d_in"]) -> LinearLayer:
    return LinearLayer(module, weight.shape[0], weight.shape[1], module.bias, weight)


def is_transposed(model: nn.Module, names: Sequence[str]) -> bool:
    """Return whether a model stores the weights of its layers of these names transposed, as Conv1D does."""
    return any(type(module) is Conv1D for name, module in model.named_modules() if name.rpartition(".")[2] in names)
