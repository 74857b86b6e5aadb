"""Where the engine reports its progress."""

from typing import Protocol, runtime_checkable


@runtime_checkable
class Progress(Protocol):
    """What a caller passes to be told how far the work is; a `ports.run_log.RunLog` is one."""

    def advance(self, units: int = 1, **values: float) -> None:
        """Report that `units` more are done; the values describe them (loss, tokens_per_second)."""
        ...
