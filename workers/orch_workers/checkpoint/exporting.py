"""Checkpoints as files for other programs: safetensors, or a state dict for `torch.load(weights_only=True)`.

One file per argument of the training script, or one in all. Random states and the position in the data stay in the
checkpoint: they mean nothing outside it.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple
from urllib.parse import quote

from orch_workers.checkpoint.blobs import KIND
from orch_workers.checkpoint.content import Content, Ref, stream
from orch_workers.checkpoint.errors import CheckpointError
from orch_workers.checkpoint.format import is_native
from orch_workers.checkpoint.trees import entries
from orch_workers.checkpoint.whole import Whole, whole_tensors

if TYPE_CHECKING:
    from orch_workers.checkpoint.content import Moved

OWN_PART = "~orch"
"""What orch keeps of its own in the tree, beside the script's arguments."""
FORMATS = ("safetensors", "torch", "torch-plain", "tensorflow")
SUFFIXES = {"safetensors": ".safetensors", "torch": ".pt", "torch-plain": ".pth"}
HEADER_ALIGNMENT_BYTES = 8


class Exported(NamedTuple):
    """One file. `notes`: what is not quite as it was in the checkpoint."""

    path: Path
    arguments: tuple[str, ...]
    tensors: int
    size_bytes: int
    notes: tuple[str, ...] = ()


def arguments_of(content: Content) -> dict[str, Any]:
    """Name → typed tree of what the script saved."""
    return {name: tree for name, tree in content.tree().items() if name != OWN_PART}


def export(
    content: Content,
    to: str,
    into: Path,
    *,
    only: Sequence[str] = (),
    replace: bool = False,
    moved: Moved | None = None,
) -> list[Exported]:
    """Writes the files; each is whole or not there. `into`: one file if its name has the format's suffix, else a
    folder with a file per argument. `only`: these arguments, else all. `to`: one of FORMATS.

    Raises FileExistsError without `replace`, Damaged when the bytes are not what was committed, CheckpointError for
    an argument that is not there or what the format cannot hold.
    """
    if content.manifest.kind == KIND:
        raise CheckpointError(
            f"{content.point} holds files that a script wrote itself: export them with `--to files`"
        )
    chosen = _chosen(arguments_of(content), only)
    if to == "tensorflow":
        from orch_workers.checkpoint.exporting_tensorflow import write_tensorflow

        if (into / "checkpoint").exists() and not replace:
            raise FileExistsError(f"{into / 'checkpoint'} exists already")
        into.mkdir(parents=True, exist_ok=True)
        return [write_tensorflow(content, chosen, into, moved=moved)]
    files = _files(chosen, to, into)
    for path in files:
        if path.exists() and not replace:
            raise FileExistsError(f"{path} exists already")
    if to == "torch":
        from orch_workers.checkpoint.exporting_torch import write_torch as write
    elif to == "torch-plain":
        from orch_workers.checkpoint.exporting_torch import write_plain as write
    else:
        write = write_safetensors
    done = []
    for path, names in files.items():
        trees = {name: chosen[name] for name in names}
        path.parent.mkdir(parents=True, exist_ok=True)
        done.append(write(content, trees, path, replace=replace, moved=moved))
    return done


def _chosen(arguments: dict[str, Any], only: Sequence[str]) -> dict[str, Any]:
    unknown = [name for name in only if name not in arguments]
    if unknown or not arguments:
        has = ", ".join(arguments) or "nothing"
        raise CheckpointError(f"the checkpoint has no {', '.join(unknown) or 'argument'}; it holds {has}")
    return {name: tree for name, tree in arguments.items() if not only or name in only}


def _files(chosen: dict[str, Any], to: str, into: Path) -> dict[Path, list[str]]:
    if to == "torch-plain" and into.suffix != SUFFIXES[to]:
        return {into / f"checkpoint{SUFFIXES[to]}": list(chosen)}
    if into.suffix == SUFFIXES[to]:
        return {into: list(chosen)}
    found: dict[Path, list[str]] = {}
    for name, tree in chosen.items():
        suffix = SUFFIXES[to]
        if to == "safetensors" and next(entries(tree), None) is None:
            suffix = ".json"  # nothing but values: a file of tensors would be empty
        found[into / f"{file_stem(name)}{suffix}"] = [name]
    return found


def file_stem(name: str) -> str:
    """A name that no argument can use to leave its folder."""
    safe = quote(name, safe=" ")
    return f"%2E{safe[1:]}" if safe.startswith(".") else safe


class _Place(NamedTuple):
    """A tensor in the file that is written."""

    name: str
    whole: Whole
    offset: int


def write_safetensors(
    content: Content,
    trees: dict[str, Any],
    path: Path,
    *,
    replace: bool,
    moved: Moved | None,
) -> Exported:
    """Every tensor under every name it has in the state, tied ones too, so that the file is a complete state dict;
    what is no tensor, as JSON in the metadata `orch`.
    """
    described = _described(content, trees)
    if path.suffix == ".json":
        with new_file(path, replace=replace) as file:
            file.write(json.dumps(described, indent=1).encode() + b"\n")
        return Exported(path, tuple(trees), 0, path.stat().st_size)
    wanted = tensor_names(trees)
    wholes = whole_tensors(content, set(wanted.values()))
    ordered = sorted(wanted.items(), key=lambda item: (-wholes[item[1]].element_bits, item[0]))
    places: list[_Place] = []
    position = 0
    for name, entry in ordered:
        places.append(_Place(name, wholes[entry], position))
        position += wholes[entry].size_bytes
    header = _header(content, described, places, wanted)
    with new_file(path, replace=replace) as file:
        file.write(header)
        file.truncate(len(header) + position)
        _write_tensors(content, file.fileno(), len(header), places, moved)
    notes = [
        f"{place.name} is {place.whole.dtype}, which safetensors lacks: stored as bytes, see `dtypes` in the metadata"
        for place in places
        if not is_native(place.whole.dtype)
    ]
    return Exported(path, tuple(trees), len(places), len(header) + position, tuple(notes))


def tensor_names(trees: dict[str, Any]) -> dict[str, str]:
    """Name in the file → entry. Where a file has several arguments, each name begins with its argument's."""
    found: dict[str, str] = {}
    for argument, tree in trees.items():
        prefix = argument if len(trees) > 1 else ""
        for path, entry in entries(tree, prefix):
            base = path or argument  # the argument is itself a tensor
            name, number = base, 1
            while name in found:  # keys with dots in them can make two paths read the same
                number += 1
                name = f"{base}~{number}"
            found[name] = entry
    return found


def _described(content: Content, trees: dict[str, Any]) -> dict[str, Any]:
    manifest = content.manifest
    return {
        "version": 1,
        "job": manifest.job,
        "generation": manifest.generation,
        "step": manifest.step,
        "epoch": manifest.epoch,
        "metrics": manifest.metrics,
        "frameworks": manifest.frameworks,
        "arguments": trees,
    }


def _header(
    content: Content, described: dict[str, Any], places: list[_Place], wanted: dict[str, str]
) -> bytes:
    first_name: dict[str, str] = {}
    tied = {}
    for name, entry in wanted.items():
        if first_name.setdefault(entry, name) != name:
            tied[name] = first_name[entry]
    dtypes = {
        place.name: {"dtype": place.whole.dtype, "shape": list(place.whole.shape)}
        for place in places
        if not is_native(place.whole.dtype)
    }
    extra = {key: value for key, value in (("tied", tied), ("dtypes", dtypes)) if value}
    frameworks = content.manifest.frameworks or {}
    document: dict[str, Any] = {
        "__metadata__": {
            "format": "pt" if "torch" in frameworks else "np",
            "orch": json.dumps({**described, **extra}, separators=(",", ":")),
        }
    }
    for place in places:
        native = is_native(place.whole.dtype)
        document[place.name] = {
            "dtype": place.whole.dtype if native else "U8",
            "shape": list(place.whole.shape) if native else [place.whole.size_bytes],
            "data_offsets": [place.offset, place.offset + place.whole.size_bytes],
        }
    encoded = json.dumps(document, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % HEADER_ALIGNMENT_BYTES)
    return len(encoded).to_bytes(8, "little") + encoded


def _write_tensors(
    content: Content, descriptor: int, base: int, places: list[_Place], moved: Moved | None
) -> None:
    """Parts go to their places as they come; a divided tensor is put together first."""
    at: dict[Ref, list[int]] = {}
    for place in places:
        start = base + place.offset
        if place.whole.is_divided:
            os.pwrite(descriptor, place.whole.read(content), start)
            if moved is not None:
                moved(place.whole.size_bytes)
        else:
            at.setdefault(place.whole.pieces[0], []).append(start)
    for part in stream(content.catalog, at):
        for start in at[part.ref]:
            _write_all(descriptor, part.data, start + part.start)
        if moved is not None:
            moved(len(part.data))


def _write_all(descriptor: int, data: memoryview, start: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, start)
        data, start = data[written:], start + written


@contextlib.contextmanager
def new_file(path: Path, *, replace: bool, check: Callable[[Path], None] | None = None) -> Iterator[BinaryIO]:
    """A file that gets its name when it is whole, on disk, and `check` has nothing against it."""
    temporary = path.with_name(f".tmp-{secrets.token_hex(8)}")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if check is not None:
            check(temporary)
        if replace:
            temporary.replace(path)
        else:
            os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def tree_size_bytes(content: Content, only: Sequence[str] = ()) -> int:
    """How much an export will read, for whoever shows progress."""
    if content.manifest.kind == KIND:
        return content.manifest.size_bytes
    names = {entry for tree in _chosen(arguments_of(content), only).values() for _, entry in entries(tree)}
    return sum(ref.record.size_bytes for ref in content.refs() if ref.rank == 0 and ref.record.name in names)


__all__ = ["FORMATS", "Exported", "arguments_of", "export", "tree_size_bytes"]
