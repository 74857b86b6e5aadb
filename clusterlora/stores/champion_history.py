"""The champions of a registered model, in their order: a tag of the model has every move of the alias."""

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

CHAMPION = "champion"
HISTORY = "champions"
"""The model's tag."""
_MOST = 50
"""Moves that are kept: MLflow limits the length of a tag."""


@dataclass(frozen=True, slots=True)
class Move:
    """A move of the alias to a version: when (ISO 8601, UTC) and why. `back` says that it was a rollback."""

    version: str
    at: str
    why: str
    back: bool = False


def history(client: MlflowClient, name: str) -> tuple[Move, ...]:
    """Return the moves of a model's alias, oldest first; a champion from before moves were recorded is the first."""
    model = client.get_registered_model(name)
    moves = tuple(Move(**move) for move in json.loads(model.tags.get(HISTORY, "[]")))
    current = model.aliases.get(CHAMPION)
    if current is not None and (not moves or moves[-1].version != str(current)):
        moves = (*moves, Move(str(current), "", "before moves were recorded, or by other means"))
    return moves


def move_champion(client: MlflowClient, name: str, version: str, why: str, *, back: bool = False) -> None:
    """Move the alias to a version and record it; nothing where the version has the alias already."""
    moves = history(client, name)
    if moves and moves[-1].version == version:
        return
    moves = (*moves, Move(version, datetime.now(UTC).isoformat(timespec="seconds"), why, back))[-_MOST:]
    client.set_registered_model_alias(name, CHAMPION, version)
    client.set_registered_model_tag(name, HISTORY, json.dumps([asdict(move) for move in moves]))


def before(moves: tuple[Move, ...]) -> str | None:
    """Return the version that was champion before the present one and was not left by a rollback; None where there was none."""
    stack: list[str] = []
    for move in moves:
        if move.back and len(stack) > 1:
            stack.pop()
        else:
            stack.append(move.version)
    return stack[-2] if len(stack) > 1 else None


def study_of_champion(client: MlflowClient, name: str) -> tuple[str, str] | None:
    """Return the study and the method of the version that has the alias; None where there is none."""
    try:
        version = client.get_model_version_by_alias(name, CHAMPION)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise
    return version.tags["study"], version.tags["method"]
