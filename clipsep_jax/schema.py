"""Values from outside, such as those of JSON files, checked against types before they are believed."""

import dataclasses
import math
import reprlib
from collections.abc import Callable
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

MOST_LEVELS = 64  # of lists and objects within each other
_MOST_INT = 2**63 - 1
_MOST_SHOWN = 60  # characters

_WORDS: dict[Any, str] = {str: "text", bool: "true or false", int: "a whole number", float: "a number"}

T = TypeVar("T")


class SchemaError(ValueError):
    """A value is not of the type that is needed; the message names it."""


def checked(kind: type[T] | Any, value: Any, name: str = "") -> T:
    """Give a value as an instance of a type, if it is one, or describes one.

    Objects (dicts) become dataclasses, lists become tuples, and whole numbers become floats, where the type says so.

    Args:
        kind: str, bool, int, float, dict, list, Any, a dataclass of such fields, a Literal, `X | Y`, `list[X]`,
            `tuple[X, ...]` or `dict[str, X]`.
        name: of the value, for messages.

    Raises:
        SchemaError: it is not, a number is not finite or has more than 64 bits, or lists lie too deep in each other.
    """
    if type(value) is kind and kind in (str, bool):
        return value
    described: Any = kind
    return _checker(described)(described, value, name)


@cache
def _fields(kind: type) -> tuple[dict[str, Any], frozenset[str]]:
    """The types of the fields of a dataclass, and the names of those that must be given."""
    hints = get_type_hints(kind)
    fields = dataclasses.fields(kind)
    needed = [
        field.name
        for field in fields
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    return {field.name: hints[field.name] for field in fields}, frozenset(needed)


@cache
def _checker(kind: Any) -> Callable[[Any, Any, str], Any]:
    if dataclasses.is_dataclass(kind):
        return _dataclass
    origin = get_origin(kind) or kind
    return _CHECKERS.get(origin, _plain)


def _dataclass(kind: type, value: Any, name: str) -> Any:
    if isinstance(value, kind):
        return value
    _need(isinstance(value, dict), name, "an object", value)
    types, needed = _fields(kind)
    for key in value:
        if key not in types:
            raise _error(name, f"has an unknown {shown(key)}")
    for key in needed:
        if key not in value:
            raise _error(name, f"lacks {key!r}")
    return kind(**{key: checked(types[key], item, dotted(name, key)) for key, item in value.items()})


def _plain(kind: Any, value: Any, name: str) -> Any:
    _need(type(value) is kind, name, _WORDS.get(kind, kind.__name__), value)
    return value


def _int(kind: Any, value: Any, name: str) -> int:
    _need(type(value) is int, name, _WORDS[int], value)
    if abs(value) > _MOST_INT:
        raise _error(name, "is too large a number")
    return value


def _float(kind: Any, value: Any, name: str) -> float:
    _need(type(value) in (int, float), name, _WORDS[float], value)
    if abs(value) > _MOST_INT if type(value) is int else not math.isfinite(value):
        raise _error(name, "is not a finite number")
    return float(value)


def _any(kind: Any, value: Any, name: str) -> Any:
    """Whatever JSON can hold, but not too deep."""
    level, depth = [value], 0
    while level:
        level = [item for outer in level if isinstance(outer, list | dict) for item in _items(outer)]
        depth += 1
        if depth > MOST_LEVELS:
            raise _error(name, f"has more than {MOST_LEVELS} lists and objects within each other")
    return value


def _items(value: list | dict) -> Any:
    return value.values() if isinstance(value, dict) else value


def _list(kind: Any, value: Any, name: str) -> Any:
    _need(isinstance(value, list | tuple), name, "a list", value)
    if kind is list:
        return _any(kind, value, name)
    item, origin = get_args(kind)[0], get_origin(kind)
    return origin(checked(item, one, f"{name}[{number}]") for number, one in enumerate(value))


def _dict(kind: Any, value: Any, name: str) -> Any:
    _need(isinstance(value, dict), name, "an object", value)
    if kind is dict:
        return _any(kind, value, name)
    item = get_args(kind)[1]
    return {key: checked(item, one, dotted(name, key)) for key, one in value.items()}


def _literal(kind: Any, value: Any, name: str) -> Any:
    choices = get_args(kind)
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        raise _error(name, f"is {shown(value)}, not one of {', '.join(map(repr, choices))}")
    return value


def _union(kind: Any, value: Any, name: str) -> Any:
    problem: SchemaError | None = None
    for option in get_args(kind):
        if option is NoneType:
            if value is None:
                return None
            continue
        try:
            return checked(option, value, name)
        except SchemaError as error:
            problem = problem or error
    assert problem is not None
    raise problem


_CHECKERS: dict[Any, Callable[[Any, Any, str], Any]] = {
    Any: _any,
    int: _int,
    float: _float,
    list: _list,
    tuple: _list,
    dict: _dict,
    Literal: _literal,
    Union: _union,
    UnionType: _union,
}


def _need(is_so: bool, name: str, wanted: str, value: Any) -> None:
    if not is_so:
        raise _error(name, f"is {shown(value)}, not {wanted}")


def _error(name: str, problem: str) -> SchemaError:
    return SchemaError(f"{name or 'it'} {problem}")


def dotted(name: str, key: str) -> str:
    """The name of the value `key` in the object `name`."""
    known = key if key.isidentifier() and len(key) < _MOST_SHOWN else shown(key)
    return f"{name}.{known}" if name else known


def shown(value: Any) -> str:
    """A value from outside as a short text that can be printed."""
    brief = reprlib.Repr()
    brief.maxlevel, brief.maxstring, brief.maxother = 2, _MOST_SHOWN, _MOST_SHOWN
    return brief.repr(value)
