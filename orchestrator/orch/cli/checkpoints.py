"""`orch checkpoints list|show|verify|diff`: what a job has saved. What changes something is in checkpoints_change."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orch.cli import output
from orch.cli.app import Cluster, Output, make, verb
from orch.cli.checkpoints_place import Address, Place, find_place, parse_address, sentences
from orch.cli.output import Format
from orch.model.code_versions import versions_of

if TYPE_CHECKING:
    from orch_workers.checkpoint import RestorePoint
    from orch_workers.checkpoint.verifying import Verified

Document = dict[str, Any]

Checkpoints = Annotated[
    str,
    typer.Argument(
        metavar="JOB[@STEP]",
        show_default=False,
        help="A job's id, or the URL or path of its folder in storage; @STEP names one checkpoint.",
    ),
]
Options = Annotated[
    list[str] | None,
    typer.Option(
        "--option",
        metavar="NAME=VALUE",
        show_default=False,
        help="Of the storage that a URL names, such as endpoint_url=…; may be repeated.",
    ),
]


def register(app: typer.Typer) -> None:
    from orch.cli import checkpoints_change, checkpoints_import

    group = make(
        "What a job has saved: look at it, check it, keep it, take it elsewhere.",
        "orch checkpoints list digits-x7k2m",
        "orch checkpoints verify --deep --all s3://bucket/prefix/digits-x7k2m",
        "orch checkpoints export digits-x7k2m@1200 --to safetensors",
    )
    verb(
        group,
        "orch checkpoints list digits-x7k2m",
        "orch checkpoints list s3://bucket/prefix/digits-x7k2m --option endpoint_url=http://127.0.0.1:8333",
        name="list",
    )(list_all)
    verb(group, "orch checkpoints show digits-x7k2m", "orch checkpoints show digits-x7k2m@1200 --tensors")(
        show
    )
    verb(
        group,
        "orch checkpoints verify digits-x7k2m            # the newest: is every object there?",
        "orch checkpoints verify digits-x7k2m --deep --all   # every byte of every one",
    )(verify)
    verb(
        group,
        "orch checkpoints diff digits-x7k2m@1000 digits-x7k2m@1200",
        "orch checkpoints diff digits-x7k2m other-b4c9d     # their newest",
    )(diff)
    checkpoints_change.register(group)
    checkpoints_import.register(group)
    app.add_typer(group, name="checkpoints")


def list_all(
    job: Checkpoints, output_format: Output = Format.TABLE, option: Options = None, cluster: Cluster = None
) -> None:
    """Every checkpoint of a job.

    With its age, size, place, metrics, and the rule that keeps it.
    """
    from orch.cli.checkpoints_tables import checkpoints_table, listed_document
    from orch_workers.checkpoint.listing import list_checkpoints

    place = find_place(parse_address(job), cluster, option or ())
    with sentences(place):
        listed = list_checkpoints(place.catalog, place.rules)
    memory = _in_memory(place.job_id)
    documents = []
    for one in listed:
        where = ["storage"] + (["memory"] if one.point[:2] in memory else [])
        documents.append(listed_document(one, where))
    stored = {one.point[:2] for one in listed}
    documents = [_memory_document(spot) for spot in sorted(set(memory) - stored, reverse=True)] + documents
    if output_format is Format.JSON:
        rules = None if place.rules is None else place.rules.to_dict()
        output.write_json({**_head(place), "rules": rules, "checkpoints": documents})
    elif not documents:
        output.say(f"{place.url} has no checkpoints yet")
    else:
        console = output.console()
        console.print(checkpoints_table(documents, console.width))


def _head(place: Place) -> Document:
    return {"version": output.VERSION, "job": place.job_id, "storage": place.url}


def _in_memory(job: str) -> dict[tuple[tuple[int, int], int], int]:
    """Snapshots of the job in this machine's shared memory: place → bytes."""
    from orch_workers.config import WorkerPaths
    from orch_workers.training.slots import READY, Slot, SlotDamagedError

    found: dict[tuple[tuple[int, int], int], int] = {}
    folder = WorkerPaths(job, 0, Path(), Path()).snapshots
    for path in folder.glob("slot-*"):
        with contextlib.suppress(OSError, SlotDamagedError, ValueError):
            slot = Slot(str(path))
            try:
                header = slot.header()
            finally:
                slot.close()
            if header.state == READY:
                found[header.generation, header.step] = header.data_bytes
    return found


def _memory_document(spot: tuple[tuple[int, int], int]) -> Document:
    """A snapshot that is not in storage yet, or not any more."""
    from orch.cli.checkpoints_tables import generation_text

    absent = dict.fromkeys(
        (
            "epoch", "time", "age_s", "size_bytes", "duration_s", "blocked_s", "on_chain", "kept", "pinned",
            "quarantined", "problem",
        )
    )  # fmt: skip
    place = {"generation": generation_text(spot[0]), "step": spot[1]}
    return {**place, **absent, "restorable": True, "newest": False, "places": ["memory"], "metrics": {}}


def show(
    job: Checkpoints,
    *,
    tensors: Annotated[bool, typer.Option("--tensors", help="Every tensor, not the largest alone.")] = False,
    values: Annotated[bool, typer.Option("--values", help="Everything that is no tensor, by path.")] = False,
    output_format: Output = Format.TABLE,
    option: Options = None,
    cluster: Cluster = None,
) -> None:
    """What is in a checkpoint.

    Arguments, tensors with their shapes, shards, versions. The newest one unless @STEP says which.
    """
    from orch.cli.checkpoints_tables import content_document, listed_document
    from orch_workers.checkpoint.content import Content
    from orch_workers.checkpoint.listing import list_checkpoints

    address = parse_address(job)
    place = find_place(address, cluster, option or ())
    with sentences(place):
        point = place.point(address)
        content = Content.open(place.catalog, point)
        listed = next(
            one for one in list_checkpoints(place.catalog, place.rules) if one.point[:2] == point[:2]
        )
    one = listed_document(listed, ["storage"]) | content_document(content)
    versions = versions_of((place.job or {}).get("code"))
    made_by = [code["version"] for code in versions if code["digest"] == one["code"]]
    one["code_version"] = made_by[-1] if made_by else None
    if output_format is Format.JSON:
        output.write_json({**_head(place), "checkpoint": one})
    else:
        _print_content(place, one, every=tensors, values=values)


def _print_content(place: Place, one: Document, *, every: bool, values: bool) -> None:
    from orch.cli import checkpoints_tables as tables
    from orch.cli.humans import one_line
    from orch_workers.checkpoint.trees import text_of, values_by_path

    console = output.console()
    console.print(tables.facts_table(place.url, one))
    console.print()
    if one["files"]:
        console.print(tables.files_table(one["files"]))
        return
    console.print(tables.arguments_table(one["arguments"]))
    if one["tensors"]:
        console.print()
        console.print(tables.tensors_table(one["tensors"], every=every))
        more = len(one["tensors"]) - tables.TENSORS_SHOWN
        if more > 0 and not every:
            console.print(f"and {more} smaller ones: --tensors shows them")
    console.print()
    console.print(tables.shards_table(one["shards"]))
    if values:
        console.print()
        for path, node in values_by_path(one["tree"]):
            console.print(f"{one_line(path)}: {one_line(text_of(node))}")


def verify(
    job: Checkpoints,
    *,
    deep: Annotated[
        bool, typer.Option("--deep", help="Read every byte and compare it with its digest.")
    ] = False,
    every: Annotated[bool, typer.Option("--all", help="Every checkpoint, not one alone.")] = False,
    quarantine: Annotated[
        bool, typer.Option("--quarantine", help="Mark what is bad, so that no restart takes it.")
    ] = False,
    output_format: Output = Format.TABLE,
    option: Options = None,
    cluster: Cluster = None,
) -> None:
    """Whether checkpoints are what was committed.

    Exit code 1 when one is not. Quick unless --deep: every object is there with its size.
    """
    from orch.cli.checkpoints_meter import Meter
    from orch.cli.checkpoints_tables import verified_document, verified_lines
    from orch_workers.checkpoint.verifying import verify as check

    address = parse_address(job)
    place = find_place(address, cluster, option or ())
    documents = []
    with sentences(place):
        points = _meant(place, address, every=every)
        marks = {point[:2]: reason for point, reason in place.catalog.quarantined().items()}
        total = sum(_data_bytes(place, point) for point in points) if deep else 0
        with Meter("verifying", total) as meter:
            for point in points:
                meter.now(f"verifying step {point.step}")
                found = check(place.catalog, point, deep=deep, moved=meter.moved)
                if quarantine and not found.is_good and point[:2] not in marks:
                    marks[point[:2]] = _reason(found)
                    place.catalog.quarantine(point, _reason(found), needs_version=found.needs_version)
                documents.append(verified_document(found, marks.get(point[:2])))
    if output_format is Format.JSON:
        output.write_json({**_head(place), "checkpoints": documents})
    else:
        for one in documents:
            for line in verified_lines(one):
                output.write_line(line)
    bad = [one for one in documents if not one["good"]]
    if bad:
        output.say(_advice(job, bad))
        raise typer.Exit(1)


def _reason(found: Verified) -> str:
    more = len(found.problems) - 1 + found.more_problems
    return found.problems[0] + (f" (and {more} more problems)" if more else "")


def _meant(place: Place, address: Address, *, every: bool) -> list[RestorePoint]:
    if not every:
        return [place.point(address)]
    points = place.catalog.committed()
    return [point for point in points if address.step in (None, point.step)]


def _data_bytes(place: Place, point: RestorePoint) -> int:
    from orch_workers.checkpoint import Damaged
    from orch_workers.checkpoint.blobs import KIND

    try:
        manifest = place.catalog.manifest(point)
        return (
            manifest.size_bytes if manifest.kind == KIND else sum(rank.data_bytes for rank in manifest.ranks)
        )
    except Damaged:
        return 0


def _advice(job: str, bad: list[Document]) -> str:
    unmarked = [one for one in bad if one["quarantined"] is None]
    count = f"{len(bad)} checkpoint is" if len(bad) == 1 else f"{len(bad)} checkpoints are"
    if not unmarked:
        what = "marked, so no restart takes them; the next older good one is restored instead"
    else:
        what = (
            "not marked yet: a restart would notice and take the next older one; `--quarantine` marks them now, and "
            f"`orch checkpoints rm {job.partition('@')[0]}@{unmarked[0]['step']}` removes one for good"
        )
    return f"orch: {count} bad, {what}"


def diff(
    before: Annotated[str, typer.Argument(metavar="A", show_default=False, help="JOB[@STEP] or URL[@STEP].")],
    after: Annotated[str, typer.Argument(metavar="B", show_default=False, help="The same, of any job.")],
    *,
    every: Annotated[bool, typer.Option("--all", help="Every difference, not the first alone.")] = False,
    output_format: Output = Format.TABLE,
    option: Options = None,
    cluster: Cluster = None,
) -> None:
    """What differs between two checkpoints, and by how much.

    Exit code 0 when they are equal bit for bit, 1 when they differ.
    """
    from orch.cli.checkpoints_meter import Meter
    from orch.cli.checkpoints_tables import comparison_document, named
    from orch_workers.checkpoint.compare import bytes_to_read, compare
    from orch_workers.checkpoint.content import Content

    addresses = [parse_address(before), parse_address(after)]
    places = [find_place(address, cluster, () if address.is_job else option or ()) for address in addresses]
    with sentences(*places):
        points = [place.point(address) for place, address in zip(places, addresses, strict=True)]
        one, other = (Content.open(place.catalog, point) for place, point in zip(places, points, strict=True))
        with Meter("comparing", bytes_to_read(one, other)) as meter:
            found = compare(one, other, moved=meter.moved)
    sides = [
        {"job": place.job_id, "storage": place.url, **named(point)}
        for place, point in zip(places, points, strict=True)
    ]
    document = {
        "version": output.VERSION,
        "before": sides[0],
        "after": sides[1],
        **comparison_document(found),
    }
    if output_format is Format.JSON:
        output.write_json(document)
    else:
        _print_differences(document, every=every)
    if not found.is_equal:
        raise typer.Exit(1)


def _print_differences(document: Document, *, every: bool) -> None:
    from orch.cli import checkpoints_tables as tables
    from orch.cli.humans import count

    console = output.console()
    sides = [f"{side['job']} {tables.point_text(side)}" for side in (document["before"], document["after"])]
    equal = document["tensors_equal"]
    if document["equal"]:
        console.print(
            f"{sides[0]} and {sides[1]} are equal bit for bit: {equal} tensors, and every other value"
        )
        return
    changes, tree = document["tensors"], document["tree"]
    differ = f"{count(len(changes), 'tensor')} {'differs' if len(changes) == 1 else 'differ'}, {equal} equal"
    others = count(len(tree) + document["more_in_tree"], "other value")
    console.print(f"{sides[0]} → {sides[1]}: {differ}; {others}")
    if changes:
        console.print()
        console.print(tables.changes_table(changes, console.width, every=every))
    if tree:
        console.print()
        console.print(tables.tree_table(tree, every=every))
    for title, rows in (("tensors", changes), ("values", tree)):
        more = len(rows) - tables.DIFFERENCES_SHOWN
        if more > 0 and not every:
            console.print(f"and {more} more {title}: --all shows them")
