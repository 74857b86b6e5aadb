"""How busy a machine is while an adapter trains on it, under the names that MLflow's UI shows as system metrics."""

import shutil
import subprocess
import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager

import psutil

EVERY_SECONDS = 10.0

_GPU_QUERY = ("utilization.gpu", "memory.used", "memory.total", "power.draw")


@contextmanager
def sampled(report: Callable[[Mapping[str, float], int], None]) -> Generator[None]:
    """Report numbered samples, from 0, while the block runs, and one more at its end, so that there is always at least one.

    A thread samples and reports, so that training waits for neither.
    """
    ended = threading.Event()

    def work() -> None:
        step, last = 0, False
        # psutil's first value covers the time since the process began, each further one the time since the previous call.
        psutil.cpu_percent()
        while not last:
            last = ended.wait(EVERY_SECONDS)
            report(sample(), step)
            step += 1

    thread = threading.Thread(target=work, name="system metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def sample() -> dict[str, float]:
    """Return the load of the processors, the memory and this process's GPU (if it has one) at this moment."""
    memory = psutil.virtual_memory()
    values = {
        "cpu_utilization_percentage": psutil.cpu_percent(),
        "system_memory_usage_megabytes": memory.used / 1e6,
        "system_memory_usage_percentage": memory.used / memory.total * 100,
        **_gpu(),
    }
    return {f"system/{name}": round(value, 1) for name, value in values.items()}


def _gpu() -> dict[str, float]:
    """Return the load of the GPU that this process computes on; the machine's other GPUs belong to other runs."""
    import torch

    tool = shutil.which("nvidia-smi")
    if tool is None or not torch.cuda.is_available():
        return {}
    device = f"GPU-{torch.cuda.get_device_properties(0).uuid}"
    command = [tool, f"--id={device}", f"--query-gpu={','.join(_GPU_QUERY)}", "--format=csv,noheader,nounits"]
    completed = subprocess.run(command, capture_output=True, text=True, check=False)
    return parse_gpu(completed.stdout) if completed.returncode == 0 else {}


def parse_gpu(line: str) -> dict[str, float]:
    """Return the values in a line of nvidia-smi; those a device does not report (`[N/A]` on a slice of a GPU) are left out."""
    fields = [float(word) if word.replace(".", "", 1).isdigit() else None for word in (part.strip() for part in line.split(","))]
    if len(fields) != len(_GPU_QUERY):
        return {}
    utilization, used_mib, total_mib, watts = fields
    values = {
        "gpu_0_utilization_percentage": utilization,
        "gpu_0_memory_usage_megabytes": used_mib * 2**20 / 1e6 if used_mib is not None else None,
        "gpu_0_memory_usage_percentage": used_mib / total_mib * 100 if used_mib is not None and total_mib else None,
        "gpu_0_power_usage_watts": watts,
    }
    return {name: value for name, value in values.items() if value is not None}
