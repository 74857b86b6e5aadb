"""Where work reports its progress: what the engine and every step are given."""

from typing import Protocol, runtime_checkable


@runtime_checkable
class RunLog(Protocol):
    """Where progress and curves go: a rich bar, a Prefect progress artifact, an MLflow run, or nowhere."""

    def phase(self, name: str, *, total: int, unit: str) -> None:
        """Begin a phase of `total` units, which ends the previous one."""
        ...

    def advance(self, units: int = 1, **values: float) -> None:
        """Report that `units` more are done; the values are shown beside the bar (loss, tokens_per_second)."""
        ...

    def metric(self, name: str, value: float, *, step: int) -> None:
        """Record one point of a curve."""
        ...

    def note(self, message: str) -> None:
        """Log one line."""
        ...


class SilentLog:
    """A RunLog that discards everything."""

    def phase(self, name: str, *, total: int, unit: str) -> None: ...

    def advance(self, units: int = 1, **values: float) -> None: ...

    def metric(self, name: str, value: float, *, step: int) -> None: ...

    def note(self, message: str) -> None: ...
