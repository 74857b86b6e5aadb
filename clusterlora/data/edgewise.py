"""Source `edgewise`: files of characters, routines and sessions whose n-th lines describe one persona (schema of EdgeWisePersona)."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from clusterlora.data.lines import json_records
from clusterlora.data.problems import Problems, SourceLocation
from clusterlora.data.records import identifier, scalars, turns, words
from clusterlora.data.source import SourceData
from clusterlora.errors import BadData
from clusterlora.settings import DataSettings
from clusterlora.values import Dataset, Dialogue, Persona

FILES = ("characters.jsonl", "routines.jsonl", "sessions.jsonl")

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_Line = tuple[SourceLocation, dict[str, Any] | None]


def read_edgewise(settings: DataSettings, problems: Problems) -> SourceData:
    """Return the personas of a folder or hub data set, named by line number: persona_000, persona_001, ...

    Raises:
        BadData: the folder or data set does not exist, or lacks a file.
    """
    folder = _folder(settings.path)
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise BadData(f"{folder}: {' and '.join(missing)} missing; the edgewise source needs {', '.join(FILES)} in one folder")
    characters, routines, sessions = ([*json_records(folder / name, problems)] for name in FILES)
    lines = {
        name: {location.line for location, _ in records} for name, records in zip(FILES, (characters, routines, sessions), strict=True)
    }
    for name in FILES[1:]:
        if lines[name] != lines[FILES[0]]:
            first_unmatched = min(number for number in lines[name] ^ lines[FILES[0]] if number is not None)
            what = f"has {len(lines[name])} records, {FILES[0]} has {len(lines[FILES[0]])}"
            problems.add(SourceLocation(name, first_unmatched), "alignment", what, "keep line n of every file for the same persona")
            return SourceData(Dataset(()))
    return _source_data(characters, sessions, problems)


def dataset_of(characters: Iterable[Mapping[str, Any]], sessions: Iterable[Mapping[str, Any]]) -> Dataset:
    """Return the personas of records in memory.

    Raises:
        BadData: a record does not match the schema.
    """
    problems = Problems()
    numbered = [
        [(SourceLocation(name, n), dict(r)) for n, r in enumerate(records, start=1)]
        for name, records in zip(FILES[::2], (characters, sessions), strict=True)
    ]
    data = _source_data(numbered[0], numbered[1], problems)
    problems.raise_any()
    return data.dataset


def _folder(path: str | None) -> Path:
    if path is None:
        raise BadData("data.path is missing; the edgewise source needs a folder or a hub data set id")
    folder = Path(path)
    if folder.is_dir():
        return folder
    if not _HUB_ID.fullmatch(path):
        raise BadData(f"{path}: no such folder; give one with {', '.join(FILES)}, or a hub data set id such as owner/name")
    return _from_hub(path)


def _from_hub(dataset_id: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(dataset_id, repo_type="dataset", allow_patterns=[f"*{name}" for name in FILES]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        cause = str(error).strip().splitlines()[0]
        raise BadData(
            f"{dataset_id}: no folder of this name, and the hub data set cannot be fetched ({cause}); "
            f"copy {', '.join(FILES)} into a folder and give its path, or use data.source=synthetic"
        ) from error


def _source_data(characters: Iterable[_Line], sessions: Iterable[_Line], problems: Problems) -> SourceData:
    personas: list[Persona] = []
    locations: dict[str, SourceLocation] = {}
    for number, ((location, character), (sessions_location, line)) in enumerate(zip(characters, sessions, strict=True)):
        persona_id = f"persona_{number:03d}"
        description = None if character is None else words(character.get("character"), location, "character", problems)
        dialogues = () if line is None else _dialogues(line, sessions_location, problems)
        personas.append(Persona(persona_id, description, dialogues))
        locations[persona_id] = sessions_location
    return SourceData(Dataset(tuple(personas)), locations)


def _dialogues(line: Mapping[str, Any], location: SourceLocation, problems: Problems) -> tuple[Dialogue, ...]:
    sessions = line.get("sessions")
    if not isinstance(sessions, list):
        problems.add(location, "sessions", "is not a list", 'write {"sessions": [...]} on each line')
        return ()
    dialogues: dict[str, Dialogue] = {}
    for index, session in enumerate(sessions):
        field = f"sessions[{index}]"
        if not isinstance(session, dict):
            problems.add(location, field, "is not an object", "write {session_id, meta, messages, applied_routines}")
            continue
        session_id = identifier(session.get("session_id"), location, f"{field}.session_id", problems)
        context = scalars(session.get("meta"), location, f"{field}.meta", problems)
        dialogue = turns(session.get("messages"), location, f"{field}.messages", problems)
        if session_id in dialogues:
            problems.add(location, f"{field}.session_id", f"{session_id!r} appears twice", "give every session of a persona its own id")
        elif session_id is not None and context is not None and dialogue is not None:
            dialogues[session_id] = Dialogue(session_id, dialogue, context)
    return tuple(dialogues.values())
