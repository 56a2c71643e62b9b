"""What is asked of settings from outside before they are used: their names, and whether numbers are numbers."""

import math
import types
import typing
from collections.abc import Collection, Iterable, Mapping
from dataclasses import fields
from typing import Any, TypeVar

from diptych.core.spelling import unknown

SettingsT = TypeVar("SettingsT")


def is_whole(value: Any) -> bool:
    """True is no number here, though Python counts it as one."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """A finite one, whole or not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def check_keys(what: str, entries: Collection[str], known: Iterable[str], required: Iterable[str] = ()) -> None:
    """Raises: ValueError for an entry that is not known, or for what is required and is not there."""
    names = list(known)
    for key in entries:
        if key not in names:
            raise unknown(f"{what} setting", str(key), names)
    missing = [key for key in required if key not in entries]
    if missing:
        raise ValueError(f"{what} settings lack {', '.join(missing)}")


def settings_of(cls: type[SettingsT], what: str, values: Mapping[str, Any]) -> SettingsT:
    """The dataclass of settings `cls` from a table of JSON.

    Raises:
        ValueError: for a setting that it has not or of another type, and whatever its `__post_init__` raises.
    """
    check_keys(what, values, [entry.name for entry in fields(cls)])  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    return cls(**{key: typed(value, hints[key], f"{what} {key}") for key, value in values.items()})


def typed(value: Any, wanted: Any, where: str) -> Any:
    """A value of JSON or TOML as the type that a dataclass's field is annotated with: lists as tuples, whole numbers
    as floats.

    Raises:
        ValueError: a value of another type; `where` is what the message calls it.
    """
    origin = typing.get_origin(wanted)
    if origin in (typing.Union, types.UnionType):
        kinds = typing.get_args(wanted)
        if value is None and type(None) in kinds:
            return None
        return typed(value, next(kind for kind in kinds if kind is not type(None)), where)
    if wanted is Any:
        return value
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if origin in (list, tuple) and isinstance(value, list | tuple):
        inner = typing.get_args(wanted)[0]
        return origin(typed(entry, inner, where) for entry in value)
    if origin is dict and isinstance(value, dict):
        inner = typing.get_args(wanted)[1]
        return {key: typed(entry, inner, f"{where}.{key}") for key, entry in value.items()}
    plain = origin or wanted
    if isinstance(value, plain) and not (plain is int and isinstance(value, bool)):
        return value
    names = {
        int: "a whole number",
        float: "a number",
        str: "a string",
        bool: "true or false",
        list: "a list",
        tuple: "a list",
    }
    raise ValueError(f"{where} must be {names.get(plain, 'a table')}, not {value!r}")
