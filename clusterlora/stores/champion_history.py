"""The champions of a registered model, in their order: a tag of the model has every move of the alias."""

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

CHAMPION = "champion"
HISTORY = "champions"
"""The model's tag."""
_MOST_CHARACTERS = 5000
"""Length of a tag in MLflow's database; as many of the last moves are kept as fit."""
_MOST_OF_WHY = 200
"""Characters of a reason that are kept."""


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
    """Move the alias to a version and record it; nothing where the version has the alias already.

    The record comes first: a server that refuses it leaves the alias where it was.
    """
    moves = history(client, name)
    if not moves or moves[-1].version != version:
        short = why if len(why) <= _MOST_OF_WHY else f"{why[: _MOST_OF_WHY - 3]}..."
        moves = (*moves, Move(version, datetime.now(UTC).isoformat(timespec="seconds"), short, back))
        client.set_registered_model_tag(name, HISTORY, _as_tag(moves))
    if str(client.get_registered_model(name).aliases.get(CHAMPION)) != version:
        client.set_registered_model_alias(name, CHAMPION, version)


def _as_tag(moves: tuple[Move, ...]) -> str:
    """Return the last moves as JSON, as many as fit into a tag."""
    while len(text := json.dumps([asdict(move) for move in moves], ensure_ascii=False)) > _MOST_CHARACTERS:
        moves = moves[1:]
    return text


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
