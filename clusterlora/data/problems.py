"""Problems of the input, collected while reading so that all of them are reported at once."""

from dataclasses import dataclass

from clusterlora.errors import BadData, printable

LISTED = 20
"""Number of problems that are listed; the rest are counted."""


@dataclass(frozen=True, slots=True)
class SourceLocation:
    """A line of a text file, a row of a Parquet file, or a whole file or source."""

    file: str
    line: int | None = None

    def __str__(self) -> str:
        return self.file if self.line is None else f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem that must be fixed before the data can be used."""

    location: SourceLocation
    field: str
    what: str
    fix: str

    def __str__(self) -> str:
        return f"{self.location}: {printable(self.field)}: {self.what}; {self.fix}"


class Problems:
    """Collects problems; `raise_any` reports them."""

    def __init__(self) -> None:
        self.listed: list[Problem] = []
        self.count = 0

    def add(self, location: SourceLocation, field: str, what: str, fix: str) -> None:
        """Add a problem. Only the first LISTED are stored, so that a file full of problems takes no memory."""
        self.count += 1
        if len(self.listed) < LISTED:
            self.listed.append(Problem(location, field, what, fix))

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
