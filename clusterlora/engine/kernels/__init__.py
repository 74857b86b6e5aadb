"""Kernels for GPUs, in Triton. Its modules import Triton, so the engine imports them when tensors are on a GPU."""

from functools import cache
from importlib.util import find_spec

import torch

_DTYPES = (torch.float32, torch.bfloat16)


def serve(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether the kernels compute tensors of this device and dtype; elsewhere PyTorch's own operations do."""
    return device.type == "cuda" and dtype in _DTYPES and _has_triton()


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None
