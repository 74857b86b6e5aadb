"""How long the phases of a study took, over all workers."""

import time
from collections.abc import Generator, Iterable
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Literal

from clusterlora.errors import ServiceDown
from clusterlora.ports.stores import Stores
from clusterlora.ports.study_store import DeviceUse
from clusterlora.progress.energy import device, joules

Phase = Literal[
    "prepare",
    "probe",
    "cluster",
    "signal",
    "scale",
    "train",
    "refine",
    "merge",
    "evaluate power",
    "evaluate gate",
    "evaluate baseline",
    "evaluate tuning",
    "evaluate choices",
    "evaluate test",
    "compare",
    "register",
    "privacy",
]


Seconds = Iterable[tuple[str, str, float]]
"""(phase, part, seconds) of everything timed, as `StudyStore.seconds` returns it."""


_COMPUTE = ("probe", "train", "merge", "refine", "evaluate", "privacy")
"""How the names of the phases begin that occupy a worker's device; all others run on a CPU."""


@dataclass(slots=True)
class Work:
    """What a timed block says of its work: tokens that adapters were trained on."""

    train_tokens: int = 0


@contextmanager
def timed(stores: Stores, study: str, phase: Phase, part: str = "", *, since: float | None = None) -> Generator[Work]:
    """Record how long the block took, when it ends well; the times of a part that runs again (a relaunch, a later pass) are summed.

    What the device did is recorded however the block ends, for it costs the same; only a process that is killed records nothing.

    Args:
        part: what of the phase this is: a training group, a shard, a rung.
        since: when the work began, by `time.monotonic`, where that was before there was a study to record it for.
    """
    started, energy, work = time.monotonic() if since is None else since, joules(), Work()
    try:
        yield work
    except Exception:
        # The error tells more than a database that does not answer either.
        with suppress(ServiceDown):
            stores.studies.add_device_use(study, device_use(phase, time.monotonic() - started, energy, work.train_tokens))
        raise
    seconds = time.monotonic() - started
    stores.studies.add_seconds(study, phase, part, seconds)
    stores.studies.add_device_use(study, device_use(phase, seconds, energy, work.train_tokens))


def device_use(phase: Phase, seconds: float, joules_before: float | None, train_tokens: int) -> DeviceUse:
    """Return what this process's device did in these last seconds, with its energy where it tells that."""
    name, after = device(computes=phase.startswith(_COMPUTE)), joules()
    use = DeviceUse(phase, name, seconds, train_tokens=train_tokens)
    if name == "cpu" or joules_before is None or after is None:
        return use
    return replace(use, metered_seconds=seconds, joules=after - joules_before)


def seconds_by_part(seconds_of: Seconds) -> dict[str, float]:
    """Return the seconds of every part of every phase, by `phase part`."""
    return {f"{phase} {part}".rstrip(): seconds for phase, part, seconds in seconds_of}


def seconds_by_phase(seconds_of: Seconds) -> dict[str, float]:
    """Return the seconds of every phase, summed over its parts and so over all workers."""
    sums: dict[str, float] = {}
    for phase, _, seconds in seconds_of:
        sums[phase] = sums.get(phase, 0.0) + seconds
    return sums


def duration(seconds: float) -> str:
    """Return a readable duration: `40 s`, `12 min`, `3 h 05 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"
