"""Command-line options that describe a study."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import click

from clusterlora.settings import Study

Command = TypeVar("Command", bound=Callable[..., Any])


class Dialogues(click.ParamType[int | str]):
    """A number of dialogues from 3 on, or `all`."""

    name = "N|all"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        """Return the number, or `all`; anything else is a usage error."""
        return "all" if value == "all" else click.IntRange(min=3).convert(value, param, ctx)


class FiniteRange(click.FloatRange):
    """A number within bounds; infinity and what is no number, which pass every comparison of click's, are usage errors."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


_STUDY_OPTIONS = (
    click.option(
        "--preset",
        help="taste (own data: is it worth it?), overnight (own data), mission, all, demo or quick.  [default: demo, unless --config or "
        "--data is given]",
    ),
    click.option(
        "--config", "file", type=click.Path(path_type=Path, dir_okay=False), help="TOML file with settings; overrides the preset."
    ),
    click.option("--name", help="Name of the study; results go to studies/NAME/."),
    click.option("--data", "path", help="Your dialogues: a file, a folder, or a hub data set id."),
    click.option("--source", help="How to read --data: table (a file), edgewise (a folder or hub id) or lamp.  [default: by its type]"),
    click.option(
        "--base-model",
        help="smollm2-135m, a hub id, a local folder, or homelm, which knows smart-home talk only.  [default: homelm for synthetic people]",
    ),
    click.option("--personas", type=click.IntRange(min=2), help="Use the first N personas at most."),
    click.option("--seeds", type=click.IntRange(min=1), help="Train everything N times, each time with another seed."),
    click.option("--tune", type=click.IntRange(2, 64), help="Recipes to try for every method alike; the lowest val loss decides."),
    click.option("--controls", is_flag=True, help="Add the controls, such as a random partition and longer training."),
    click.option(
        "--dialogues", type=Dialogues(), help="Dialogues per persona, at least 3, or all: three fifths train, the rest val and test."
    ),
    click.option("--set", "settings", multiple=True, metavar="FIELD=VALUE", help="Set any setting by its dotted name; repeatable."),
)


N_WORKERS = click.IntRange(1, 256)
"""More workers are a slip: each is a process of 85 MB that asks the server for work every three seconds."""


def study_options(command: Command) -> Command:
    """Add the options that `study_from` reads."""
    for option in reversed(_STUDY_OPTIONS):
        command = option(command)
    return command


def study_from(options: Mapping[str, Any], **overrides: Any) -> Study:
    """Return the study that the options describe; if only --name is given, the stored study of that name.

    `overrides`, dotted names with `__` for dots, override everything but --set.

    Raises:
        BadSettings: one line per problem.
        UnknownName: no such preset.
    """
    from clusterlora.config import PATHS, absolute_path, check, resolve
    from clusterlora.methods import controls

    values: dict[str, Any] = {}
    path, source, base = options["path"], options["source"], options["base_model"]
    if path is not None:
        values["data.path"] = path
        is_table = Path(path).is_file() or Path(path).suffix.lower() in (".jsonl", ".csv", ".parquet")
        values["data.source"] = source or ("table" if is_table else "edgewise")
    elif source is not None:
        values["data.source"] = source
    if options["dialogues"] is not None:
        values |= _split(options["dialogues"])
    simple = {"data.personas": options["personas"], "name": options["name"], "seeds": options["seeds"], "tune": options["tune"]}
    simple["model.base"] = base
    values |= {key: value for key, value in simple.items() if value is not None}
    values |= {key.replace("__", "."): value for key, value in overrides.items() if value is not None}
    values |= _set_values(options, values)
    # Workers have another working directory.
    values |= {name: absolute_path(value, Path.cwd()) for name, value in values.items() if name in PATHS and isinstance(value, str)}

    if (stored := _stored_study(options, values)) is not None:
        return stored
    preset = options["preset"]
    if preset is None and options["file"] is None and path is None:
        preset = "demo"
    study = resolve(preset, options["file"], values)
    if options["controls"]:
        study = replace(study, methods=tuple(dict.fromkeys((*study.methods, *controls()))))
        check(study)
    if path is not None and options["file"] is None and "name" not in values:
        study = replace(study, name=_name_from(path, preset))
        check(study)
    return study


def _set_values(options: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what --set gives; where that is another value than an option's, say which of the two counts."""
    from clusterlora.config import parse_setting

    given = dict(parse_setting(text) for text in options["settings"])
    # A number of dialogues is shares that may be refined, and a source that nobody named is a guess.
    refined: set[str] = set() if options["dialogues"] is None else set(_split(options["dialogues"]))
    if options["source"] is None:
        refined.add("data.source")
    by_option = {key: value for key, value in values.items() if key not in refined}
    for key in [key for key in by_option if key in given and by_option[key] != given[key]]:
        click.echo(f"{key} = {given[key]!r}, as --set says: it counts more than the option, {by_option[key]!r}", err=True)
    return given


def _stored_study(options: Mapping[str, Any], values: Mapping[str, Any]) -> Study | None:
    """Return the stored study if only a name is given and there is a study of that name; else None."""
    if set(values) != {"name"} or options["controls"] or options["preset"] or options["file"]:
        return None
    from clusterlora.cli.local_stores import open_local_stores

    stores = open_local_stores()
    return stores.studies.study(values["name"]) if values["name"] in {name for name, _, _ in stores.studies.studies()} else None


def _split(dialogues: int | str) -> dict[str, int | str]:
    """Return train, val and test counts in the proportions 3 : 1 : 1, each at least 1."""
    if isinstance(dialogues, str):
        return {"data.dialogues": dialogues, "data.train": 3, "data.val": 1, "data.test": 1}
    held_out = max(1, dialogues // 5)
    return {
        "data.train": dialogues - 2 * held_out,
        "data.val": held_out,
        "data.test": held_out,
        "data.synthetic.dialogues": dialogues,
    }


def _name_from(path: str, preset: str | None) -> str:
    """Return a study name derived from the name of a data file and, if there is one, that of the preset: `people-taste`."""
    stem = re.sub(r"[^a-z0-9]+", "-", Path(path).stem.lower()).strip("-") or "study"
    ending = f"-{preset}" if preset else ""
    return stem[: 48 - len(ending)].rstrip("-") + ending
