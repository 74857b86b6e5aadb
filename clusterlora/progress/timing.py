"""How long the phases of a study took, over all workers."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Literal

from clusterlora.ports.stores import Stores

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
]


Seconds = Iterable[tuple[str, str, float]]
"""(phase, part, seconds) of everything timed, as `StudyStore.seconds` returns it."""


@contextmanager
def timed(stores: Stores, study: str, phase: Phase, part: str = "") -> Iterator[None]:
    """Record how long the block took, when it ends well; the times of a part that runs again (a relaunch, a later pass) are summed.

    Args:
        part: what of the phase this is: a training group, a shard, a rung.
    """
    started = time.monotonic()
    yield
    stores.studies.add_seconds(study, phase, part, time.monotonic() - started)


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
