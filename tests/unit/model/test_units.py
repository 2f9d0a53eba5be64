from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orch.model.units import (
    DURATION_S_MAX,
    SIZE_BYTES_MAX,
    UnitError,
    describe_size,
    format_duration,
    format_size,
    parse_duration_s,
    parse_size_bytes,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("10m", 600),
        ("1h30m", 5400),
        ("1h 30m", 5400),
        (" 1d2h3m4s5ms ", 93784.005),
        ("500ms", 0.5),
        ("1.5h", 5400),
        ("0s", 0),
        (600, 600),
        (0.25, 0.25),
    ],
)
def test_durations(text, seconds):
    assert parse_duration_s(text) == seconds


def test_whole_durations_are_integers():
    assert isinstance(parse_duration_s("1.5h"), int)
    assert isinstance(parse_duration_s(2.0), int)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("", "is no duration"),
        ("90", "has no unit"),
        ("-90s", "is no duration"),
        ("90 parsecs", "is no duration"),
        ("30m1h", "out of order"),
        ("1h1h", "out of order"),
        ("1s" + " " * 100, None),
        ("9" * 100 + "s", "is no duration"),
        ("100000000h", "longer than ten years"),
        (-1, "is negative"),
        (float("nan"), "not a finite number"),
        (float("inf"), "not a finite number"),
        (DURATION_S_MAX + 1, "longer than ten years"),
        (10**400, "longer than ten years"),
        (True, "is no duration"),
        (None, "is no duration"),
        (["1s"], "is no duration"),
        ("१s", "is no duration"),
    ],
)
def test_what_is_no_duration_says_why(value, message):
    if message is None:
        assert parse_duration_s(value) == 1
        return
    with pytest.raises(UnitError, match=message):
        parse_duration_s(value)


@given(st.integers(min_value=0, max_value=DURATION_S_MAX * 1000))
def test_formatting_a_duration_loses_nothing(milliseconds):
    seconds = parse_duration_s(milliseconds / 1000)
    assert parse_duration_s(format_duration(seconds)) == pytest.approx(seconds, abs=1e-6)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (5400, "1h30m"),
        (0.25, "250ms"),
        (90.5, "1m30.5s"),
        (0, "0s"),
        (0.0005, "0.5ms"),
        (604800, "1w"),
        (1.0005, "1.0005s"),
    ],
)
def test_durations_are_written_as_people_write_them(seconds, text):
    assert format_duration(seconds) == text


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf")])
def test_what_is_no_duration_is_not_formatted(seconds):
    with pytest.raises(UnitError):
        format_duration(seconds)


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("8GiB", 8 << 30),
        ("8Gi", 8 << 30),
        ("8 gib", 8 << 30),
        ("8GB", 8 * 10**9),
        ("1.5KiB", 1536),
        ("512MiB", 512 << 20),
        ("12B", 12),
        ("0.1B", 0),
        (1024, 1024),
    ],
)
def test_sizes(text, size_bytes):
    assert parse_size_bytes(text) == size_bytes


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("8", "has no unit"),
        ("8G", r"ambiguous: 8GiB \(binary\) or 8GB \(decimal\)"),
        ("8XiB", "unknown unit 'XiB'"),
        ("-8GiB", "is no size"),
        ("", "is no size"),
        ("lots", "is no size"),
        (-1, "is negative"),
        (1.5, "is no size"),
        (float("nan"), "is no size"),
        (True, "is no size"),
        ("2000000PiB", "is more than 1024PiB"),
        (SIZE_BYTES_MAX + 1, "is more than"),
    ],
)
def test_what_is_no_size_says_why(value, message):
    with pytest.raises(UnitError, match=message):
        parse_size_bytes(value)


@given(st.integers(min_value=0, max_value=SIZE_BYTES_MAX))
def test_formatting_a_size_loses_nothing(size_bytes):
    assert parse_size_bytes(format_size(size_bytes)) == size_bytes


def test_sizes_for_people():
    assert format_size(8 << 30) == "8GiB"
    assert format_size(8 * 10**9) == "8GB"
    assert describe_size(1395864371) == "1.3 GiB"
    assert describe_size(12) == "12 B"
