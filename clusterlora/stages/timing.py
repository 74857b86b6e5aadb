"""Where the time went: every stage leaves its seconds with the study."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from clusterlora.ports import Stores

PREFIX = "seconds: "


@contextmanager
def timed(stores: Stores, study: str, phase: str) -> Iterator[None]:
    """Add the block's seconds to those of the phase when it ends well: training groups come again in later passes and relaunches."""
    started = time.monotonic()
    yield
    seconds = time.monotonic() - started
    before = stores.studies.facts(study).get(PREFIX + phase, 0.0)
    stores.studies.save_fact(study, PREFIX + phase, round(before + seconds, 2))


def seconds_by_phase(stores: Stores, study: str) -> dict[str, float]:
    """Return the recorded seconds of every phase, in the order of the facts."""
    return {name.removeprefix(PREFIX): seconds for name, seconds in stores.studies.facts(study).items() if name.startswith(PREFIX)}
