"""The linear layers of a base model, however transformers stores their weights."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


@dataclass(frozen=True, slots=True)
class LinearLayer:
    """A module that computes y = x W^T + bias; `weight` is W, for a GPT-2 style Conv1D the transpose of what it stores."""

    module: nn.Module
    weight: Float[Tensor, "d_out d_in"]
    bias: Float[Tensor, " d_out"] | None

    @property
    def d_in(self) -> int:
        """Number of inputs."""
        return self.weight.shape[1]

    @property
    def d_out(self) -> int:
        """Number of outputs."""
        return self.weight.shape[0]


_PLAIN = ("Linear", "FalconLinear")
"""Classes that compute x W^T + bias and nothing else; other subclasses of Linear quantise."""


def linear_layer(module: nn.Module) -> LinearLayer | None:
    """Return a module as a linear layer; None if it is neither a plain Linear nor a Conv1D."""
    if isinstance(module, nn.Linear) and type(module).__name__ in _PLAIN:
        return LinearLayer(module, module.weight, module.bias)
    if type(module) is Conv1D:
        return LinearLayer(module, module.weight.T, module.bias)
    return None


def is_transposed(model: nn.Module, names: Sequence[str]) -> bool:
    """Return whether a model stores the weights of its layers of these names transposed, as Conv1D does."""
    return any(type(module) is Conv1D for name, module in model.named_modules() if name.rpartition(".")[2] in names)
