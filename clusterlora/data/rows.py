"""Rows of a JSONL, CSV or Parquet file as dicts, with their locations."""

import csv
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from clusterlora.data.lines import MAX_LINE_BYTES, json_records, text_lines
from clusterlora.data.problems import Problems, SourceLocation
from clusterlora.errors import BadData, printable

Rows = Iterator[tuple[SourceLocation, dict[str, Any]]]

_BATCH_ROWS = 128


def rows(path: Path, problems: Problems, *, columns: Collection[str] | None = None) -> Rows:
    """Yield every readable row; the others become problems.

    Args:
        columns: those to read, as far as the file has them; all, when left out. What stands in others cannot be wrong.

    Raises:
        BadData: the file does not exist, or has another format.
    """
    if not path.is_file():
        raise BadData(f"{printable(str(path))}: {_what_is_there(path)}; the table source reads one {' or '.join(_READERS)} file")
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise BadData(f"{path}: unknown file format {path.suffix!r}; the table source reads {', '.join(_READERS)}")
    return reader(path, problems, columns)


def _what_is_there(path: Path) -> str:
    if path.is_dir():
        return "is a folder"
    if path.exists():
        return "is no regular file but a pipe, a socket or a device, which cannot be read twice"
    return "no such file: the link leads nowhere" if path.is_symlink() else "no such file"


def header(path: Path) -> tuple[str, ...]:
    """Return the names of the columns of a file that can be read, for a message: CSV's or Parquet's."""
    if path.suffix.lower() == ".parquet":
        import pyarrow.parquet as pq

        return tuple(pq.read_schema(path).names)
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        # Rows are read from the first line that is not empty, too.
        return tuple(name.strip() for name in next(filter(None, csv.reader(file)), ()))


def known_rows(path: Path) -> int | None:
    """Return how many rows a file says it has; None where it does not, or cannot be read."""
    if path.suffix.lower() != ".parquet":
        return None
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return int(pq.read_metadata(path).num_rows)
    except (pa.ArrowException, OSError):
        return None


def every_row_has_all_columns(path: Path) -> bool:
    """Return whether the file format has a header, so that a column missing from the first row is missing from all."""
    return path.suffix.lower() != ".jsonl"


def _jsonl_rows(path: Path, problems: Problems, columns: Collection[str] | None) -> Rows:  # noqa: ARG001  (a line is read whole)
    for location, record in json_records(path, problems):
        if record is not None:
            yield location, record


def _csv_rows(path: Path, problems: Problems, columns: Collection[str] | None) -> Rows:
    row_locations: list[SourceLocation] = []

    def lines() -> Iterator[str]:
        for location, line in text_lines(path, problems):
            if line is not None:
                row_locations.append(location)
                yield line

    names: list[str] | None = None
    wanted: list[tuple[int, str]] = []
    # A field is bounded by its line, as a text is in JSON. The limit is the process's.
    csv.field_size_limit(MAX_LINE_BYTES)
    reader = csv.reader(lines(), strict=True)
    while True:
        row_locations.clear()
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            problems.add(
                row_locations[0], "csv", str(error), "quote fields that hold commas, quotes or line breaks, and double the quotes inside"
            )
            continue
        if not cells:
            continue
        location = row_locations[0]
        if names is None:
            names = [name.strip() for name in cells]
            wanted = [(index, name) for index, name in enumerate(names) if columns is None or name in columns]
            for name in (name for name, n_columns in Counter(name for _, name in wanted).items() if n_columns > 1):
                problems.add(location, name, "is the name of two columns", "rename one")
        elif len(cells) != len(names):
            problems.add(location, "csv", f"{len(cells)} fields, the header has {len(names)}", "give every row one field per column")
        else:
            # CSV does not distinguish an empty text from a missing one.
            yield location, {name: cells[index] or None for index, name in wanted}


def _parquet_rows(path: Path, problems: Problems, columns: Collection[str] | None) -> Rows:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            wanted = [name for name in names if columns is None or name in columns]
            if twice := [name for name, n_columns in Counter(wanted).items() if n_columns > 1]:
                for name in twice:
                    problems.add(SourceLocation(path.name), name, "is the name of two columns", "rename one")
                return
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=wanted):
                for row in batch.to_pylist():
                    number += 1
                    yield SourceLocation(path.name, number), row
    except (pa.ArrowException, ValueError, OverflowError, OSError) as error:
        problems.add(
            SourceLocation(path.name, number + 1), "parquet", str(error).splitlines()[0], "write the file again as Parquet with UTF-8 text"
        )
        return
    if not number:
        problems.add(SourceLocation(path.name), "file", "is empty", "give a file with dialogues")


_READERS: Mapping[str, Callable[[Path, Problems, Collection[str] | None], Rows]] = {
    ".jsonl": _jsonl_rows,
    ".csv": _csv_rows,
    ".parquet": _parquet_rows,
}
