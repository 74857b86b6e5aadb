"""The options by which commands are told which study is meant."""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import click

from clusterlora.settings import Study

Command = TypeVar("Command", bound=Callable[..., Any])

_STUDY_OPTIONS = (
    click.option("--preset", help="mission, all, demo or quick.  [default: demo, unless --config or --data is given]"),
    click.option(
        "--config", "file", type=click.Path(path_type=Path, dir_okay=False), help="TOML file with settings; overrides the preset."
    ),
    click.option("--name", help="Name of the study; results go to studies/NAME/."),
    click.option("--data", "path", help="Your dialogues: a file, a folder, or a hub data set id."),
    click.option("--source", help="How to read --data: table (a file) or edgewise (a folder or hub id).  [default: by what --data is]"),
    click.option("--base-model", help="homelm, smollm2-135m, a hub id or a local folder."),
    click.option("--personas", type=click.IntRange(min=2), help="Use only the first so many personas."),
    click.option("--seeds", type=click.IntRange(min=1), help="Train everything so many times, each with another seed."),
    click.option("--controls", is_flag=True, help="Add the controls: a random partition, longer training, the persona in the prompt."),
    click.option("--dialogues", type=click.IntRange(min=3), help="Dialogues per persona: three fifths train, the rest val and test."),
    click.option("--set", "settings", multiple=True, metavar="FIELD=VALUE", help="Any setting by its dotted name; repeatable."),
)


def study_options(command: Command) -> Command:
    """Add the options that `study_from` reads."""
    for option in reversed(_STUDY_OPTIONS):
        command = option(command)
    return command


def study_from(options: Mapping[str, Any], **overrides: Any) -> Study:
    """Return the study that the options describe, or, with a name alone, the study of that name.

    `overrides` (dotted names with `__` for dots) win over all but --set.

    Raises:
        BadSettings: one line per problem.
        UnknownName: no such preset.
    """
    from clusterlora.config import check, parse_setting, resolve
    from clusterlora.methods.method import CONTROLS

    asked: dict[str, Any] = {}
    path, source, base = options["path"], options["source"], options["base_model"]
    if path is not None:
        asked["data.path"] = _absolute(path)
        is_table = Path(path).is_file() or Path(path).suffix.lower() in (".jsonl", ".csv", ".parquet")
        asked["data.source"] = source or ("table" if is_table else "edgewise")
    elif source is not None:
        asked["data.source"] = source
    if options["dialogues"] is not None:
        asked |= _split(options["dialogues"])
    simple = {"data.personas": options["personas"], "name": options["name"], "seeds": options["seeds"]}
    simple["model.base"] = base and _absolute(base)
    asked |= {key: value for key, value in simple.items() if value is not None}
    asked |= {key.replace("__", "."): value for key, value in overrides.items() if value is not None}
    asked |= dict(parse_setting(text) for text in options["settings"])

    if (known := _known_study(options, asked)) is not None:
        return known
    preset = options["preset"]
    if preset is None and options["file"] is None and path is None:
        preset = "demo"
    study = resolve(preset, options["file"], asked)
    if options["controls"]:
        study = replace(study, methods=tuple(dict.fromkeys((*study.methods, *CONTROLS))))
    if path is not None and preset is None and options["file"] is None and "name" not in asked:
        study = replace(study, name=_name_after(path))
        check(study)
    return study


def _known_study(options: Mapping[str, Any], asked: Mapping[str, Any]) -> Study | None:
    """Return the stored settings when nothing but the name of a study is given and there is one of that name."""
    if set(asked) != {"name"} or options["controls"] or options["preset"] or options["file"]:
        return None
    from clusterlora.cli.here import stores_here

    stores = stores_here()
    return stores.studies.study(asked["name"]) if asked["name"] in {name for name, _, _ in stores.studies.studies()} else None


def _absolute(path: str) -> str:
    """Return where a file or folder is, for workers stand elsewhere; an id stays as it is."""
    return str(Path(path).resolve()) if Path(path).exists() else path


def _split(dialogues: int) -> dict[str, int]:
    """Return train, val and test counts in the mission's proportions 3 : 1 : 1, none of them zero."""
    held_out = max(1, dialogues // 5)
    return {
        "data.train": dialogues - 2 * held_out,
        "data.val": held_out,
        "data.test": held_out,
        "data.synthetic.dialogues": dialogues,
    }


def _name_after(path: str) -> str:
    """Return a study name made from a data file's name."""
    stem = re.sub(r"[^a-z0-9]+", "-", Path(path).stem.lower()).strip("-")
    return stem[:48].rstrip("-") or "study"
