"""Lines of UTF-8 and JSON from files that may hold anything: bounded memory, every broken line reported with its place."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from clusterlora.data.problems import Place, Problems

MAX_LINE_BYTES = 8 * 2**20
"""Longest line that is read: fifty dialogues of a persona are some 100 kB."""

_UTF8_MARK = b"\xef\xbb\xbf"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


def text_lines(path: Path, problems: Problems) -> Iterator[tuple[Place, str | None]]:
    """Yield each line with its place, its line break included; None for a line that cannot be read (a problem is added)."""
    with path.open("rb") as file:
        number = offset = 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            place = Place(path.name, number)
            start, offset = offset, offset + len(line)
            if len(line) > MAX_LINE_BYTES:
                offset += _skip_line(file, line)
                problems.add(place, "line", f"{offset - start:,} bytes, more than {MAX_LINE_BYTES:,}", "put one record on each line")
                yield place, None
            elif number == 1 and line.startswith(_UTF16_MARKS):
                problems.add(place, "encoding", "the file is UTF-16", "save it as UTF-8")
                return
            else:
                yield place, _decoded(line.removeprefix(_UTF8_MARK) if number == 1 else line, place, start, problems)
        if not number:
            problems.add(Place(path.name), "file", "is empty", "give a file with dialogues")


def _skip_line(file: BinaryIO, line: bytes) -> int:
    skipped = 0
    while line and not line.endswith(b"\n"):
        line = file.readline(2**20)
        skipped += len(line)
    return skipped


def _decoded(line: bytes, place: Place, start: int, problems: Problems) -> str | None:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        what = f"byte 0x{line[error.start]:02x} at byte {error.start} of the line ({start + error.start} of the file) is not UTF-8"
        problems.add(place, "encoding", what, "save the whole file as UTF-8")
        return None


def json_records(path: Path, problems: Problems) -> Iterator[tuple[Place, dict[str, Any] | None]]:
    """Yield the object on each line that is not blank; None for a line that holds none (a problem is added)."""
    last, blank = None, True
    for last, line in text_lines(path, problems):
        if line is None or line.strip():
            blank = False
            yield last, None if line is None else _object(line, last, problems)
    if last and blank:
        problems.add(last, "file", "has only blank lines", "give a file with dialogues")


def _object(line: str, place: Place, problems: Problems) -> dict[str, Any] | None:
    try:
        record = json.loads(line.rstrip())
    except json.JSONDecodeError as error:
        problems.add(place, "json", f"{error.msg} at character {error.colno}", "write one JSON object per line")
        return None
    except (ValueError, RecursionError) as error:  # a number with thousands of digits, brackets nested thousands deep
        problems.add(place, "json", str(error), "write one plain JSON object per line")
        return None
    if not isinstance(record, dict):
        problems.add(place, "json", f"a JSON {type(record).__name__}, not an object", 'write {"field": value, ...} on each line')
        return None
    return record
