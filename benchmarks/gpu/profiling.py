"""Which kernels a pass spends its time in."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.measuring import StepTimes

_KERNELS = 25


class ProfiledSteps(StepTimes):
    """Profiles from the end of one step to the end of a later one, both counted over all adapters."""

    def __init__(self, device: torch.device, *, first: int, last: int) -> None:
        super().__init__()
        self._device, self._first, self._last = device, first, last
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
        self._profile: Any = profile(activities=activities)
        self._state = "waiting"

    def advance(self, units: int = 1, **facts: float) -> None:
        """See `RunLog`."""
        super().advance(units, **facts)
        if self._state == "waiting" and len(self.ends) >= self._first:
            self._profile.start()
            self._state = "running"
        elif self._state == "running" and len(self.ends) >= self._last:
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            self._profile.stop()
            self._state = "done"

    def write(self, file: Path, what: str) -> None:
        """Write the kernels that took most, and how often each ran."""
        if self._state == "running":
            with suppress(RuntimeError):
                self._profile.stop()
        table = "no step was profiled" if self._state == "waiting" else self._kernels()
        file.write_text(f"{what}\n\n{table}\n", encoding="utf-8")

    def _kernels(self) -> str:
        is_gpu = self._device.type == "cuda"
        # On a GPU operators are listed as well, with the time of the kernels that they launched.
        events = [event for event in self._profile.key_averages() if (event.device_type.name == "CUDA") == is_gpu]
        spent = {event.key: event.self_device_time_total if is_gpu else event.self_cpu_time_total for event in events}
        events.sort(key=lambda event: -spent[event.key])
        total = sum(spent.values()) or 1.0
        lines = [f"{total / 1000:.2f} ms in all", f"{'ms':>10} {'share':>6} {'count':>7}  kernel"]
        lines += [
            f"{spent[event.key] / 1000:10.3f} {spent[event.key] / total:6.1%} {event.count:7d}  {event.key[:150]}"
            for event in events[:_KERNELS]
        ]
        return "\n".join(lines)
