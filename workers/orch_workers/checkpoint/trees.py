"""The typed tree of a checkpoint (docs/training-api.md), walked without making its values: no torch, no NumPy."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import zip_longest
from typing import Any, NamedTuple

from orch_workers.training.tree import TAG

Node = Any
_SEQUENCES = {"tuple", "deque"}
_MAPPINGS = {"dict", "OrderedDict", "Counter", "defaultdict"}
TEXT_CHARACTERS_MAX = 120
DEPTH_MAX = 200
"""Deeper than any writer goes (training/tree.py); what is below is left out."""


class Difference(NamedTuple):
    """`before` and `after`: texts for people; None where there is nothing on that side."""

    path: str
    before: str | None
    after: str | None


def entry_of(node: Node) -> str | None:
    """The name of the tensor whose bytes a node stands for."""
    entry = node.get("entry") if isinstance(node, dict) and TAG in node else None
    return entry if isinstance(entry, str) else None


def children(node: Node) -> list[tuple[str, Node]]:
    """What a node holds, by key or index; nothing for a value that is whole in itself."""
    if isinstance(node, list):
        return [(str(index), item) for index, item in enumerate(node)]
    if not isinstance(node, dict):
        return []
    tag = node.get(TAG)
    if tag is None:
        return list(node.items())
    held = node.get("v")
    if not isinstance(held, list):
        return []
    if tag in _SEQUENCES:
        return [(str(index), item) for index, item in enumerate(held)]
    if tag in _MAPPINGS:
        pairs = [pair for pair in held if isinstance(pair, list) and len(pair) == 2]
        found = [(key_text(key), item) for key, item in pairs]
        if "attributes" in node:
            found.append(("(attributes)", node["attributes"]))
        return found
    return []


def key_text(key: Node) -> str:
    return key if isinstance(key, str) else text_of(key)


def entries(node: Node, path: str = "", depth: int = 0) -> Iterator[tuple[str, str]]:
    """(path, entry) of every tensor and array below a node; tied weights occur once for each of their paths."""
    entry = entry_of(node)
    if entry is not None:
        yield path, entry
    elif depth < DEPTH_MAX:
        for key, child in children(node):
            yield from entries(child, joined(path, key), depth + 1)


def joined(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def text_of(node: Node) -> str:
    """A value in a few words."""
    if isinstance(node, dict) and TAG in node:
        return _tagged_text(node)
    if isinstance(node, dict | list):
        return f"{type(node).__name__} of {len(node)}"
    text = json.dumps(node, ensure_ascii=False)
    return text if len(text) <= TEXT_CHARACTERS_MAX else text[:TEXT_CHARACTERS_MAX] + "…"


def _tagged_text(node: dict[str, Any]) -> str:
    tag, held = str(node[TAG]), node.get("v")
    entry = entry_of(node)
    if entry is not None:
        return f"{tag} {entry}"
    if tag in {"float", "int"}:
        return str(held)
    if tag in _SEQUENCES | _MAPPINGS and isinstance(held, list):
        return f"{tag} of {len(held)}"
    text = json.dumps(held)
    return f"{tag} {text[:TEXT_CHARACTERS_MAX]}" + ("…" if len(text) > TEXT_CHARACTERS_MAX else "")


def differences(before: Node, after: Node, path: str = "", depth: int = 0) -> Iterator[Difference]:
    """What differs between two trees, by path. Tensors count as equal here when both have the same name."""
    # For Python 1, 1.0 and True are equal: they are told apart by how they are written.
    if before == after and json.dumps(before) == json.dumps(after):
        return
    if entry_of(before) is not None and entry_of(before) == entry_of(after):
        yield from _beside_an_entry(before, after, path)
        return
    mine, theirs = children(before), children(after)
    if depth >= DEPTH_MAX or _kind(before) != _kind(after) or not (mine or theirs):
        yield Difference(path, text_of(before), text_of(after))
        return
    if _is_ordered(before):
        for index, (one, other) in enumerate(zip_longest(mine, theirs)):
            yield from _pair(one, other, joined(path, str(index)), depth)
        return
    there = dict(theirs)
    here = dict(mine)
    for key, child in here.items():
        if key in there:
            yield from differences(child, there[key], joined(path, key), depth + 1)
        else:
            yield from _alone(child, joined(path, key), is_before=True)
    for key, child in there.items():
        if key not in here:
            yield from _alone(child, joined(path, key), is_before=False)
    if list(here) != list(there) and set(here) == set(there):
        yield Difference(path, f"in the order {_order(here)}", f"in the order {_order(there)}")
    yield from _aside(before, after, path)


def _pair(
    one: tuple[str, Node] | None, other: tuple[str, Node] | None, path: str, depth: int
) -> Iterator[Difference]:
    if one is not None and other is not None:
        yield from differences(one[1], other[1], path, depth + 1)
    elif one is not None:
        yield from _alone(one[1], path, is_before=True)
    elif other is not None:
        yield from _alone(other[1], path, is_before=False)


def _alone(node: Node, path: str, *, is_before: bool) -> Iterator[Difference]:
    """What only one side has. A tensor under its own name is told among the tensors."""
    if entry_of(node) != path:
        text = text_of(node)
        yield Difference(path, text if is_before else None, None if is_before else text)


_OF_THE_TENSOR = {"dtype", "shape"}


def _beside_an_entry(before: dict[str, Any], after: dict[str, Any], path: str) -> Iterator[Difference]:
    """Of the same tensor, where it lived and how it was laid out; its type and shape are told among the tensors."""
    for key in sorted((set(before) | set(after)) - _OF_THE_TENSOR):
        if before.get(key) != after.get(key):
            yield Difference(f"{path}.({key})", text_of(before.get(key)), text_of(after.get(key)))


def _aside(before: Node, after: Node, path: str) -> Iterator[Difference]:
    """What a node says beside its children: a defaultdict's factory."""
    if not (isinstance(before, dict) and TAG in before):
        return
    for key in ("factory", "maxlen"):
        if before.get(key) != after.get(key):
            yield Difference(f"{path}.({key})", text_of(before.get(key)), text_of(after.get(key)))


def _kind(node: Node) -> str:
    if isinstance(node, dict):
        return f"{node.get(TAG, 'dict with text keys')}"
    return type(node).__name__


def _is_ordered(node: Node) -> bool:
    return isinstance(node, list) or (isinstance(node, dict) and node.get(TAG) in _SEQUENCES)


def _order(keys: dict[str, Node]) -> str:
    text = ", ".join(keys)
    return text if len(text) <= TEXT_CHARACTERS_MAX else text[:TEXT_CHARACTERS_MAX] + "…"


def values_by_path(node: Node, path: str = "", depth: int = 0) -> Iterator[tuple[str, Node]]:
    """Every value of a tree that is no tensor and holds no others."""
    below = children(node)
    if below and depth < DEPTH_MAX:
        for key, child in below:
            yield from values_by_path(child, joined(path, key), depth + 1)
    elif entry_of(node) is None:
        yield path, node
