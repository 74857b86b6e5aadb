"""Lines of text and JSON from untrusted files, in bounded memory; unreadable lines become problems with their location."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from clusterlora.data.problems import Problems, SourceLocation
from clusterlora.json_text import RepeatedKey, parsed

MAX_LINE_BYTES = 8 * 2**20
"""Maximum length of a line; fifty dialogues of a persona take about 100 kB."""

_UTF8_MARK = b"\xef\xbb\xbf"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


def text_lines(path: Path, problems: Problems) -> Iterator[tuple[SourceLocation, str | None]]:
    """Yield each line, including its line break, with its location; None for an unreadable line, which adds a problem."""
    with path.open("rb") as file:
        number = offset = 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            location = SourceLocation(path.name, number)
            start, offset = offset, offset + len(line)
            if len(line) > MAX_LINE_BYTES:
                offset += _skip_line(file, line)
                problems.add(location, "line", f"{offset - start:,} bytes, more than {MAX_LINE_BYTES:,}", "put one record on each line")
                yield location, None
            elif number == 1 and line.startswith(_UTF16_MARKS):
                problems.add(location, "encoding", "the file is UTF-16", "save it as UTF-8")
                return
            else:
                yield location, _decoded(line.removeprefix(_UTF8_MARK) if number == 1 else line, location, start, problems)
        if not number:
            problems.add(SourceLocation(path.name), "file", "is empty", "give a file with dialogues")


def _skip_line(file: BinaryIO, line: bytes) -> int:
    skipped = 0
    while line and not line.endswith(b"\n"):
        line = file.readline(2**20)
        skipped += len(line)
    return skipped


def _decoded(line: bytes, location: SourceLocation, start: int, problems: Problems) -> str | None:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        what = f"byte 0x{line[error.start]:02x} at byte {error.start} of the line ({start + error.start} of the file) is not UTF-8"
        problems.add(location, "encoding", what, "save the whole file as UTF-8")
        return None


def json_records(path: Path, problems: Problems) -> Iterator[tuple[SourceLocation, dict[str, Any] | None]]:
    """Yield the JSON object of each line that is not blank; None for a line without one, which adds a problem."""
    location, only_blank = None, True
    for location, line in text_lines(path, problems):
        if line is None or line.strip():
            only_blank = False
            yield location, None if line is None else _object(line, location, problems)
    if location and only_blank:
        problems.add(location, "file", "has only blank lines", "give a file with dialogues")


def _object(line: str, location: SourceLocation, problems: Problems) -> dict[str, Any] | None:
    try:
        record = parsed(line.rstrip())
    except RepeatedKey as error:
        problems.add(location, error.key, "stands twice in an object", "keep one of the two")
        return None
    except json.JSONDecodeError as error:
        problems.add(location, "json", f"{error.msg} at character {error.colno}", "write one JSON object per line")
        return None
    except (ValueError, RecursionError) as error:  # a number with thousands of digits, brackets nested thousands deep
        problems.add(location, "json", str(error), "write one plain JSON object per line")
        return None
    if not isinstance(record, dict):
        problems.add(location, "json", f"a JSON {type(record).__name__}, not an object", 'write {"field": value, ...} on each line')
        return None
    return record
