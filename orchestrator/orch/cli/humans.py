"""Numbers, times and texts as people read them."""

from __future__ import annotations

import unicodedata
from datetime import UTC, datetime
from typing import Any

ABSENT = "-"
"""Stands where there is nothing to show."""

_UNITS_S = (("d", 86_400), ("h", 3600), ("m", 60), ("s", 1))


def span(seconds: float | None) -> str:
    """A length of time in its two largest units: 0.25 → `0.25s`, 192 → `3m12s`, 93784 → `1d2h`."""
    if seconds is None:
        return ABSENT
    if seconds < 10:
        return f"{max(seconds, 0.0):.2f}".rstrip("0").rstrip(".") + "s"
    left = round(seconds)
    parts: list[str] = []
    for unit, size in _UNITS_S:
        count, left = divmod(left, size)
        if count or parts:
            parts.append(f"{count}{unit}")
    return "".join(part for part in parts[:2] if not part.startswith("0"))


def moment(text: str | None) -> datetime | None:
    """A time of a document (RFC 3339), or None if it is absent or unreadable."""
    if not text:
        return None
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def clock(text: str | None, *, with_ms: bool = False) -> str:
    """A time of a document on the reader's own clock."""
    time = moment(text)
    if time is None:
        return ABSENT
    local = time.astimezone()
    return f"{local:%Y-%m-%d %H:%M:%S}" + (f".{local.microsecond // 1000:03d}" if with_ms else "")


def between_s(start: str | None, end: str | None, now: datetime | None = None) -> float | None:
    """Seconds from one time of a document to another; an absent end is now."""
    first, last = moment(start), moment(end) or now or datetime.now(UTC)
    return None if first is None else (last - first).total_seconds()


def number(value: Any) -> str:
    """A measured value, short: 0.123456 → `0.1235`, 12 → `12`."""
    if value is None:
        return ABSENT
    if isinstance(value, bool) or not isinstance(value, int | float):
        return clean(str(value))
    return str(value) if isinstance(value, int) else f"{value:.4g}"


def percent(share: float | None) -> str:
    return ABSENT if share is None else f"{100 * share:.1f}%"


def count(amount: int, what: str) -> str:
    """`1 file`, `3 files`."""
    return f"{amount} {what}" if amount == 1 else f"{amount} {what}s"


def clean(text: str) -> str:
    """Text of a job for a terminal: control characters, which could move its cursor, are made visible."""
    return "".join(
        character if character in "\n\t" or unicodedata.category(character) not in {"Cc", "Cf"} else "�"
        for character in text
    )


def one_line(text: str | None) -> str:
    return " ".join(clean(text).split()) if text else ""
