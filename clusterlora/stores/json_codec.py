"""Frozen dataclasses to JSON and back, guided by their type hints."""

import dataclasses
import json
import types
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from clusterlora.errors import BadData

T = TypeVar("T")


def to_json(value: object) -> str:
    """Return canonical JSON: sorted keys, so that equal values give equal text."""
    return json.dumps(plain(value), sort_keys=True, separators=(",", ":"))


def from_json(kind: type[T], text: str) -> T:
    """Return the value of type `kind` that `to_json` wrote.

    Raises:
        BadData: the text is not JSON of that type; names the field.
    """
    try:
        return from_plain(kind, json.loads(text))
    except json.JSONDecodeError as error:
        raise BadData(f"stored {_name(kind)} is not JSON ({error}); the database or file was changed by hand") from error


def plain(value: object) -> Any:
    """Return dataclasses as dicts and tuples as lists, all the way down."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [plain(v) for v in cast("list[object]", value)]
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in cast("Mapping[object, object]", value).items()}
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise TypeError(f"cannot write {type(value).__name__} {value!r} as JSON")


def from_plain(kind: type[T], value: object) -> T:
    """Return the value of type `kind` that `plain` made these dicts and lists of. Raises BadData."""
    return cast("T", _read(kind, value, _name(kind)))


def _read(hint: Any, value: Any, where: str) -> Any:
    if hint is Any:
        return value
    origin, args = get_origin(hint), get_args(hint)
    if dataclasses.is_dataclass(hint):
        return _read_dataclass(cast("type[object]", hint), value, where)
    if origin in (Union, types.UnionType):
        return _read_union(args, value, where)
    if origin is Literal:
        if value not in args:
            raise BadData(f"stored {where} is {value!r}, none of {', '.join(map(repr, args))}")
        return value
    if origin is tuple:
        return _read_tuple(args, value, where)
    if origin in (dict, Mapping):
        return {k: _read(args[1], v, f"{where}[{k!r}]") for k, v in _of(dict, value, where).items()}
    if hint is float and type(value) is int:
        return float(value)
    return _of(hint, value, where)


def _read_dataclass(kind: type[object], value: Any, where: str) -> Any:
    hints = _hints(kind)
    fields: dict[str, Any] = _of(dict, value, where)
    if unknown := fields.keys() - hints.keys():
        raise BadData(f"stored {where} has unknown fields {', '.join(sorted(unknown))}; it was written by another version of clusterlora")
    try:
        return kind(**{name: _read(hints[name], v, f"{where}.{name}") for name, v in fields.items()})
    except TypeError as error:
        raise BadData(f"stored {where} is incomplete ({error}); it was written by another version of clusterlora") from error


def _read_union(args: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in args:
        return None
    choices = [a for a in args if a is not type(None)]
    if len(choices) != 1:
        raise TypeError(f"{where}: only X | None can be read back, not a union of {len(choices)} types")
    return _read(choices[0], value, where)


def _read_tuple(args: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    values: list[Any] = _of(list, value, where)
    hints = [args[0]] * len(values) if args[1:] == (...,) else list(args)
    if len(hints) != len(values):
        raise BadData(f"stored {where} has {len(values)} values, not {len(hints)}")
    return tuple(_read(h, v, f"{where}[{i}]") for i, (h, v) in enumerate(zip(hints, values, strict=True)))


def _of(kind: type[T], value: object, where: str) -> T:
    if type(value) is not kind:
        raise BadData(f"stored {where} is {value!r}, not {kind.__name__}")
    return value


def _name(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind)


@cache
def _hints(kind: type[object]) -> dict[str, Any]:
    return get_type_hints(kind)
