"""The kinds of value that a job file holds, each with one check and one sentence when it fails.

Every kind is an annotated type with a single validator: a pydantic union would report one error per member,
and none in words that help.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from orch.model import ids
from orch.model.problems import near_match, shown
from orch.model.units import (
    DURATION_ALLOWED,
    SIZE_ALLOWED,
    UNLIMITED,
    UnitError,
    parse_duration_s,
    parse_size_bytes,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from orch.model.problems import Problem

__all__ = [
    "Budget",
    "Command",
    "Duration",
    "EnvName",
    "EnvValue",
    "Expression",
    "HangRule",
    "JobName",
    "MetricName",
    "Patterns",
    "PositiveDuration",
    "SecretNames",
    "Share",
    "Size",
    "Text",
    "amount",
    "choice",
    "refuse",
    "refuse_first",
    "whole",
]

RUN_CHARS_MAX = 64 * 1024
"""Half of what Linux accepts as one argument (MAX_ARG_STRLEN, execve(2))."""
TEXT_CHARS_MAX = 4096
ENV_VALUE_CHARS_MAX = 64 * 1024
LIST_ITEMS_MAX = 1000
BUDGET_MAX = 1_000_000

# Set by orch for every rank; a job that set them itself would break its own rendezvous.
_OWN_VARIABLES = frozenset({"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"})
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}")


def refuse(
    message: str, *, allowed: str | None = None, near: str | None = None, value: str | None = None
) -> NoReturn:
    """Fails the validation of a field with a sentence, what is allowed, and what was probably meant.

    `value` is what may be shown of the value, where that is not all of it.
    """
    context = {"message": message, "allowed": allowed, "near": near, "value": value}
    raise PydanticCustomError("orch", "{message}", context)


def refuse_first(problems: list[Problem]) -> None:
    """Fails the validation with the first of these problems, if there is one."""
    for problem in problems:
        refuse(problem.message, allowed=problem.allowed, near=problem.near, value=problem.value)


def _text(chars_max: int = TEXT_CHARS_MAX) -> AfterValidator:
    def check(value: str) -> str:
        if len(value) > chars_max:
            refuse(f"is {len(value)} characters long", allowed=f"at most {chars_max} characters")
        if "\0" in value:
            refuse("holds a NUL character, which no process can be given")
        return value

    return AfterValidator(check)


def _not_blank(value: str) -> str:
    if not value.strip():
        refuse("is empty text", allowed="at least one character")
    return value


Text = Annotated[str, _text(), AfterValidator(_not_blank)]
# In a file, an unquoted number or truth value means its own text (`jobfile` sees to that).
_variable_schema = WithJsonSchema({"type": ["string", "number", "boolean"]})
EnvValue = Annotated[str, _text(ENV_VALUE_CHARS_MAX), _variable_schema]
Command = Annotated[str, _text(RUN_CHARS_MAX), AfterValidator(_not_blank)]


def _name(value: str) -> str:
    if problem := ids.name_problem(value):
        refuse(
            f"{shown(value)} {problem}",
            allowed=ids.NAME_ALLOWED,
            near=ids.name_from(value) if value else None,
        )
    return value


JobName = Annotated[str, AfterValidator(_name)]


def _pattern(value: str) -> str:
    """A path or glob below the workdir; it may never leave it."""
    if not value.strip() or not value.isprintable():
        refuse(f"{shown(value)} is no path", allowed="a path or pattern inside the workdir")
    if value.startswith(("/", "~")) or ".." in value.split("/"):
        refuse(f"{shown(value)} leaves the workdir", allowed="a path or pattern inside the workdir")
    return value


Pattern = Annotated[str, _text(), AfterValidator(_pattern)]


PYTHON_OLDEST = (3, 8)
"""Of the training side (orch_workers.training)."""
_PYTHON = re.compile(r"(\d+)\.(\d+)(?:\.\d+)?")


def python_version(value: str) -> str:
    found = _PYTHON.fullmatch(value)
    if not found or (int(found[1]), int(found[2])) < PYTHON_OLDEST or found[1] != "3":
        refuse(f"{shown(value)} is no version that jobs can have", allowed='3.8 or newer, such as "3.11"')
    return value


def _variable(value: str) -> str:
    if not _VARIABLE.fullmatch(value):
        refuse(
            f"{shown(value)} can be no environment variable",
            allowed="letters, digits and underscores, not beginning with a digit",
        )
    if value in _OWN_VARIABLES or value.startswith("ORCH_"):
        refuse(f"{value} is set by orch itself", allowed="any name but ORCH_* and the rank variables")
    return value


EnvName = Annotated[str, AfterValidator(_variable)]


def _distinct(values: tuple[str, ...]) -> tuple[str, ...]:
    twice = sorted({value for value in values if values.count(value) > 1})
    if twice:
        refuse(f"names {', '.join(twice)} more than once")
    return values


# Lists arrive as lists; only the container is read leniently, its items stay strict.
Patterns = Annotated[tuple[Pattern, ...], Field(strict=False, max_length=LIST_ITEMS_MAX)]
SecretNames = Annotated[
    tuple[EnvName, ...], Field(strict=False, max_length=LIST_ITEMS_MAX), AfterValidator(_distinct)
]


METRICS_MAX = 50
EXPRESSION_CHARS_MAX = 500
_METRIC = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]{0,63}")


def _metric_name(value: str) -> str:
    if not _METRIC.fullmatch(value):
        refuse(
            f"{shown(value)} can be no metric's name",
            allowed="letters, digits, _ . / and -, beginning with a letter, at most 64 characters",
        )
    return value


def _expression(value: str) -> str:
    """A regular expression whose first group is the number; one that could search for ever is refused."""
    try:
        groups = re.compile(value).groups
    except (re.error, RecursionError, OverflowError) as error:
        refuse(f"{shown(value)} is no regular expression: {error}")
    if groups < 1:
        refuse(f"{shown(value)} has no group", allowed="parentheses around the number, as in loss=([0-9.]+)")
    if _repeats_a_repeat(value):
        refuse(
            f"{shown(value)} repeats what repeats, and could search one line for ever",
            allowed="no * or + behind a group that has one inside",
        )
    return value


def _repeats_a_repeat(expression: str) -> bool:
    """Whether a group with an endless repeat in it is itself repeated without end."""
    text = re.sub(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", "x", expression)
    inside = [False]
    for at, character in enumerate(text):
        is_endless = re.match(r"[*+]|\{\d*,\}", text[at:]) is not None
        if character == "(":
            inside.append(False)
        elif character == ")" and len(inside) > 1:
            repeats = inside.pop()
            if repeats and re.match(r"[*+]|\{\d*,\}", text[at + 1 :]):
                return True
            inside[-1] |= repeats
        inside[-1] |= is_endless
    return False


MetricName = Annotated[str, AfterValidator(_metric_name)]
Expression = Annotated[
    str, _text(EXPRESSION_CHARS_MAX), AfterValidator(_not_blank), AfterValidator(_expression)
]


def _unit(parse: Callable[[object], Any], allowed: str, *, zero: bool) -> PlainValidator:
    def check(value: object) -> Any:
        try:
            number = parse(value)
        except UnitError as error:
            refuse(f"{shown(value)} {error}", allowed=allowed)
        if number == 0 and not zero:
            refuse(f"{shown(value)} is nothing", allowed=f"{allowed}, more than 0")
        return number

    return PlainValidator(check)


def _unit_schema(description: str, pattern: str, number: str) -> WithJsonSchema:
    options = [{"type": number, "minimum": 0}, {"type": "string", "pattern": pattern}]
    return WithJsonSchema({"anyOf": options, "description": description})


_DURATION_PATTERN = r"^\s*([0-9]+(\.[0-9]+)?\s*(ms|[wdhms])\s*)+$"
_SIZE_PATTERN = r"^\s*[0-9]+(\.[0-9]+)?\s*([KkMmGgTtPp][Ii]?)?[Bb]\s*$|^\s*[0-9]+(\.[0-9]+)?\s*[KMGTP]i\s*$"
_duration_schema = _unit_schema(DURATION_ALLOWED, _DURATION_PATTERN, "number")

Duration = Annotated[int | float, _unit(parse_duration_s, DURATION_ALLOWED, zero=True), _duration_schema]
PositiveDuration = Annotated[
    int | float, _unit(parse_duration_s, DURATION_ALLOWED, zero=False), _duration_schema
]
Size = Annotated[
    int,
    _unit(parse_size_bytes, SIZE_ALLOWED, zero=False),
    _unit_schema(SIZE_ALLOWED, _SIZE_PATTERN, "integer"),
]


def whole(minimum: int, maximum: int) -> PlainValidator:
    """A validator for whole numbers in a range, both ends included."""
    allowed = f"a whole number from {minimum} to {maximum}"

    def check(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
            refuse(f"{shown(value)} is not possible", allowed=allowed)
        return value

    return PlainValidator(check, json_schema_input_type=Annotated[int, Field(ge=minimum, le=maximum)])


def amount(maximum: int, *, zero: bool, whole_above: int | None = None) -> PlainValidator:
    """A validator for amounts of a resource: a number up to `maximum`, whole where it is over `whole_above`.

    Whole amounts become int, so that they are shown as they were written.
    """
    lowest = "from 0" if zero else "over 0"
    allowed = f"a number {lowest} to {maximum}" + (f", whole above {whole_above}" if whole_above else "")

    def check(value: object) -> int | float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            refuse(f"{shown(value)} is not a number", allowed=allowed)
        if not 0 <= value <= maximum or (value == 0 and not zero):  # NaN is in no range
            refuse(f"{shown(value)} is not possible", allowed=allowed)
        if value == int(value):
            return int(value)
        if whole_above is not None and value > whole_above:
            refuse(f"{shown(value)} is not possible", allowed=allowed)
        return value

    limits: dict[str, Any] = {"le": maximum} | ({"ge": 0} if zero else {"gt": 0})
    return PlainValidator(check, json_schema_input_type=Annotated[float, Field(**limits)])


def _budget(value: object) -> int | str:
    allowed = f"a whole number from 0 to {BUDGET_MAX}, or {UNLIMITED}"
    if isinstance(value, str) and value != UNLIMITED:
        refuse(f"{shown(value)} is no budget", allowed=allowed, near=near_match(value, [UNLIMITED]))
    if value == UNLIMITED and isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= BUDGET_MAX:
        refuse(f"{shown(value)} is not possible", allowed=allowed)
    return value


Budget = Annotated[
    int | str,
    PlainValidator(_budget),
    WithJsonSchema(
        {"anyOf": [{"type": "integer", "minimum": 0, "maximum": BUDGET_MAX}, {"const": UNLIMITED}]}
    ),
]


def _hang(value: object) -> float | str:
    words = ("auto", "off")
    if isinstance(value, str) and value in words:
        return value
    try:
        seconds = parse_duration_s(value)
    except UnitError as error:
        near = near_match(value, words) if isinstance(value, str) else None
        refuse(f"{shown(value)} {error}", allowed=f"auto, off, or {DURATION_ALLOWED}", near=near)
    if seconds == 0:
        refuse("0 would call every job hung", allowed="auto, off, or a duration over 0")
    return seconds


HangRule = Annotated[
    int | float | str,
    PlainValidator(_hang),
    WithJsonSchema({"anyOf": [{"enum": ["auto", "off"]}, {"type": "string"}, {"type": "number"}]}),
]


SHARE_MIN, SHARE_MAX = 0.0001, 0.5
_PERCENT = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*%\s*")


def _share(value: object) -> float:
    allowed = f"a percentage from {SHARE_MIN * 100:g}% to {SHARE_MAX * 100:g}%, such as 1%"
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        refuse(f"{shown(value)} is no percentage", allowed=allowed)
    if isinstance(value, str):
        found = _PERCENT.fullmatch(value)
        if found is None:
            refuse(f"{shown(value)} is no percentage", allowed=allowed)
        share = float(found[1]) / 100
    else:
        # The short form of a stored job: 0.01 is 1%. A number of a thousand digits is no float.
        share = float(max(-1, min(value, 1000)))
    if not SHARE_MIN <= share <= SHARE_MAX:
        meant = isinstance(value, int | float) and SHARE_MIN <= share / 100 <= SHARE_MAX
        refuse(f"{shown(value)} is not possible", allowed=allowed, near=f"{value}%" if meant else None)
    return share


Share = Annotated[
    float,
    PlainValidator(_share),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "pattern": r"^\s*[0-9]+(\.[0-9]+)?\s*%\s*$"},
                {"type": "number", "minimum": SHARE_MIN, "maximum": SHARE_MAX},
            ],
            "description": "a percentage, such as 1%",
        }
    ),
]


def choice(*words: str, meant: Mapping[str, str] | None = None) -> BeforeValidator:
    """Stands beside a Literal of the same words, and says what is allowed in words that help. `meant`: other words
    that people use for them.
    """

    def check(value: object) -> object:
        if not isinstance(value, str) or value not in words:
            near = near_match(value, words) if isinstance(value, str) else None
            near = (meant or {}).get(value.lower(), near) if isinstance(value, str) else None
            refuse(f"{shown(value)} is not possible", allowed=" or ".join(words), near=near)
        return value

    return BeforeValidator(check)
