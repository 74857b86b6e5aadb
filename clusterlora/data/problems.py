"""What is wrong with the input: collected while reading, so that everything is told at once."""

from dataclasses import dataclass

from clusterlora.errors import BadData, printable

LISTED = 20
"""Problems shown in full; the rest are counted."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where something was read: a line of a text file, a row of a Parquet file, or a whole source."""

    file: str
    line: int | None = None

    def __str__(self) -> str:
        return self.file if self.line is None else f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that must change before the data can be used."""

    place: Place
    field: str
    what: str
    fix: str

    def __str__(self) -> str:
        return f"{self.place}: {printable(self.field)}: {self.what}; {self.fix}"


class Problems:
    """Collects problems; `raise_any` tells them all."""

    def __init__(self) -> None:
        self.listed: list[Problem] = []
        self.count = 0

    def add(self, place: Place, field: str, what: str, fix: str) -> None:
        """Note a problem; beyond the first twenty only the number is kept, so a hopeless file costs no memory."""
        self.count += 1
        if len(self.listed) < LISTED:
            self.listed.append(Problem(place, field, what, fix))

    def raise_any(self) -> None:
        """Raise BadData if anything was added, one problem per line."""
        if not self.count:
            return
        lines = [str(problem) for problem in self.listed]
        if len(lines) < self.count:
            lines.append(f"... and {self.count - len(lines)} more")
        if len(lines) > 1:
            lines.insert(0, f"{self.count} problems in the data:")
        raise BadData("\n".join(lines))
