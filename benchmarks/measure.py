"""Fair timing: contenders are warmed up and alternate within one process; every ratio is between runs adjacent in time."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class Sample:
    """One timed run of a contender. `flops_per_unit` counts necessary operations, whatever the contender computes beyond them."""

    seconds_per_unit: float
    flops_per_unit: float
    facts: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Contender:
    """Something to time. `warm_up` is a short untimed run before the first measured one."""

    name: str
    warm_up: Callable[[], object]
    run: Callable[[], Sample]


@dataclass(frozen=True, slots=True)
class Speedup:
    """clusterlora's rate compared with one baseline's. A ratio above 1 means that clusterlora is that many times faster.

    `ours` and `theirs` are median rates in `unit`; `mfu` is the share of the machine's measured matrix-product rate that
    went into necessary floating-point operations.
    """

    name: str
    baseline: str
    ratio_median: float
    ratio_min: float
    ratio_max: float
    ours: float
    theirs: float
    unit: str
    repetitions: int
    mfu_ours: float
    mfu_theirs: float
    facts: Mapping[str, Any]
    settings: Mapping[str, Any]

    def as_json(self) -> dict[str, Any]:
        return {key: _rounded(value) for key, value in asdict(self).items()}


def clock(device: torch.device) -> float:
    """Return the time in seconds, after the device has finished its queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def take_turns(contenders: Sequence[Contender], *, budget_seconds: float, at_least: int, at_most: int) -> dict[str, list[Sample]]:
    """Return every contender's samples, one per repetition.

    Each is warmed up once, untimed. The order is reversed between repetitions, so that a machine that slows down affects all contenders
    equally. Repetitions continue while another one fits the budget.
    """
    started = time.perf_counter()
    for contender in contenders:
        contender.warm_up()
    samples: dict[str, list[Sample]] = {contender.name: [] for contender in contenders}
    for repetition in range(at_most):
        repetition_started = time.perf_counter()
        for contender in contenders if repetition % 2 == 0 else reversed(contenders):
            samples[contender.name].append(contender.run())
        now = time.perf_counter()
        if repetition + 1 >= at_least and now - started + (now - repetition_started) > budget_seconds:
            break
    return samples


def speedup(
    name: str,
    baseline: str,
    ours: Sequence[Sample],
    theirs: Sequence[Sample],
    *,
    unit: str,
    units_per_second: float,
    peak_flops_per_second: float,
    settings: Mapping[str, Any],
) -> Speedup:
    """Return the speedup over one baseline; the ratio of a repetition is their seconds per unit over ours.

    Args:
        units_per_second: one unit per second expressed in `unit`: 1 for answers/s, 3600 for adapters/h.
    """
    ratios = [b.seconds_per_unit / a.seconds_per_unit for a, b in zip(ours, theirs, strict=True)]
    facts = {f"{side}_{key}": value for side, samples in (("ours", ours), ("theirs", theirs)) for key, value in samples[-1].facts.items()}
    return Speedup(
        name=name,
        baseline=baseline,
        ratio_median=median(ratios),
        ratio_min=min(ratios),
        ratio_max=max(ratios),
        ours=units_per_second / median(s.seconds_per_unit for s in ours),
        theirs=units_per_second / median(s.seconds_per_unit for s in theirs),
        unit=unit,
        repetitions=len(ratios),
        mfu_ours=_utilisation(ours, peak_flops_per_second),
        mfu_theirs=_utilisation(theirs, peak_flops_per_second),
        facts=facts,
        settings=settings,
    )


def _utilisation(samples: Sequence[Sample], peak_flops_per_second: float) -> float:
    return median(s.flops_per_unit / s.seconds_per_unit for s in samples) / peak_flops_per_second


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _rounded(inner) for key, inner in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value
