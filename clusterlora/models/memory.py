"""The memory of the device that this process computes on."""

import os


def total_memory_bytes() -> int:
    """Return the memory of the device this process computes on, whatever is in it."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(0).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
