"""What surprises in YAML is refused; nothing that a hostile file holds can take long or fill memory."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orch.model.strict_yaml import DEPTH_MAX, parse_yaml


def read(text):
    document = parse_yaml(text.encode() if isinstance(text, str) else text, "job.yaml")
    assert document.problems == []
    return document


def problems(text):
    document = parse_yaml(text.encode() if isinstance(text, str) else text, "job.yaml")
    assert document.problems
    return document.problems


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("on", "on"),
        ("yes", "yes"),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("1", 1),
        ("-7", -7),
        ("+7", 7),
        ("0x1F", 31),
        ("0o17", 15),
        ("010", "010"),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("2026-01-01", "2026-01-01"),
        ("1.10", 1.1),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("5.", 5.0),
        (".inf", math.inf),
        ("-.inf", -math.inf),
        ("1e999", math.inf),
        ("9" * 5000, "9" * 5000),
        ("'1'", "1"),
        ('"true"', "true"),
        ("|\n  two\n  lines", "two\nlines"),
        ("1.2.3", "1.2.3"),
        ("=", "="),
    ],
)
def test_scalars_follow_yaml_1_2(text, value):
    read_value = read(f"a: {text}").data["a"]
    assert read_value == value
    assert type(read_value) is type(value)


def test_nan_is_a_number_and_its_text_is_kept():
    document = read("a: {b: .nan, c: 1.10, d: x}")
    assert math.isnan(document.data["a"]["b"])
    assert document.texts == {("a", "b"): ".nan", ("a", "c"): "1.10"}


def test_every_value_knows_its_line():
    document = read("run: x\nlist:\n  - 1\n  - {b: 2,\n     c: 3}\nempty:\n")
    lines = {path: place.line for path, place in document.places.items()}
    assert lines == {
        (): 1,
        ("run",): 1,
        ("list",): 2,
        ("list", 0): 3,
        ("list", 1): 4,
        ("list", 1, "b"): 4,
        ("list", 1, "c"): 5,
        ("empty",): 6,
    }


def test_keys_are_text():
    assert read("1: a\ntrue: b\n2026-01-01: c").data == {"1": "a", "true": "b", "2026-01-01": "c"}


def test_a_byte_order_mark_is_no_character():
    assert read(b"\xef\xbb\xbfrun: x").data == {"run": "x"}


REFUSED = {
    "duplicate keys": ("a: 1\nb: {c: 1,\n c: 2}\n", 3, "b.c", "stands here twice (first on line 2)"),
    "tab as indentation": ("a:\n\tb: 1\n", 2, "", "a tab stands here"),
    "tab after a scalar": ("run: x\n\tworkdir: y\n", 2, "", "a tab stands here"),
    "tab before a value": ("run:\tx\n", 1, "", "a tab stands here"),
    "anchor": ("a: &x 1\n", 1, "a", "the anchor &x is not read"),
    "alias": ("a: [*x]\n", 1, "a[0]", "the alias *x is not read"),
    "anchored key": ("&x a: 1\n", 1, "", "the anchor &x is not read"),
    "merge key": ("a: {<<: {b: 1}}\n", 1, "a.'<<'", "merge keys are not read"),
    "tag": ("a: !!python/object:os.system x\n", 1, "a", "the tag"),
    "own tag": ("a: !x [1]\n", 1, "a", "the tag '!x' is not read"),
    "second document": ("a: 1\n---\nb: 2\n", 2, "", "second document"),
    "not UTF-8": (b"a: 1\nb: \xff\n", 2, "", "not UTF-8"),
    "UTF-16": ("a: 1".encode("utf-16"), 1, "", "not UTF-8"),
    "control character": ("a: 1\nb: \x01\n", 2, "", "a character that YAML does not allow (0x1)"),
    "NUL": ('a: "x\\0"\n', 1, "a", "NUL"),
    "half a surrogate pair": ('a: "\\ud800"\n', 1, "a", "half a surrogate pair"),
    "escape out of range": ('a: "\\UFFFFFFFF"\n', 1, "", "out of range"),
    "version of 5,000 digits": ("%YAML 1." + "9" * 5000 + "\n---\na: 1\n", 1, "", "out of range"),
    "list as key": ("? [a]\n: b\n", 1, "", "a key must be plain text"),
    "mapping as key": ("a:\n  ? {b: [1]}\n  : {c: d}\n", 2, "a", "a key must be plain text"),
    "empty key": ("{'': 1}\n", 1, "", "cannot be a key"),
    "unclosed": ("a: [1\n", 2, "", "is not valid YAML"),
    "colon in a value": ("run: python -c x: 1\n", 1, "", "must be quoted"),
    "nested too deep": ("[" * 5000, 1, "", f"more than {DEPTH_MAX} levels deep"),
    "nested mappings": ("{a: " * 5000, 1, "", f"more than {DEPTH_MAX} levels deep"),
    "nested keys": ("? " * 100 + "a", 1, "", None),
    "10 MB": (b"a: 1\n" * 2_000_000, None, "", "larger than 1 MiB"),
    "too many values": ("a: [" + "1," * 30_000 + "]", 1, "", "more than 20000 values"),
}


@pytest.mark.parametrize(("text", "line", "path", "message"), REFUSED.values(), ids=REFUSED)
def test_refusals(text, line, path, message):
    problem = problems(text)[-1 if message is None else 0]
    assert (problem.file, problem.line, problem.path) == ("job.yaml", line, path)
    assert message is None or message in problem.message


def test_an_alias_bomb_expands_to_nothing():
    bomb = "a0: &a0 [x, x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30)
    )
    document = parse_yaml(bomb.encode(), "job.yaml")
    assert len(document.problems) == 30 + 29 * 9
    assert len(json.dumps(document.data)) < 5000


def test_problems_are_collected_and_the_rest_is_read():
    document = parse_yaml(b"a: &x 1\nb: *x\nc: 3\nc: 4\nd: 5\n", "job.yaml")
    assert [problem.line for problem in document.problems] == [1, 2, 4]
    assert document.data == {"a": 1, "b": None, "c": 3, "d": 5}
    assert document.has_refused(("c",))
    assert not document.has_refused(("d",))


@given(
    st.binary(max_size=200) | st.text(alphabet="ab:-[]{}&*!|>'\"%@`#,? \n\t\\0.", max_size=60).map(str.encode)
)
def test_no_input_raises(source):
    document = parse_yaml(source, "x")
    assert document.readable or (document.problems and document.data is None)


keys = st.text("abc", min_size=1)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**60), 10**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(min_codepoint=32, max_codepoint=126)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(keys, json_values, max_size=4))
def test_json_is_yaml(value):
    document = parse_yaml(json.dumps(value).encode(), "x")
    assert document.problems == []
    assert document.data == value
