"""The energy that a GPU has used, from NVIDIA's management library; a CPU tells none, and neither does a slice of a GPU."""

import ctypes
import sys
from functools import cache
from typing import Any

_LIBRARY = "libnvidia-ml.so.1"


def joules(library: Any = None) -> float | None:
    """Return the joules that the GPU this process computes on has used since its driver was loaded; None where nothing tells.

    Source: nvmlDeviceGetTotalEnergyConsumption, in millijoules, on Volta and later.

    Args:
        library: NVIDIA's management library; by default that of this machine.
    """
    uuid = _uuid()
    library = library or (_library() if uuid else None)
    if uuid is None or library is None:
        return None
    handle, millijoules = ctypes.c_void_p(), ctypes.c_ulonglong()
    if library.nvmlDeviceGetHandleByUUID(uuid.encode(), ctypes.byref(handle)) != 0:
        return None
    if library.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(millijoules)) != 0:
        return None
    return millijoules.value / 1000


def device(*, computes: bool) -> str:
    """Return the name of what a phase occupies: this process's GPU where it computes on one, else the CPU.

    Where a base is spread over several, time and energy are those of the first alone, and the name says so.
    """
    if not (computes and _uuid()):
        return "cpu"
    cuda = sys.modules["torch"].cuda
    n_used = sum(cuda.memory_reserved(index) > 0 for index in range(cuda.device_count()))
    return f"{_gpu().name} (first of {n_used})" if n_used > 1 else _gpu().name


def _uuid() -> str | None:
    """Return the UUID of this process's GPU. PyTorch is not imported for it: who computes on a GPU has done so."""
    torch: Any = sys.modules.get("torch")
    return f"GPU-{_gpu().uuid}" if torch is not None and torch.cuda.is_available() else None


def _gpu() -> Any:
    return sys.modules["torch"].cuda.get_device_properties(0)


@cache
def _library() -> Any:
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError:
        return None
    return library if library.nvmlInit_v2() == 0 else None
