"""A catalog is a dict literal whose misses are explained: METHODS, METRICS, ALGORITHMS, CRITERIA, SOURCES, ..."""

from typing import Generic, TypeVar

from clusterlora.errors import UnknownName

T = TypeVar("T")


class Catalog(dict[str, T], Generic[T]):
    """Named entries of one kind."""

    def __init__(self, kind: str, entries: dict[str, T]) -> None:
        super().__init__(entries)
        self.kind = kind

    def __missing__(self, name: str) -> T:
        raise UnknownName(f"unknown {self.kind} {name!r}; known: {', '.join(self)}")
