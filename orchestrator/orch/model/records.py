"""Frozen dataclasses to JSON documents and back: how states, events and commands are stored and sent.

A document holds only what JSON holds. Generations travel in their text form, enums as their values, integer
keys as text; reading turns them back by the field's type, strictly: a wrong type or an unknown field is a
ValueError that names it, a missing field takes its default.
"""

from __future__ import annotations

import enum
import functools
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, TypeVar

from orch.model.generation import Generation

R = TypeVar("R")

_ABSENT = object()


def to_document(record: Any) -> dict[str, Any]:
    """The JSON document of a dataclass instance."""
    return {field.name: _plain(getattr(record, field.name)) for field in fields(record)}


def from_document(kind: type[R], document: Mapping[str, Any]) -> R:
    """The instance of dataclass `kind` that `document` describes; ValueError if it describes none."""
    key: Any = kind  # mypy takes type[R] for unhashable
    hints = _hints(key)
    unknown = sorted(set(document) - set(hints))
    if unknown:
        raise ValueError(f"{kind.__name__}: unknown field {unknown[0]!r}; it has {', '.join(hints)}")
    values: dict[str, Any] = {}
    for field in _fields(key):
        raw = document.get(field.name, _ABSENT)
        if raw is not _ABSENT:
            values[field.name] = _typed(hints[field.name], raw, f"{kind.__name__}.{field.name}")
        elif field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"{kind.__name__}: field {field.name!r} is missing")
    return kind(**values)


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


@functools.cache
def _fields(kind: Any) -> tuple[Field[Any], ...]:
    return fields(kind)


def _plain(value: Any) -> Any:
    if isinstance(value, Generation):
        return str(value)
    if isinstance(value, enum.Enum):
        return value.value
    if is_dataclass(value):
        return to_document(value)
    if isinstance(value, Mapping):
        return {str(_plain(key)): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


def _typed(hint: Any, raw: Any, where: str) -> Any:
    """`raw` as a value of the type `hint`; `where` names it in the error."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return raw
    if origin in {types.UnionType, typing.Union}:
        if raw is None and type(None) in arguments:
            return None
        (inner,) = [argument for argument in arguments if argument is not type(None)]
        return _typed(inner, raw, where)
    if origin is tuple:
        _expect(raw, list, where)
        return tuple(_typed(arguments[0], item, where) for item in raw)
    if origin in {dict, Mapping} or origin is typing.get_origin(Mapping[str, Any]):
        _expect(raw, dict, where)
        key_hint, item_hint = arguments
        return {
            (int(key) if key_hint is int else key): _typed(item_hint, item, where)
            for key, item in raw.items()
        }
    return _leaf(hint, raw, where)


def _leaf(hint: Any, raw: Any, where: str) -> Any:
    if hint is Generation:
        _expect(raw, str, where)
        return Generation.parse(raw)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return hint(raw)
    if is_dataclass(hint) and isinstance(hint, type):
        _expect(raw, dict, where)
        return from_document(hint, raw)
    if hint is float and isinstance(raw, int) and not isinstance(raw, bool):
        return float(raw)
    _expect(raw, hint, where)
    return raw


def _expect(raw: Any, kind: Any, where: str) -> None:
    if not isinstance(raw, kind) or (kind is int and isinstance(raw, bool)):
        raise ValueError(f"{where}: {raw!r} is no {kind.__name__}")
