"""Where the time went: every stage leaves its seconds with the study."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from clusterlora.ports import Stores

PREFIX = "seconds: "


@contextmanager
def timed(stores: Stores, study: str, phase: str) -> Iterator[None]:
    """Record how long the block took, when it ends well."""
    started = time.monotonic()
    yield
    stores.studies.save_fact(study, PREFIX + phase, round(time.monotonic() - started, 2))


def seconds_by_phase(stores: Stores, study: str) -> dict[str, float]:
    """Return the recorded seconds of every phase, in the order of the facts."""
    return {name.removeprefix(PREFIX): seconds for name, seconds in stores.studies.facts(study).items() if name.startswith(PREFIX)}
