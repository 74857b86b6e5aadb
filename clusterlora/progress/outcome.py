"""How an attempt ended and what memory it took, as tags of its run."""

from collections.abc import Generator
from contextlib import contextmanager

from clusterlora.engine.memory import format_bytes, peak_memory_bytes
from clusterlora.errors import OutOfMemory
from clusterlora.ports.tracker import AdapterRun


@contextmanager
def tagged_with_outcome(run: AdapterRun) -> Generator[None]:
    """Tag a run with `outcome` (done, out_of_memory, failed) and `peak_memory` when the block ends, however it ends."""
    outcome = "failed"
    try:
        yield
        outcome = "done"
    except OutOfMemory:
        outcome = "out_of_memory"
        raise
    finally:
        peak = peak_memory_bytes()
        run.tag({"outcome": outcome, "peak_memory": format_bytes(peak), "peak_memory_bytes": str(peak)})
