"""Source `edgewise`: three line-aligned files of characters, routines and sessions, one persona per line (EdgeWisePersona's schema)."""

from collections.abc import Iterable, Mapping
from typing import Any

from clusterlora.values import Dataset, Dialogue, Persona, Turn


def dataset_of(characters: Iterable[Mapping[str, Any]], sessions: Iterable[Mapping[str, Any]]) -> Dataset:
    """Return the personas of valid records, named by their line: persona_000, persona_001, ..."""
    return Dataset(
        tuple(
            Persona(f"persona_{number:03d}", str(character["character"]), tuple(_dialogue(session) for session in line["sessions"]))
            for number, (character, line) in enumerate(zip(characters, sessions, strict=True))
        )
    )


def _dialogue(session: Mapping[str, Any]) -> Dialogue:
    turns = tuple(Turn(message["role"], message["text"]) for message in session["messages"])
    return Dialogue(str(session["session_id"]), turns, tuple(session["meta"].items()))
