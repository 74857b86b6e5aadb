"""Source `table`: one row per dialogue, as `persona_id, prompt, response` or `persona_id, messages`."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clusterlora.data.problems import Place, Problems
from clusterlora.data.reading import Reading
from clusterlora.data.records import SPLIT_NAMES, identifier, instructions, turns, words
from clusterlora.data.rows import every_row_has_all_columns, rows
from clusterlora.errors import BadData, BadSettings
from clusterlora.settings import DataSettings
from clusterlora.values import Dataset, Dialogue, Persona, Split, Turn, digest

COLUMNS = ("persona_id", "prompt", "response", "messages", "persona_description", "dialogue_id", "split")


def read_table(settings: DataSettings, problems: Problems) -> Reading:
    """Return the personas of a JSONL, CSV or Parquet file in the order of their first rows.

    A prompt and its response are a dialogue of their own, named `<dialogue_id>/<hash of the words>`; rows that share a
    `dialogue_id` are one conversation.

    Raises:
        BadData: there is no such file.
        BadSettings: `columns` maps a column we do not have.
    """
    if settings.path is None:
        raise BadData("data.path is missing; the table source needs a .jsonl, .csv or .parquet file")
    theirs = _column_names(settings)
    path = Path(settings.path)
    people: dict[str, _Draft] = {}
    n_rows = 0
    for place, row in rows(path, problems):
        n_rows += 1
        if n_rows == 1 and every_row_has_all_columns(path) and not _has_columns(row, place, theirs, problems):
            return Reading(Dataset(()))
        ours = {name: row[their] for name, their in theirs.items() if row.get(their) is not None}
        _add_row(ours, place, theirs, people, problems)
    if not n_rows and not problems.count:
        problems.add(Place(path.name), "file", "has no rows", "give a file with dialogues")
    return _reading(people)


@dataclass(slots=True)
class _Draft:
    """A persona while its rows are read."""

    place: Place
    description: str | None = None
    dialogues: dict[str, Dialogue] = field(default_factory=dict[str, Dialogue])
    conversations: dict[str, str] = field(default_factory=dict[str, str])


def _column_names(settings: DataSettings) -> dict[str, str]:
    for ours, _ in settings.columns:
        if ours not in COLUMNS:
            raise BadSettings(f"data.columns: {ours!r} is not one of our columns; use {', '.join(COLUMNS)}")
    return {name: name for name in COLUMNS} | dict(settings.columns)


def _has_columns(row: Mapping[str, Any], place: Place, theirs: Mapping[str, str], problems: Problems) -> bool:
    content = ("messages",) if theirs["messages"] in row else ("prompt", "response")
    missing = [name for name in ("persona_id", *content) if theirs[name] not in row]
    for name in missing:
        fix = f"add it, or map one of yours to {name} with data.columns (found: {', '.join(row)})"
        problems.add(Place(place.file), theirs[name], "is no column of the file", fix)
    return not missing


def _add_row(row: Mapping[str, Any], place: Place, theirs: Mapping[str, str], people: dict[str, _Draft], problems: Problems) -> None:
    persona_id = identifier(row.get("persona_id"), place, theirs["persona_id"], problems)
    said = _said(row, place, theirs, problems)
    split = _split(row.get("split"), place, theirs["split"], problems)
    stated = row.get("dialogue_id")
    dialogue_id = None if stated is None else identifier(stated, place, theirs["dialogue_id"], problems)
    if persona_id is None:
        return
    draft = people.setdefault(persona_id, _Draft(place))
    _describe(draft, row.get("persona_description"), place, theirs["persona_description"], problems)
    if said is None or (stated is not None and dialogue_id is None):
        return
    context, said = instructions(said)
    unique = dialogue_id
    if dialogue_id is None or "messages" not in row:
        unique = _unique_id(dialogue_id, said, draft.dialogues)
    elif dialogue_id in draft.dialogues:
        what = f"{dialogue_id!r} of persona {persona_id!r} is there twice"
        problems.add(place, theirs["dialogue_id"], what, "give every dialogue of a persona its own id")
        return
    if unique is not None:
        draft.dialogues[unique] = Dialogue(unique, said, context, split)
        if dialogue_id is not None:
            draft.conversations[unique] = dialogue_id


def _said(row: Mapping[str, Any], place: Place, theirs: Mapping[str, str], problems: Problems) -> tuple[Turn, ...] | None:
    if "messages" in row:
        messages = row["messages"]
        if isinstance(messages, str):
            try:
                messages = json.loads(messages)
            except (ValueError, RecursionError):
                problems.add(place, theirs["messages"], "is not JSON", 'write [{"role": "user", "text": "..."}, ...]')
                return None
        return turns(messages, place, theirs["messages"], problems)
    if "prompt" not in row and "response" not in row:
        what = f"neither {theirs['messages']} nor {theirs['prompt']} and {theirs['response']}"
        problems.add(place, theirs["messages"], f"is missing: the row has {what}", "add a column or map yours with data.columns")
        return None
    prompt = words(row.get("prompt"), place, theirs["prompt"], problems)
    response = words(row.get("response"), place, theirs["response"], problems)
    return None if prompt is None or response is None else (Turn("user", prompt), Turn("assistant", response))


def _split(value: object, place: Place, name: str, problems: Problems) -> Split | None:
    if value is None:
        return None
    split = SPLIT_NAMES.get(value) if isinstance(value, str) else None
    if split is None:
        problems.add(place, name, f"is {value!r}", "use train, val or test, or leave the column out")
    return split


def _describe(draft: _Draft, value: object, place: Place, name: str, problems: Problems) -> None:
    if value is None:
        return
    description = words(value, place, name, problems)
    if draft.description is None:
        draft.description = description
    elif description is not None and description != draft.description:
        problems.add(place, name, f"differs from the one at {draft.place}", "describe a persona the same way in all its rows")


def _unique_id(dialogue_id: str | None, said: tuple[Turn, ...], taken: Mapping[str, Dialogue]) -> str:
    """Return an id that depends on the words, not on the order of the rows; equal rows are numbered."""
    name = digest(said, length=12)
    name = name if dialogue_id is None else f"{dialogue_id}/{name}"
    copies = 1
    unique = name
    while unique in taken:
        copies += 1
        unique = f"{name}.{copies}"
    return unique


def _reading(people: Mapping[str, _Draft]) -> Reading:
    return Reading(
        Dataset(tuple(Persona(name, draft.description, tuple(draft.dialogues.values())) for name, draft in people.items())),
        {name: draft.place for name, draft in people.items()},
        {(name, dialogue): talk for name, draft in people.items() for dialogue, talk in draft.conversations.items()},
    )
