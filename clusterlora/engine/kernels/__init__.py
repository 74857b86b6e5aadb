"""Kernels for GPUs, in Triton. Its modules import Triton, so the engine imports them when tensors are on a GPU."""

import logging
from functools import cache
from importlib.util import find_spec

import torch

log = logging.getLogger(__name__)

_DTYPES = (torch.float32, torch.bfloat16)


def serve(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether the kernels compute tensors of this device and dtype; elsewhere PyTorch's own operations do."""
    return device.type == "cuda" and dtype in _DTYPES and _work(device.index or 0)


@cache
def _work(number: int) -> bool:
    """Return whether a kernel can be compiled for a GPU and runs on it; that none can is said once."""
    if find_spec("triton") is None:
        return False
    try:
        from clusterlora.engine.kernels.rms_norm import rms_norm

        ones = torch.ones(1, 16, device=torch.device("cuda", number))
        rms_norm(ones, ones[0], 1e-6, wide_weight=False)
    except Exception as error:  # noqa: BLE001  (without a compiler, say: whatever it is, PyTorch computes the same)
        reason = (str(error).splitlines() or [""])[0]
        log.warning(
            "training takes PyTorch's own operations, a few times slower: no kernel runs on GPU %d (%s); is there a C compiler (gcc)?",
            number,
            reason,
        )
        return False
    return True
