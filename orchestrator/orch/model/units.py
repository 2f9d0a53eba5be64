"""Durations (`90s`, `1h30m`) and sizes (`8GiB`) as people write them, to and from numbers.

Parsing is exact (no binary fractions on the way), and formatting loses nothing that was parsed.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction

__all__ = [
    "DURATION_ALLOWED",
    "DURATION_S_MAX",
    "SIZE_ALLOWED",
    "SIZE_BYTES_MAX",
    "UNLIMITED",
    "UnitError",
    "describe_size",
    "format_duration",
    "format_size",
    "parse_duration_s",
    "parse_size_bytes",
]

UNLIMITED = "unlimited"
"""The word for a budget without a limit."""

DURATION_S_MAX = 10 * 366 * 86_400
"""Ten years: longer than anything that is meant, and far from any overflow."""
SIZE_BYTES_MAX = 1 << 60

DURATION_ALLOWED = "a duration such as 90s, 10m or 1h30m, or a number of seconds"
SIZE_ALLOWED = "a size such as 512MiB, 8GiB or 8GB, or a number of bytes"

_TEXT_CHARS_MAX = 64
"""No duration or size needs more; keeps the exact arithmetic below small whatever the input."""

# Largest first: a duration names each unit at most once, in this order.
_UNIT_MS = {"w": 604_800_000, "d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1_000, "ms": 1}
_DURATION_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(ms|[wdhms])\s*")

_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]+)")
_BINARY_UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40, "PiB": 1 << 50}
_DECIMAL_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "PB": 10**15}
_SIZE_UNITS = {
    "b": 1,
    **{unit.lower(): size for unit, size in (_BINARY_UNITS | _DECIMAL_UNITS).items()},
    # Kubernetes' spelling. Its plain K, M, G are decimal while Slurm's are binary, so those are refused.
    **{unit[:2].lower(): size for unit, size in _BINARY_UNITS.items()},
}


class UnitError(ValueError):
    """The text is no duration or size; the message says why, without the text itself."""


def parse_duration_s(value: object) -> int | float:
    """`"1h30m"` → 5400; a plain number counts as seconds. An int whenever the result is whole.

    Raises UnitError for anything else: no unit in a text, negative, not finite, over DURATION_S_MAX.
    """
    if isinstance(value, str):
        seconds = _duration_text_s(value.strip())
    elif isinstance(value, bool) or not isinstance(value, int | float):
        raise UnitError("is no duration")
    else:
        seconds = _exact(value)
    if seconds < 0:
        raise UnitError("is negative")
    if seconds > DURATION_S_MAX:
        raise UnitError("is longer than ten years")
    return int(seconds) if seconds.denominator == 1 else float(seconds)


def _exact(value: float) -> Fraction:
    if isinstance(value, float) and not math.isfinite(value):
        raise UnitError("is not a finite number")
    return Fraction(value)


def _duration_text_s(text: str) -> Fraction:
    if not text or len(text) > _TEXT_CHARS_MAX:
        raise UnitError("is no duration")
    total_ms, position, smallest = Fraction(0), 0, math.inf
    while position < len(text):
        part = _DURATION_PART.match(text, position)
        if part is None:
            if re.fullmatch(r"[0-9]+(\.[0-9]+)?", text):
                raise UnitError("has no unit")
            raise UnitError("is no duration")
        unit_ms = _UNIT_MS[part[2]]
        if unit_ms >= smallest:
            raise UnitError("names its units out of order")
        total_ms += Fraction(part[1]) * unit_ms
        position, smallest = part.end(), unit_ms
    return total_ms / 1000


def format_duration(seconds: float) -> str:
    """5400 → `1h30m`, 0.25 → `250ms`. Exact to the microsecond; needs a finite number of 0 or more."""
    if not math.isfinite(seconds) or seconds < 0:
        raise UnitError("is no duration")
    text, left_us = "", round(seconds * 1_000_000)
    for unit in ("w", "d", "h", "m"):
        count, left_us = divmod(left_us, _UNIT_MS[unit] * 1000)
        text += f"{count}{unit}" if count else ""
    if left_us >= 1_000_000:
        text += f"{_decimal(left_us / 1_000_000)}s"
    elif left_us:
        text += f"{_decimal(left_us / 1000)}ms"
    return text or "0s"


def _decimal(value: float) -> str:
    return f"{value:.6f}".rstrip("0").rstrip(".")


def parse_size_bytes(value: object) -> int:
    """`"8GiB"` → 8589934592, `"8GB"` → 8000000000; a plain whole number counts as bytes.

    Raises UnitError for anything else: no unit in a text, an ambiguous one (`8G`), negative, too large.
    """
    if isinstance(value, str):
        size_bytes = _size_text_bytes(value.strip())
    elif isinstance(value, bool) or not isinstance(value, int):
        raise UnitError("is no size")
    else:
        size_bytes = value
    if size_bytes < 0:
        raise UnitError("is negative")
    if size_bytes > SIZE_BYTES_MAX:
        raise UnitError(f"is more than {format_size(SIZE_BYTES_MAX)}")
    return size_bytes


def _size_text_bytes(text: str) -> int:
    if len(text) > _TEXT_CHARS_MAX:
        raise UnitError("is no size")
    if re.fullmatch(r"[0-9]+", text):
        raise UnitError("has no unit")
    found = _SIZE.fullmatch(text)
    if found is None:
        raise UnitError("is no size")
    number, unit = found[1], found[2]
    size = _SIZE_UNITS.get(unit.lower())
    if size is None and unit.upper() in {"K", "M", "G", "T", "P"}:
        letter = unit.upper()
        raise UnitError(f"is ambiguous: {number}{letter}iB (binary) or {number}{letter}B (decimal)")
    if size is None:
        raise UnitError(f"has an unknown unit {unit!r}")
    return int(Fraction(number) * size)


def format_size(size_bytes: int) -> str:
    """The exact size in the largest unit that divides it: 8589934592 → `8GiB`, 8000000000 → `8GB`."""
    units = _BINARY_UNITS | _DECIMAL_UNITS
    for unit in sorted(units, key=units.__getitem__, reverse=True):
        if size_bytes >= units[unit] and size_bytes % units[unit] == 0:
            return f"{size_bytes // units[unit]}{unit}"
    return f"{size_bytes}B"


def describe_size(size_bytes: int) -> str:
    """About how large, for people: 1395864371 → `1.3 GiB`."""
    for unit, size in reversed(_BINARY_UNITS.items()):
        if size_bytes >= size:
            return f"{size_bytes / size:.1f} {unit}"
    return f"{size_bytes} B"
