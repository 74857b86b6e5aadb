"""Source `table`: one row per dialogue, as `persona_id, prompt, response` or `persona_id, messages`."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from clusterlora.data.problems import Problems, SourceLocation
from clusterlora.data.records import SPLIT_NAMES, identifier, numbered, turns, unread_fields, words, words_or_number
from clusterlora.data.rows import every_row_has_all_columns, header, known_rows, rows
from clusterlora.data.source import SourceData
from clusterlora.errors import BadData, BadSettings, printable
from clusterlora.json_text import RepeatedKey, parsed
from clusterlora.settings import DataSettings
from clusterlora.values import Dataset, Dialogue, Persona, Split, Turn, digest

_ROW_BYTES = 1000
"""What a row takes beside its texts: its dialogue, its turns and their names."""
_MOST_NAMED = 20

COLUMNS = ("persona_id", "prompt", "response", "messages", "persona_description", "dialogue_id", "split")

_OTHER_SEPARATOR = re.compile(r"[;\t]")


def read_table(settings: DataSettings, problems: Problems) -> SourceData:
    """Return the personas of a JSONL, CSV or Parquet file in the order of their first rows.

    Each prompt with its response is a dialogue, named `<dialogue_id>/<hash of the text>`; so are the `messages` of several rows with one
    `dialogue_id`. Rows with the same `dialogue_id` are one conversation.

    Raises:
        BadData: the file does not exist.
        BadSettings: `columns` maps a column that does not exist.
    """
    if settings.path is None:
        raise BadData("data.path is missing; the table source needs a .jsonl, .csv or .parquet file")
    table = _Table(_column_names(settings), problems, labelled=settings.task != "text")
    path = Path(settings.path)
    wanted = frozenset(table.column_by_name.values())
    n_rows = 0
    memory = _Memory(path)
    for location, row in rows(path, problems, columns=wanted):
        n_rows += 1
        memory.add(row)
        if n_rows == 1 and every_row_has_all_columns(path):
            if not _has_columns(row, path, table.column_by_name, problems):
                return SourceData(Dataset(()))
            table.leave_out(name for name in header(path) if name not in wanted)
        table.leave_out(name for name, value in row.items() if value is not None and name not in wanted)
        table.add({name: row[column] for name, column in table.column_by_name.items() if row.get(column) is not None}, location)
    if not n_rows and not problems.count:
        problems.add(SourceLocation(path.name), "file", "has no rows", "give a file with dialogues")
    return replace(_source_data(table.people), unread=tuple(table.unread))


class _Memory:
    """What the rows of a file take as dialogues: a small file may unfold to more than the machine has."""

    def __init__(self, path: Path) -> None:
        """Begin to count. Raises BadData where the file says that it has too many rows."""
        self._path, self._n_rows, self._n_bytes = path, 0, 0
        self._limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4
        n_rows = known_rows(path) or 0
        self._check(n_rows, n_rows * _ROW_BYTES)

    def add(self, row: Mapping[str, Any]) -> None:
        """Count a row. Raises BadData when all of them so far take more than a quarter of the memory."""
        self._n_rows += 1
        self._n_bytes += _ROW_BYTES + sum(map(_characters, row.values()))
        self._check(self._n_rows, self._n_bytes)

    def _check(self, n_rows: int, n_bytes: int) -> None:
        if n_bytes > self._limit:
            raise BadData(
                f"{self._path}: {n_rows:,} rows take {n_bytes / 1e9:.1f} GB as dialogues, and a quarter of this machine's memory is "
                f"{self._limit / 1e9:.1f} GB; cut the file, or use a larger machine"
            )


def _characters(value: Any) -> int:
    """Return the characters of all texts in a value."""
    if isinstance(value, str):
        return len(value)
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return sum(map(_characters, inner))


@dataclass(slots=True)
class _Draft:
    """A persona whose rows are being read."""

    location: SourceLocation
    description: str | None = None
    rows: list["_Row"] = field(default_factory=list["_Row"])
    id_types: set[type] = field(default_factory=set[type])
    dialogue_id_types: dict[str, set[type]] = field(default_factory=dict[str, set[type]])


@dataclass(frozen=True, slots=True)
class _Row:
    """The dialogue of a row, and whether it has `messages`."""

    location: SourceLocation
    dialogue_id: str | None
    turns: tuple[Turn, ...]
    split: Split | None
    has_messages: bool


@dataclass(slots=True)
class _Table:
    """The people of the rows so far, and the names of what rows hold that nothing reads, in the order in which they are met."""

    column_by_name: Mapping[str, str]
    problems: Problems
    labelled: bool
    people: dict[str, _Draft] = field(default_factory=dict[str, _Draft])
    unread: dict[str, None] = field(default_factory=dict[str, None])

    def leave_out(self, names: Iterable[str]) -> None:
        """Note columns that nothing reads."""
        self.unread.update(dict.fromkeys(names))

    def add(self, row: Mapping[str, Any], location: SourceLocation) -> None:
        """Add the dialogue of a row, by our names of its columns, to its persona, or what is wrong with it to the problems."""
        columns, problems = self.column_by_name, self.problems
        persona_id = identifier(row.get("persona_id"), location, columns["persona_id"], problems)
        turns_of_row = self._turns(row, location)
        split = _split(row.get("split"), location, columns["split"], problems)
        raw_id = row.get("dialogue_id")
        dialogue_id = None if raw_id is None else identifier(raw_id, location, columns["dialogue_id"], problems)
        if persona_id is None:
            return
        draft = self.people.setdefault(persona_id, _Draft(location))
        draft.id_types.add(type(row["persona_id"]))
        _set_description(draft, row.get("persona_description"), location, columns["persona_description"], problems)
        if dialogue_id is not None:
            draft.dialogue_id_types.setdefault(dialogue_id, set()).add(type(raw_id))
        if turns_of_row is None or (raw_id is not None and dialogue_id is None):
            return
        draft.rows.append(_Row(location, dialogue_id, turns_of_row, split, "messages" in row))

    def _turns(self, row: Mapping[str, Any], location: SourceLocation) -> tuple[Turn, ...] | None:
        columns, problems = self.column_by_name, self.problems
        if "messages" in row:
            messages = row["messages"]
            if isinstance(messages, str):
                try:
                    messages = parsed(messages)
                except RepeatedKey as error:
                    problems.add(location, f"{columns['messages']}.{error.key}", "stands twice in an object", "keep one of the two")
                    return None
                except (ValueError, RecursionError):
                    problems.add(location, columns["messages"], "is not JSON", 'write [{"role": "user", "text": "..."}, ...]')
                    return None
            self.leave_out(columns[name] for name in ("prompt", "response") if name in row)
            self.leave_out(f"{columns['messages']}.{name}" for name in unread_fields(messages))
            return turns(messages, location, columns["messages"], problems)
        if "prompt" not in row and "response" not in row:
            what = f"neither {columns['messages']} nor {columns['prompt']} and {columns['response']}"
            problems.add(location, columns["messages"], f"is missing: the row has {what}", "add a column or map yours with data.columns")
            return None
        prompt = words(row.get("prompt"), location, columns["prompt"], problems)
        read = words_or_number if self.labelled else words
        response = read(row.get("response"), location, columns["response"], problems)
        return None if prompt is None or response is None else (Turn("user", prompt), Turn("assistant", response))


def _column_names(settings: DataSettings) -> dict[str, str]:
    for ours, _ in settings.columns:
        if ours not in COLUMNS:
            raise BadSettings(f"data.columns: {ours!r} is not one of our columns; use {', '.join(COLUMNS)}")
    return {name: name for name in COLUMNS} | dict(settings.columns)


def _has_columns(row: Mapping[str, Any], path: Path, column_by_name: Mapping[str, str], problems: Problems) -> bool:
    content = ("messages",) if column_by_name["messages"] in row else ("prompt", "response")
    missing = [name for name in ("persona_id", *content) if column_by_name[name] not in row]
    if missing and path.suffix.lower() == ".csv" and len(names := header(path)) == 1 and (other := _OTHER_SEPARATOR.search(names[0])):
        between = "tabs" if other[0] == "\t" else "semicolons"
        problems.add(SourceLocation(path.name), "csv", f"its columns are separated by {between}", "save the table with commas between them")
        return False
    for name in missing:
        names = header(path)
        more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
        has = printable(", ".join(names[:_MOST_NAMED])) + more
        fix = f"add it, or map one of yours to {name} with data.columns (the file has: {has})"
        problems.add(SourceLocation(path.name), column_by_name[name], "is not a column of the file", fix)
    return not missing


def _split(value: object, location: SourceLocation, name: str, problems: Problems) -> Split | None:
    if value is None:
        return None
    split = SPLIT_NAMES.get(value) if isinstance(value, str) else None
    if split is None:
        problems.add(location, name, f"is {value!r}", "use train, val or test, or leave the column out")
    return split


def _set_description(draft: _Draft, value: object, location: SourceLocation, name: str, problems: Problems) -> None:
    if value is None:
        return
    description = words(value, location, name, problems)
    if draft.description is None:
        draft.description = description
    elif description is not None and description != draft.description:
        problems.add(location, name, f"differs from that at {draft.location}", "describe a persona the same way in all its rows")


def _name(dialogue_id: str | None, turns: tuple[Turn, ...]) -> str:
    """Return a name that depends on the text, not on the order of the rows."""
    name = digest(turns, length=12)
    return name if dialogue_id is None else f"{dialogue_id}/{name}"


def _source_data(people: Mapping[str, _Draft]) -> SourceData:
    personas: list[Persona] = []
    conversations: dict[tuple[str, str], str] = {}
    locations: dict[tuple[str, str], SourceLocation] = {}
    for name, draft in people.items():
        n_rows = Counter(row.dialogue_id for row in draft.rows)
        dialogues: dict[str, Dialogue] = {}
        for row in draft.rows:
            is_whole = row.has_messages and n_rows[row.dialogue_id] == 1
            name_of_row = row.dialogue_id if is_whole and row.dialogue_id else _name(row.dialogue_id, row.turns)
            unique = numbered(name_of_row, dialogues)
            dialogues[unique] = Dialogue(unique, row.turns, split=row.split)
            locations[name, unique] = row.location
            if row.dialogue_id is not None:
                conversations[name, unique] = row.dialogue_id
        personas.append(Persona(name, draft.description, tuple(dialogues.values())))
    twofold = tuple(name for name, draft in people.items() if len(draft.id_types) > 1)
    twofold_dialogues = tuple(
        (name, dialogue_id) for name, draft in people.items() for dialogue_id, types in draft.dialogue_id_types.items() if len(types) > 1
    )
    first = {name: draft.location for name, draft in people.items()}
    return SourceData(
        Dataset(tuple(personas)),
        first,
        locations,
        conversations,
        number_and_text=twofold,
        dialogues_number_and_text=twofold_dialogues,
    )
