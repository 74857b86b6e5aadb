"""Reads a study's settings: class default < preset < TOML file < flags; later wins. The only module that uses pydantic.

`resolve` refuses impossible settings before anything runs: unknown names, values out of range, sizes that do not add up.
"""

import difflib
import json
import os
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import TypeAdapter, ValidationError

from clusterlora.catalog import Catalog
from clusterlora.errors import BadSettings, printable
from clusterlora.settings import Study
from clusterlora.study_checks import problems, problems_of_new

_STUDY: TypeAdapter[Study] = TypeAdapter(Study)

_MISSION: Mapping[str, Any] = {
    "data": {"train": 30, "val": 10, "test": 10, "synthetic": {"cluster_sizes": [16, 52, 25, 35, 72], "dialogues": 50}},
    "clustering": {"algorithm": "responses_given_prompts", "k": 5, "sizes": [16, 52, 25, 35, 72]},
    "recipe": {"rank": 8, "alpha": 16.0, "epochs": 3, "batch_size": 2, "learning_rate": 5e-4},
    "gate": {"mean_similarity": 0.83, "worst_persona": 0.70, "share_improved": 0.60},
}

# Without them nothing would tell a gain because of who people are from one by smaller groups, or by any adapter of one person.
_CONTROLS = ["random_cluster", "swapped_persona"]
_MISSION_METHODS = ["baseline", "unified", "per_persona", "hybrid", "prefix", "selective_routing", "cluster", "merge", *_CONTROLS]

_RETRIEVAL = ["retrieval", "unified_retrieval", "cluster_retrieval", "hybrid_retrieval"]

_MEASURED: Mapping[str, Any] = {"held_out_share": 0.2}

PRESETS: Catalog[Mapping[str, Any]] = Catalog(
    "preset",
    {
        "mission": {
            **_MISSION,
            "name": "mission",
            "methods": _MISSION_METHODS,
            "assignment": _MEASURED,
        },
        "all": {
            **_MISSION,
            "name": "all",
            "methods": [*_MISSION_METHODS, "few_shot", "cluster_hybrid", *_RETRIEVAL],
            "assignment": _MEASURED,
        },
        "demo": {
            **_MISSION,
            "name": "demo",
            # 0.83 and 0.70 are absolute similarities of the mission's data and base model; a share holds on any scale.
            "gate": {"mean_similarity": None, "worst_persona": None, "share_improved": 0.60},
        },
        "quick": {
            **_MISSION,
            "name": "quick",
            "data": {"train": 3, "val": 1, "test": 2, "synthetic": {"cluster_sizes": [4, 8, 4, 6, 8], "dialogues": 6}},
            "clustering": {**_MISSION["clustering"], "sizes": [4, 8, 4, 6, 8]},
            "recipe": {**_MISSION["recipe"], "epochs": 1},
            # So few personas pass a gate only by luck: the gate judges, and the study continues in any case.
            "gate": {"mean_similarity": None, "worst_persona": None, "share_improved": 0.60, "ladder": [], "on_failure": "continue"},
            "evaluation": {"bootstrap_draws": 2000},
        },
        # By the clock: a slower machine, or longer dialogues, leave fewer of them (docs/commands.md).
        "taste": {
            "name": "taste",
            "minutes": 15,
            "methods": ["baseline", "unified", "cluster", "random_cluster"],
            "data": {"personas": 40, "train": 10, "val": 4, "test": 6},
            "model": {"base": "smollm2-135m"},
            "recipe": {"epochs": 1},
            "gate": {"mean_similarity": None, "worst_persona": None, "ladder": [], "on_failure": "continue"},
            "evaluation": {"metrics": ["nll", "likelihood", "prompt_tokens"], "headline": "nll"},
        },
        "overnight": {
            "name": "overnight",
            "minutes": 480,
            "methods": ["baseline", "unified", "per_persona", "cluster", "selective_routing", "random_cluster", "swapped_persona"],
            "data": {"personas": 200, "train": 20, "val": 8, "test": 8},
            "model": {"base": "smollm2-135m"},
            "recipe": {"epochs": 2},
            # Nobody is there to decide.
            "gate": {"mean_similarity": None, "worst_persona": None, "ladder": [], "on_failure": "continue"},
        },
    },
)

_INVENTED = ("demo", "quick")
"""Presets of invented people alone, whose clusters are planted; the mission asks five clusters of any people."""

_LABELS: Mapping[str, Any] = {
    "evaluation": {"metrics": ["accuracy", "macro_f1", "nll", "prompt_tokens"], "headline": "accuracy"},
    # These thresholds are similarities.
    "gate": {"mean_similarity": None, "worst_persona": None},
}

TASKS: Mapping[str, Mapping[str, Any]] = {
    "text": {},
    "label": _LABELS,
    "rating": {
        **_LABELS,
        "evaluation": {"metrics": ["mae", "rmse", "accuracy", "macro_f1", "nll", "prompt_tokens"], "headline": "mae"},
    },
}
"""What a task decides, over the preset and under everything that is given."""

PATHS = ("data.path", "data.splits", "model.base", "model.embedding", "judge.preferences")
"""Settings that may be the path of a file or folder."""
_NONE_IS_A_VALUE = ("model.quantisation", "model.device_map")
"""Settings one of whose values is called none; of all others it stands for no value."""
_FILES = (".jsonl", ".json", ".csv", ".parquet", ".txt")
"""Endings by which a path is that of a file, whether it is there or not."""


def resolve(preset: str | None = None, file: Path | None = None, overrides: Mapping[str, Any] | None = None) -> Study:
    """Return the study of a preset, a TOML file and dotted overrides (`{"data.train": 20}`).

    A task of labels or ratings decides metrics, headline and what a method's choice goes by, over the preset's.
    A preset's exact cluster sizes fit the preset's own personas: they are dropped when a later layer changes the personas or the number of
    clusters without giving sizes. So is the number of clusters that was planted among invented people, where others take their place.

    Raises:
        BadSettings: one line per problem, each naming the field, its value and the fix.
        UnknownName: no such preset.
    """
    defaults = PRESETS[preset] if preset else {}
    changes = _merged(_beside(file.absolute().parent, _read(file)) if file else {}, _nested(overrides or {}))
    merged = _for_task(_merged(defaults, changes), changes)
    clustering = _table(merged, "clustering")
    if clustering and "clustering" in defaults and _changes_personas(changes) and "sizes" not in _table(changes, "clustering"):
        planted = preset in _INVENTED and {"source", "path"} & set(_table(changes, "data")) and "k" not in _table(changes, "clustering")
        merged["clustering"] = {key: value for key, value in clustering.items() if key != "sizes" and not (planted and key == "k")}
    return from_mapping(merged)


def _for_task(settings: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings with what their task decides and no file or flag does; without a headline, the first metric that was named."""
    decided = TASKS.get(str(_at(settings, "data.task")), {})
    if not decided:
        return settings
    merged = _merged(_merged(settings, decided), changes)
    evaluation = dict(_table(merged, "evaluation"))
    if "selection_metric" not in _table(changes, "evaluation"):
        evaluation["selection_metric"] = evaluation["headline"]
    return {**merged, "evaluation": evaluation}


def from_mapping(settings: Mapping[str, Any]) -> Study:
    """Return the study of a nested mapping. Raises BadSettings, one line per problem."""
    try:
        study = _STUDY.validate_python(settings)
    except ValidationError as problems:
        lines = [_explained(error) for error in problems.errors(include_url=False)]
        raise BadSettings("\n".join(lines)) from None
    check(study)
    return study


def as_mapping(study: Study) -> dict[str, Any]:
    """Return a study as nested JSON-ready values; `from_mapping` reads them back."""
    return asdict(study)


def check(study: Study, *, is_new: bool = False) -> None:
    """Refuse impossible combinations, and of a study that is not recorded yet what it lacks. Raises BadSettings, one line per problem."""
    if lines := [*problems(study), *(problems_of_new(study) if is_new else ())]:
        raise BadSettings("\n".join(lines))


def parse_setting(text: str) -> tuple[str, Any]:
    """Return the dotted field and the value of `field=value`; the value is TOML, or else plain text.

    Raises:
        BadSettings: there is no `=`, or no field before it.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise BadSettings(f"{text!r} is not a setting; write field=value, for example recipe.epochs=1")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except (ValueError, RecursionError):
        turns_off = value.strip() == "none" and key.strip() not in _NONE_IS_A_VALUE
        return key.strip(), None if turns_off else value.strip()


_MOST_CHARACTERS = 1_000_000
"""Of a configuration's file; a device has no end."""


def _read(file: Path) -> dict[str, Any]:
    try:
        with file.open(encoding="utf-8") as opened:
            text = opened.read(_MOST_CHARACTERS + 1)
        if len(text) <= _MOST_CHARACTERS:
            return tomllib.loads(text)
    except FileNotFoundError:
        raise BadSettings(f"{file}: no such configuration file") from None
    except (OSError, UnicodeDecodeError) as problem:
        raise BadSettings(f"{file}: cannot be read ({problem}); a configuration is a UTF-8 TOML file") from problem
    except (ValueError, RecursionError) as problem:  # a number with thousands of digits, brackets nested thousands deep
        raise BadSettings(f"{file}: not valid TOML: {problem}; correct it there") from problem
    raise BadSettings(f"{file}: has more than {_MOST_CHARACTERS:,} characters, so it is no configuration; name the TOML file")


def _beside(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a file in this folder with absolute paths: relative ones start at the file, wherever a process runs.

    What may also be the name of a model or data set is a path if there is something there.
    """
    given = {name: value for name in PATHS if isinstance(value := _at(settings, name), str)}
    return _merged(settings, _nested({name: absolute_path(value, folder) for name, value in given.items()}))


def absolute_path(path: str, folder: Path) -> str:
    """Return the absolute path of what lies at `path`, seen from this folder.

    The name of a model that needs no hub is unchanged, and so is what is not there and may be a hub id. What is named like a file is one:
    nothing of that name elsewhere is taken for it.
    """
    from clusterlora.models.base import BASE_MODELS
    from clusterlora.models.embedding import EMBEDDING_MODELS

    if not path or path in BASE_MODELS or path in EMBEDDING_MODELS:
        return path
    if "\0" in path:
        raise BadSettings(f"{path!r} is no path: it contains a null character; remove it")
    if path.startswith("~/"):
        path = str(Path(path).expanduser())
    if not (folder / path).exists() and Path(path).suffix.lower() not in _FILES:
        return path
    return os.path.realpath(folder / path)


def _at(settings: Mapping[str, Any], name: str) -> object:
    """Return the value under a dotted name; None when there is none."""
    table, _, field = name.partition(".")
    return _table(settings, table).get(field)


def _nested(overrides: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in overrides.items():
        *parents, leaf = path.split(".")
        branch: dict[str, Any] = {leaf: value}
        for parent in reversed(parents):
            branch = {parent: branch}
        tree = _merged(tree, branch)
    return tree


def _merged(lower: Mapping[str, Any], higher: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(lower)
    for key, value in higher.items():
        lower_value = result.get(key)
        result[key] = _merged(lower_value, value) if isinstance(lower_value, Mapping) and isinstance(value, Mapping) else value
    return result


def _changes_personas(changes: Mapping[str, Any]) -> bool:
    data = _table(changes, "data")
    others = {"source", "path", "personas"} & set(data) or "cluster_sizes" in _table(data, "synthetic")
    return bool(others) or "k" in _table(changes, "clustering")


def _table(settings: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return the table of settings under a name; empty when the value is no table, which validation refuses later."""
    table = settings.get(name, {})
    return table if isinstance(table, Mapping) else {}


def _explained(error: Any) -> str:
    """Return one line naming the field, its value and the fix for one of pydantic's errors."""
    path = printable(".".join(str(part) for part in error["loc"])) or "study"
    kind, value, bound = error["type"], error["input"], error.get("ctx", {})
    if kind == "unexpected_keyword_argument":
        return f"{path}: no such setting{_suggestion(error['loc'])}"
    if kind == "missing":
        return f"{path}: missing; give it a value"
    fixes = {
        "greater_than_equal": f"use at least {bound.get('ge')}",
        "greater_than": f"use more than {bound.get('gt')}",
        "less_than_equal": f"use at most {bound.get('le')}",
        "string_type": f"write it as a text, in quotes: {json.dumps(str(value))}",
        "string_too_short": f"use at least {bound.get('min_length')} character",
        "string_too_long": f"use at most {bound.get('max_length')} characters",
        "literal_error": f"use {bound.get('expected')}",
        "tuple_type": "use a list, for example [1, 2]",
        "dataclass_type": f"use a table of settings ([{path}] in TOML)",
    }
    if kind.startswith("int_"):
        fixes[kind] = "use a whole number"
    elif kind.startswith("float_"):
        fixes[kind] = "use a number"
    elif kind.startswith("bool_"):
        fixes[kind] = "use true or false"
    return f"{path} = {value!r}: {fixes.get(kind, error['msg'])}"


def _suggestion(location: tuple[str | int, ...]) -> str:
    """Return the closest setting to an unknown one, or else all known ones."""
    names = _known_fields(Study, location[:-1])
    close = difflib.get_close_matches(str(location[-1]), names, n=1)
    if close:
        return f"; did you mean {printable('.'.join(str(part) for part in (*location[:-1], close[0])))}?"
    return f"; known: {', '.join(names)}" if names else ""


def _known_fields(kind: Any, path: tuple[str | int, ...]) -> list[str]:
    if not path:
        return [field.name for field in fields(kind)] if is_dataclass(kind) else []
    head, *rest = path
    if isinstance(head, int):
        return _known_fields(kind, tuple(rest))
    if not is_dataclass(kind):
        return []
    inner = next((field.type for field in fields(kind) if field.name == head), None)
    dataclasses = [option for option in (inner, *get_args(inner)) if is_dataclass(option)]
    return _known_fields(dataclasses[0], tuple(rest)) if dataclasses else []
