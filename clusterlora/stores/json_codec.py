"""Frozen dataclasses to JSON and back, guided by their type hints."""

import dataclasses
import json
import types
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from itertools import repeat
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
    """Return the value of type `kind` from the dicts and lists that `plain` returned. Raises BadData."""
    try:
        return cast("T", _reader(kind)(value))
    except _MisfitError as misfit:
        raise BadData(f"stored {_name(kind)}{misfit.where} {misfit.what}") from misfit


class _MisfitError(Exception):
    """A value that is not of its type; `where` is its path, which each enclosing reader prefixes with its own part."""

    def __init__(self, what: str, where: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where

    def inside(self, path: str) -> "_MisfitError":
        return _MisfitError(self.what, path + self.where)


_Reader = Callable[[Any], Any]


@cache
def _reader(hint: Any) -> _Reader:
    """Return the function that reads values of a type; cached, because a study's data are hundreds of thousands of values."""
    if hint is Any:
        return lambda value: value
    origin, args = get_origin(hint), get_args(hint)
    if dataclasses.is_dataclass(hint):
        return _dataclass_reader(cast("type[object]", hint))
    if origin in (Union, types.UnionType):
        return _optional_reader(args)
    if origin is Literal:
        return _literal_reader(args)
    if origin is tuple:
        return _series_reader(args[0]) if args[1:] == (...,) else _tuple_reader(args)
    if origin in (dict, Mapping):
        return _mapping_reader(args[1])
    if hint is float:
        return lambda value: float(value) if type(value) is int else _checked(float, value)
    return lambda value: _checked(hint, value)


def _dataclass_reader(kind: type[object]) -> _Reader:
    readers = {name: _reader(hint) for name, hint in get_type_hints(kind).items()}

    def read(value: Any) -> Any:
        fields: dict[str, Any] = _checked(dict, value)
        values: dict[str, Any] = {}
        name = ""
        try:
            for name, field in fields.items():
                values[name] = readers[name](field)
            return kind(**values)
        except _MisfitError as misfit:
            raise misfit.inside(f".{name}") from None
        except KeyError:
            unknown = ", ".join(sorted(fields.keys() - readers.keys()))
            raise _MisfitError(f"has unknown fields {unknown}; it was written by another version of clusterlora") from None
        except TypeError as error:
            raise _MisfitError(f"is incomplete ({error}); it was written by another version of clusterlora") from error

    return read


def _optional_reader(args: tuple[Any, ...]) -> _Reader:
    choices = [a for a in args if a is not type(None)]
    if len(choices) != 1 or len(choices) == len(args):
        raise TypeError(f"only X | None can be read back, not a union of {len(choices)} types")
    reader = _reader(choices[0])
    return lambda value: None if value is None else reader(value)


def _literal_reader(choices: tuple[Any, ...]) -> _Reader:
    def read(value: Any) -> Any:
        if value not in choices:
            raise _MisfitError(f"is {value!r}, none of {', '.join(map(repr, choices))}")
        return value

    return read


def _series_reader(hint: Any) -> _Reader:
    reader = _reader(hint)
    return lambda value: _read_each(repeat(reader), _checked(list, value))


def _tuple_reader(hints: tuple[Any, ...]) -> _Reader:
    readers = [_reader(hint) for hint in hints]

    def read(value: Any) -> Any:
        if len(_checked(list, value)) != len(readers):
            raise _MisfitError(f"has {len(value)} values, not {len(readers)}")
        return _read_each(readers, value)

    return read


def _read_each(readers: Iterable[_Reader], values: list[Any]) -> tuple[Any, ...]:
    typed: list[Any] = []
    try:
        for reader, value in zip(readers, values, strict=False):
            typed.append(reader(value))
    except _MisfitError as misfit:
        raise misfit.inside(f"[{len(typed)}]") from None
    return tuple(typed)


def _mapping_reader(hint: Any) -> _Reader:
    reader = _reader(hint)

    def read_one(key: str, value: Any) -> Any:
        try:
            return reader(value)
        except _MisfitError as misfit:
            raise misfit.inside(f"[{key!r}]") from None

    return lambda value: {key: read_one(key, item) for key, item in _checked(dict, value).items()}


def _checked(kind: type[T], value: object) -> T:
    """Return the value if it is exactly of this type."""
    if type(value) is not kind:
        raise _MisfitError(f"is {value!r}, not {kind.__name__}")
    return value


def _name(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind)
