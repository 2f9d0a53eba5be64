"""What pydantic found wrong, in sentences: path, value, what is allowed, and what was probably meant."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

from pydantic import BaseModel, ValidationError

from orch.model.problems import Path, Problem, format_path, near_match, shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic_core import ErrorDetails

__all__ = ["all_keys", "explain"]

_KINDS = {
    "string_type": "text",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "tuple_type": "a list",
    "list_type": "a list",
}
"""What each of pydantic's type errors would have wanted."""


def explain(error: ValidationError, model: type[BaseModel], data: Any) -> list[tuple[Path, Problem]]:
    """One problem per error, each with its path into `data` (what was validated); file and line stay open."""
    return [_explain(detail, model, data) for detail in error.errors(include_url=False)]


def _explain(detail: ErrorDetails, model: type[BaseModel], data: Any) -> tuple[Path, Problem]:
    path, value = _find(detail["loc"], detail["type"], data)
    kind, context = detail["type"], detail.get("ctx", {})
    allowed: str | None = None
    near: str | None = None
    match kind:
        case "orch":
            message, allowed, near = context["message"], context["allowed"], context["near"]
        case "missing":
            message, allowed = "is required, and missing", None
        case "extra_forbidden":
            word = str(path[-1]) if path else ""
            message = f"unknown key {shown(word)}"
            keys = _keys(model, path[:-1])
            near = _near_key(word, keys, model, path)
            allowed = None if near else ", ".join(keys)
        case _ if kind in _KINDS:
            message, allowed = f"is {_with_article(value)}", _KINDS[kind]
            if isinstance(value, int | float | bool) and kind == "string_type":
                near = f'"{shown(value)}"'
        case "too_long":
            message = f"has {context['actual_length']} entries"
            allowed = f"at most {context['max_length']}"
        case _:
            message = detail["msg"][:1].lower() + detail["msg"][1:]
    # A variable's value may be private, and a check that knows of a secret gives the value without it.
    text = None if path[:1] == ("env",) else context.get("value") or shown(value)
    return path, Problem(message, path=format_path(path), value=text, allowed=allowed, near=near)


def _with_article(value: object) -> str:
    match value:
        case bool() | None:
            return shown(value)
        case int() | float():
            return f"the number {shown(value)}"
        case str():
            return f"the text {shown(value)}"
        case _:
            return shown(value)


def _find(loc: tuple[int | str, ...], kind: str, data: Any) -> tuple[Path, Any]:
    """The path of an error as it stands in the data.

    pydantic's locations also hold names that no file has: members of a union, `[key]`, and what a short form
    (`storage: URL`) was expanded to.
    """
    path: list[str | int] = []
    for index, piece in enumerate(loc):
        inside = piece in data if isinstance(data, dict) else _is_index(data, piece)
        if inside:
            data = data[piece]
        elif kind == "missing" and index == len(loc) - 1:
            data = None
        else:
            continue
        path.append(piece)
    return tuple(path), data


def _is_index(data: Any, piece: int | str) -> bool:
    return isinstance(data, list | tuple) and isinstance(piece, int) and piece < len(data)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models inside an annotation such as `Annotated[Every | Literal["auto"], …] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)


def _children(model: type[BaseModel]) -> dict[str, type[BaseModel] | None]:
    return {
        field.alias or name: next(_models(field.annotation), None)
        for name, field in model.model_fields.items()
    }


def _keys(model: type[BaseModel], path: Path) -> list[str]:
    current: type[BaseModel] | None = model
    for piece in path:
        current = _children(current).get(str(piece)) if current else None
    return list(_children(current)) if current else []


def _near_key(word: str, keys: list[str], model: type[BaseModel], path: Path) -> str | None:
    """A key of this place that was mistyped, else one of that very name that belongs elsewhere."""
    if near := near_match(word, keys):
        return near
    elsewhere = [found for found in all_keys(model) if found[-1] == word and found != path]
    return format_path(elsewhere[0]) if len(elsewhere) == 1 else None


def all_keys(model: type[BaseModel], prefix: Path = ()) -> Iterator[Path]:
    """Every key that a file may hold, from the top."""
    for key, child in _children(model).items():
        yield (*prefix, key)
        if child is not None:
            yield from all_keys(child, (*prefix, key))
