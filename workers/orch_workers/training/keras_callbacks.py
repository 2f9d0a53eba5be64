"""The state of Keras' callbacks: what is plain of their attributes, and has changed since the training began."""

# ruff: noqa: SLF001 - EarlyStopping and its like choose their comparison by a method that begins with an underscore

from __future__ import annotations

from typing import Any

from .arrays import numpy_module

_NOT_STATE = frozenset(("model", "_model", "params", "_params", "validation_data"))
_COMPARES = "~monitor_op"
"""Whether EarlyStopping and its like have chosen their comparison; choosing it turns the sign of another attribute."""
_PLAIN = (bool, int, float, str, type(None))
_DEPTH_MAX = 6


def state_of(callback: Any) -> dict[str, Any]:
    """What is plain of a callback's attributes."""
    found = {
        key: _copied(value)
        for key, value in vars(callback).items()
        if key not in _NOT_STATE and _is_plain(value)
    }
    return {**found, _COMPARES: getattr(callback, "monitor_op", None) is not None}


def put_state(callback: Any, state: dict[str, Any]) -> None:
    if state.get(_COMPARES) and callback.monitor_op is None:
        callback._set_monitor_op()
    for key, value in state.items():
        if key != _COMPARES:
            setattr(callback, key, value)


def _is_plain(value: Any, depth: int = 0) -> bool:
    if type(value) in _PLAIN:
        return True
    numpy = numpy_module()
    if numpy is not None and (isinstance(value, numpy.generic) or type(value) is numpy.ndarray):
        return not value.dtype.hasobject
    if type(value) in (list, tuple) and depth < _DEPTH_MAX:
        return all(_is_plain(item, depth + 1) for item in value)
    if type(value) is dict and depth < _DEPTH_MAX:
        return all(_is_plain(item, depth + 1) for pair in value.items() for item in pair)
    return False


def _copied(value: Any) -> Any:
    """Containers anew: what a callback appends to later is not what was there."""
    if type(value) in (list, tuple):
        return type(value)(_copied(item) for item in value)
    return {key: _copied(item) for key, item in value.items()} if type(value) is dict else value


def equal(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if type(one) in (list, tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    if type(one) is dict:
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    numpy = numpy_module()
    if numpy is not None and isinstance(one, (numpy.ndarray, numpy.generic)):
        return bool(numpy.arrayequal(one, other))
    return bool(one == other)
