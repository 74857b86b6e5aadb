"""The load of the machine while adapters train."""

from collections.abc import Mapping
from itertools import chain, repeat

import psutil
import pytest

from clusterlora.stores import system_metrics


def test_the_first_value_is_of_the_time_since_the_sampling_began_and_not_since_the_process_did(monkeypatch: pytest.MonkeyPatch) -> None:
    loads = chain([99.0], repeat(5.0))
    monkeypatch.setattr(psutil, "cpu_percent", lambda: next(loads))
    monkeypatch.setattr(system_metrics, "_gpu", dict)
    samples: list[tuple[float, int]] = []

    def report(values: Mapping[str, float], step: int) -> None:
        samples.append((values["system/cpu_utilization_percentage"], step))

    with system_metrics.sampled(report):
        pass
    assert samples == [(5.0, 0)]
