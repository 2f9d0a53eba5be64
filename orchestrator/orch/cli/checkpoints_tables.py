"""Checkpoints as documents for programs and as tables for people."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from orch.cli.humans import ABSENT, clock, count, number, one_line, percent, span
from orch.cli.output import is_terminal
from orch.cli.tables import metrics_text
from orch.model.units import describe_size

if TYPE_CHECKING:
    from rich.table import Table

    from orch_workers.checkpoint import RestorePoint
    from orch_workers.checkpoint.compare import Comparison
    from orch_workers.checkpoint.content import Content
    from orch_workers.checkpoint.listing import Listed
    from orch_workers.checkpoint.verifying import Verified

Document = dict[str, Any]
Places = Mapping[tuple[tuple[int, int], int], str]

GAP = 2
FOLD_COLUMNS_MIN = 24
LIST_DROPPED = ("TOOK", "EPOCH", "BLOCKED", "METRICS", "GENERATION", "SIZE")
"""What a narrow terminal does without."""
TENSORS_SHOWN = 20
DIFFERENCES_SHOWN = 40


def finite(value: Any) -> Any:
    """As strict JSON can carry it: numbers that are not finite become "nan", "inf" and "-inf"."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def time_text(time_us: int) -> str:
    moment = datetime.fromtimestamp(time_us // 1_000_000, UTC).replace(microsecond=time_us % 1_000_000)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def generation_text(generation: tuple[int, int]) -> str:
    from orch_workers.training.slots import format_generation

    return format_generation(generation)


def short(generation: str) -> str:
    """`000001.000002` → `1.2`, as `orch status` has it."""
    return ".".join(str(int(part)) for part in generation.split("."))


def named(point: RestorePoint) -> Document:
    return {"generation": generation_text(point.generation), "step": point.step}


def point_text(one: Document) -> str:
    return f"step {one['step']} (generation {short(one['generation'])})"


# list


def listed_document(listed: Listed, places: Sequence[str], now_us: int | None = None) -> Document:
    """`places`: where the state lies."""
    manifest = listed.manifest
    created_us = manifest.created_us if manifest else listed.point.committed_us
    age_us = max(0, (time.time_ns() // 1000 if now_us is None else now_us) - created_us)
    return {
        **named(listed.point),
        "epoch": manifest.epoch if manifest else None,
        "time": time_text(created_us),
        "age_s": age_us / 1e6,
        "size_bytes": manifest.size_bytes if manifest else None,
        "duration_s": manifest.took_s if manifest else None,
        "blocked_s": manifest.blocked_s if manifest else None,
        "on_chain": listed.on_chain,
        "restorable": listed.is_restorable,
        "newest": listed.is_newest,
        "places": list(places),
        "metrics": finite(manifest.metrics if manifest and isinstance(manifest.metrics, dict) else {}),
        "kept": listed.kept,
        "pinned": listed.pinned,
        "quarantined": listed.quarantined,
        "problem": listed.problem,
    }


def checkpoints_table(checkpoints: Iterable[Document], width: int) -> Table:
    rows = [
        {
            "STEP": number(one["step"]),
            "EPOCH": number(one["epoch"]),
            "AGE": span(one["age_s"]),
            "SIZE": _size(one["size_bytes"]),
            "TOOK": short_span(one["duration_s"]),
            "BLOCKED": short_span(one["blocked_s"]),
            "GENERATION": short(one["generation"]),
            "WHERE": _where(one),
            "METRICS": metrics_text(one["metrics"]),
            "KEPT": _kept(one),
        }
        for one in checkpoints
    ]
    return _fitted(
        rows, width, fold="KEPT", left={"GENERATION", "WHERE", "METRICS", "KEPT"}, dropped=LIST_DROPPED
    )


def short_span(seconds: float | None) -> str:
    """A save blocks training for milliseconds, which `span` would show as nothing."""
    if seconds is None or seconds >= 1:
        return span(seconds)
    return f"{seconds * 1e3:.3g}ms"


def _where(one: Document) -> str:
    parts = ["+".join(one["places"])]
    if one["places"] == ["memory"]:
        return parts[0]
    if not one["on_chain"]:
        parts.append("off the chain")
    if one["newest"]:
        parts.append("newest")
    return ", ".join(parts)


def _kept(one: Document) -> str:
    if one["quarantined"] is not None:
        return f"quarantined: {one_line(one['quarantined'])}"
    if one["problem"] is not None:
        return f"damaged: {one_line(one['problem'])}"
    if one["pinned"]:
        return f"{one_line(one['kept'])} ({one_line(one['pinned'])})"
    return one_line(one["kept"]) or ABSENT


def _size(size_bytes: int | None) -> str:
    return ABSENT if size_bytes is None else describe_size(size_bytes)


# show


def content_document(content: Content) -> Document:
    """Everything but the values of tensors."""
    from orch_workers.checkpoint.exporting import OWN_PART
    from orch_workers.checkpoint.trees import entries

    manifest, tree = content.manifest, content.tree()
    sizes = {ref.record.name: ref.record.size_bytes for ref in content.refs() if ref.rank == 0}
    kinds = (tree.get(OWN_PART) or {}).get("kinds") or {}
    arguments = []
    for name, below in tree.items():
        held = {entry for _, entry in entries(below)}
        arguments.append(
            {
                "name": name,
                "kind": kinds.get(name, "orch's own" if name == OWN_PART else None),
                "tensors": len(held),
                "size_bytes": sum(sizes.get(entry, 0) for entry in held),
            }
        )
    return {
        "kind": manifest.kind,
        "world_size": manifest.world_size,
        "code": manifest.code,
        "frameworks": finite(manifest.frameworks or {}),
        "written_by": manifest.written_by,
        "arguments": arguments,
        "tensors": [
            {
                "name": ref.record.name,
                "rank": ref.rank,
                "dtype": ref.record.dtype,
                "shape": list(ref.record.shape),
                "global_shape": list(ref.record.global_shape),
                "offsets": list(ref.record.offsets),
                "size_bytes": ref.record.size_bytes,
                "shard": ref.path.removeprefix(f"{manifest.job}/"),
            }
            for ref in sorted(content.refs(), key=lambda ref: (-ref.record.size_bytes, ref.label))
        ],
        "shards": [
            {"rank": rank, "path": shard.path, "size_bytes": shard.size_bytes}
            for rank, shard in content.shards()
        ],
        "files": [
            {
                "path": file.path,
                "size_bytes": file.size_bytes,
                "format": file.format or None,
                "link": file.link or None,
                "digest": None if file.link else file.digest,
            }
            for part in content.ranks
            for file in part.files
        ],
        "tree": tree,
    }


def facts_table(url: str, one: Document) -> Table:
    grid = _grid()
    what = "version" if one["files"] else "step"
    frameworks = ", ".join(f"{name} {version}" for name, version in one["frameworks"].items())
    state = (
        "yes"
        if one["restorable"]
        else "no: "
        + (f"quarantined: {one['quarantined']}" if one["quarantined"] is not None else "off the chain")
    )
    rows = [
        (
            "Checkpoint",
            f"{what} {one['step']}, epoch {number(one['epoch'])}, generation {short(one['generation'])}",
        ),
        ("Storage", url),
        ("Written", f"{clock(one['time'])}, {span(one['age_s'])} ago, by {one['written_by']}"),
        ("Size", f"{_size(one['size_bytes'])} in {_held(one)}"),
        ("Restorable", state + (", the newest" if one["newest"] else "")),
        ("Pinned", ABSENT if one["pinned"] is None else one["pinned"] or "yes"),
        ("Ranks", number(one["world_size"])),
        ("Metrics", metrics_text(one["metrics"], shown_max=20)),
        ("Frameworks", frameworks or ABSENT),
        ("Code", code_text(one)),
    ]
    for name, value in rows:
        if value != ABSENT:
            grid.add_row(name, one_line(value))
    return grid


def code_text(one: Document) -> str:
    version = one.get("code_version")
    return (one["code"] or ABSENT) + ("" if version is None else f" (version {version})")


def _held(one: Document) -> str:
    if one["files"]:
        return count(len(one["files"]), "file")
    return f"{len(one['shards'])} shards, {len(one['tensors'])} tensors"


def files_table(files: Iterable[Document]) -> Table:
    table = _table(["FILE", "FORMAT", "SIZE", "DIGEST"], right={"SIZE"}, folds={"FILE"})
    for one in files:
        name = one_line(one["path"]) + (f" → {one_line(one['link'])}" if one["link"] else "")
        digest = ABSENT if one["digest"] is None else one["digest"]
        table.add_row(name, one["format"] or ABSENT, describe_size(one["size_bytes"]), digest)
    return table


def arguments_table(arguments: Iterable[Document]) -> Table:
    table = _table(["ARGUMENT", "KIND", "TENSORS", "SIZE"], right={"TENSORS", "SIZE"})
    for one in arguments:
        table.add_row(
            one_line(one["name"]),
            one["kind"] or ABSENT,
            number(one["tensors"]),
            describe_size(one["size_bytes"]),
        )
    return table


def tensors_table(tensors: Sequence[Document], *, every: bool) -> Table:
    """Largest first."""
    table = _table(["TENSOR", "DTYPE", "SHAPE", "SIZE"], right={"SIZE"}, folds={"TENSOR"})
    for one in tensors if every else tensors[:TENSORS_SHOWN]:
        name = one_line(one["name"]) + (f" (rank {one['rank']})" if one["rank"] else "")
        shape = _shape(one["shape"])
        if one["shape"] != one["global_shape"]:
            shape += f" of {_shape(one['global_shape'])}"
        table.add_row(name, one["dtype"], shape, describe_size(one["size_bytes"]))
    return table


def _shape(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape)) if shape else "scalar"


def shards_table(shards: Iterable[Document]) -> Table:
    table = _table(["SHARD", "SIZE"], right={"SIZE"})
    for one in shards:
        table.add_row(one["path"], describe_size(one["size_bytes"]))
    return table


# verify


def verified_document(verified: Verified, quarantined: str | None) -> Document:
    return {
        **named(verified.point),
        "good": verified.is_good,
        "deep": verified.deep,
        "problems": list(verified.problems),
        "more_problems": verified.more_problems,
        "tensors": verified.tensors,
        "files": verified.files,
        "size_bytes": verified.size_bytes,
        "read_bytes": verified.read_bytes,
        "seconds_s": verified.seconds_s,
        "quarantined": quarantined,
    }


def verified_lines(one: Document) -> list[str]:
    if one["good"]:
        looked = "every digest matches" if one["deep"] else "every object is there with its size"
        mark = "; it is in quarantine all the same" if one["quarantined"] is not None else ""
        held = count(one["files"], "file") if one["files"] else f"{one['tensors']} tensors"
        size = f"{held}, {describe_size(one['size_bytes'])}, {short_span(one['seconds_s'])}"
        return [f"{point_text(one)}: good: {looked} ({size}){mark}"]
    lines = [f"{point_text(one)}: BAD"]
    lines += [f"  {one_line(problem)}" for problem in one["problems"]]
    if one["more_problems"]:
        lines.append(f"  and {one['more_problems']} more")
    return lines


# diff


def comparison_document(found: Comparison) -> Document:
    return {
        "equal": found.is_equal,
        "tensors_equal": found.tensors_equal,
        "tensors": [finite(change._asdict()) for change in found.changes],
        "tree": [difference._asdict() for difference in found.tree],
        "more_in_tree": found.more_in_tree,
    }


def changes_table(changes: Sequence[Document], width: int, *, every: bool) -> Table:
    rows = [
        {
            "TENSOR": one_line(one["name"]),
            "HOW": one["how"],
            "TYPE": _was_and_is(one),
            "DIFFERING": _differing(one),
            "MAX ABS": number(one["max_abs"]),
            "RELATIVE NORM": number(one["relative_norm"]),
        }
        for one in (changes if every else changes[:DIFFERENCES_SHOWN])
    ]
    return _fitted(rows, width, fold="TENSOR", left={"TENSOR", "HOW", "TYPE"}, dropped=("TYPE", "HOW"))


def _was_and_is(one: Document) -> str:
    before, after = one["before"] or "", one["after"] or ""
    return before if before == after else " → ".join(part for part in (before, after) if part)


def _differing(one: Document) -> str:
    if one["differing"] is None:
        return ABSENT
    return f"{one['differing']} ({percent(one['differing'] / max(1, one['elements']))})"


def tree_table(tree: Sequence[Document], *, every: bool) -> Table:
    table = _table(["VALUE", "WAS", "IS"], right=set(), folds={"VALUE", "WAS", "IS"})
    for one in tree if every else tree[:DIFFERENCES_SHOWN]:
        table.add_row(*(one_line(one[key]) or ABSENT for key in ("path", "before", "after")))
    return table


# prune


def prune_table(kept: Iterable[Document], removed: Iterable[Document]) -> Table:
    table = _table(["STEP", "GENERATION", "SIZE", "WHAT", "WHY"], right={"STEP", "SIZE"}, folds={"WHY"})
    rows = [(one, "keep") for one in kept] + [(one, "remove") for one in removed]
    for one, what in sorted(rows, key=lambda row: (row[0]["step"], row[0]["generation"]), reverse=True):
        table.add_row(
            number(one["step"]),
            short(one["generation"]),
            _size(one["size_bytes"]),
            what,
            one_line(one["why"]),
        )
    return table


def _fitted(
    rows: Sequence[Mapping[str, str]], width: int, *, fold: str, left: set[str], dropped: Sequence[str]
) -> Table:
    """As wide as the terminal: where that leaves less than FOLD_COLUMNS_MIN for the column that may fold, others go,
    the least needed first.
    """
    columns = list(rows[0])
    widths = {name: GAP + max(len(name), *(len(row[name]) for row in rows)) for name in columns}
    wanted = min(widths.pop(fold), FOLD_COLUMNS_MIN)
    for name in dropped:
        if sum(widths.values()) + wanted > width:
            widths.pop(name)
    shown = [name for name in columns if name == fold or name in widths]
    table = _table(shown, right=set(columns) - left, folds={fold})
    for row in rows:
        table.add_row(*(row[name] for name in shown))
    return table


def _table(columns: Sequence[str], right: set[str], folds: set[str] | None = None) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, GAP, 0, 0))
    wide = not is_terminal(sys.stdout)
    for column in columns:
        justify: Literal["left", "right"] = "right" if column in right else "left"
        table.add_column(
            column, justify=justify, no_wrap=wide or column not in (folds or ()), overflow="fold"
        )
    return table


def _grid() -> Table:
    from rich.table import Table

    grid = Table.grid(padding=(0, GAP, 0, 0))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    return grid
