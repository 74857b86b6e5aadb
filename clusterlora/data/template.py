"""An example data set that shows every way to write a dialogue, with a commented configuration."""

import json
from pathlib import Path
from typing import Any

from clusterlora.data.synthetic import generate
from clusterlora.durable import write_durably
from clusterlora.errors import BadData
from clusterlora.settings import SyntheticSettings
from clusterlora.values import Persona

_PEOPLE = SyntheticSettings(cluster_sizes=(3, 3), dialogues=8, seed=7)

_CONFIGURATION = """\
# A study of your own people. Check the data:  clusterlora data validate --config {toml}
#                             run the study:   clusterlora study run --config {toml}
#
# {people} has one line per dialogue (or one per exchange), each a JSON object with:
#   persona_id           any text
#   prompt, response     the user's turn and the assistant's response; or instead of these two
#   messages             a whole dialogue: [{{"role": "user", "text": "..."}}, {{"role": "assistant", "text": "..."}}, ...]
# and optionally:
#   persona_description  the same in all rows of a persona
#   dialogue_id          rows with the same id get the same split
#   split                train, val or test; without it every persona's dialogues are split by a stable hash
# The people in it are synthetic: replace its lines with yours. CSV and Parquet files with these columns work as well.

name = "{name}"

# Methods to compare. `clusterlora study run --preset all --show-settings` prints every method and every setting.
# The last two are controls: they tell a gain because of who people are from one that any grouping, or any small adapter, has.
methods = ["baseline", "unified", "per_persona", "cluster", "random_cluster", "swapped_persona"]

[data]
source = "table"
path = {path}
# columns = [["prompt", "question"], ["response", "answer"]]    # [our name, your name] of columns with other names
train = 4    # dialogues per persona to train on ...
val = 2      # ... to make choices (gate, routing) ...
test = 2     # ... and for the final scores only

[clustering]
k = 2        # number of clusters (--set clustering.k=none: as many as predict answers that were held out, or one)
min_size = 2

[model]
base = "homelm"    # embedded in the package, for a first try; then a hub id such as "Qwen/Qwen2.5-0.5B-Instruct", or a local folder
system_prompt = "You are a smart home assistant."

[gate]
worst_persona = 0.0        # similarities depend on your data: start with a low threshold
on_failure = "continue"    # stop, ask, or continue
"""


def write_template(folder: Path) -> tuple[Path, Path]:
    """Write people.jsonl and study.toml to a folder, created if missing; return their paths.

    Raises:
        BadData: one of the files exists.
    """
    people, toml = folder / "people.jsonl", folder / "study.toml"
    for file in (people, toml):
        if file.exists():
            raise BadData(f"{file} exists and is not overwritten; choose another folder")
    rows = [row for persona in generate(_PEOPLE).dataset.personas for row in _rows(persona)]
    write_durably(people, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
    # A JSON string is a TOML string.
    settings = _CONFIGURATION.format(people=people.name, toml=toml, name=_name(folder), path=json.dumps(str(people)))
    write_durably(toml, settings.encode())
    return people, toml


def _name(folder: Path) -> str:
    letters = "".join(c if c.isascii() and c.isalnum() else "-" for c in folder.resolve().name.lower()).strip("-")
    return letters[:48].rstrip("-") or "my-people"


def _rows(persona: Persona) -> list[dict[str, Any]]:
    """Return a persona's dialogues as rows: one with a single exchange as prompt and response, a longer one as messages."""
    rows: list[dict[str, Any]] = []
    for dialogue in persona.dialogues:
        row: dict[str, Any] = {"persona_id": persona.id}
        if len(dialogue.turns) == 2:
            row |= {"prompt": dialogue.turns[0].text, "response": dialogue.turns[1].text}
        else:
            row["messages"] = [{"role": turn.role, "text": turn.text} for turn in dialogue.turns]
        rows.append(row | {"persona_description": persona.description})
    return rows
