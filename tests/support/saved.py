"""Checkpoints for tests of what looks at them: written by the library, damaged by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from orch_workers.checkpoint import Catalog, Checkpointer, RestorePoint

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

NAME = "digits"


def save(folder: Path, states: Mapping[int, Any], *, name: str = NAME, **options: Any) -> Catalog:
    """One checkpoint for each step; all are kept."""
    with Checkpointer(folder / name, keep=100, **options) as checkpoints:
        checkpoints.restore()
        for step, state in states.items():
            checkpoints.save(step, state, epoch=step // 10, metrics={"loss": 1 / (1 + step)})
        return checkpoints.catalog


def point(catalog: Catalog, step: int) -> RestorePoint:
    return next(found for found in catalog.committed() if found.step == step)


def file(catalog: Catalog, kind: str, step: int) -> Path:
    """The one object of that kind (manifests, ranks, shards) of that step."""
    [entry] = [e for e in catalog.storage.list(catalog.path(kind)) if f"{step:012d}" in e.path]
    return catalog.storage.root / entry.path  # type: ignore[attr-defined,no-any-return]  # a local one


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def flip_tensor(catalog: Catalog, step: int, tensor: str, byte: int = 0) -> None:
    """Damages one byte of one tensor."""
    from orch_workers.checkpoint.content import Content

    content = Content.open(catalog, point(catalog, step))
    [ref] = [found for found in content.refs() if found.record.name == tensor]
    flip(catalog.storage.root / ref.path, ref.file_start + byte)  # type: ignore[attr-defined]


def damages() -> dict[str, tuple[Callable[[Catalog, int], Any], str, bool]]:
    """What is done to a checkpoint → (how, what is said, whether a quick look sees it)."""
    return {
        "a flipped byte": (lambda c, s: flip_tensor(c, s, "weights", 3), "'weights'.*do not match", False),
        "a flipped byte of a header": (
            lambda c, s: flip(file(c, "shards", s), 30),
            "header does not match",
            False,
        ),
        "a truncated shard": (
            lambda c, s: file(c, "shards", s).write_bytes(file(c, "shards", s).read_bytes()[:-1]),
            "bytes instead of",
            True,
        ),
        "a missing shard": (lambda c, s: file(c, "shards", s).unlink(), "0-0.safetensors is missing", True),
        "a missing rank": (lambda c, s: file(c, "ranks", s).unlink(), "0.json is missing", True),
        "another rank's content": (
            lambda c, s: flip(file(c, "ranks", s), 5),
            "not the one that was committed",
            True,
        ),
        "no manifest": (lambda c, s: file(c, "manifests", s).write_text("{"), "no JSON document", True),
    }
