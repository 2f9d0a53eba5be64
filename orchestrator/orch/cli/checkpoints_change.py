"""`orch checkpoints pin|unpin|prune|cp|export|rm`: what keeps, removes or takes elsewhere."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click
import typer

from orch.cli import output
from orch.cli.app import Cluster, Output, verb
from orch.cli.checkpoints_place import Place, find_place, open_target, parse_address, sentences
from orch.cli.output import Format
from orch.model.errors import OrchError, WrongUse

if TYPE_CHECKING:
    from orch_policies.retention import Rules
    from orch_workers.checkpoint import RestorePoint

Document = dict[str, Any]

Checkpoint = Annotated[
    str,
    typer.Argument(
        metavar="JOB@STEP",
        show_default=False,
        help="A job's id, or the URL or path of its folder in storage, and the step.",
    ),
]
Job = Annotated[
    str,
    typer.Argument(
        metavar="JOB", show_default=False, help="A job's id, or the URL or path of its folder in storage."
    ),
]
Options = Annotated[
    list[str] | None,
    typer.Option(
        "--option",
        metavar="NAME=VALUE",
        show_default=False,
        help="Of the storage that a URL names; repeatable.",
    ),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def register(group: typer.Typer) -> None:
    verb(
        group,
        "orch checkpoints pin digits-x7k2m@1200",
        'orch checkpoints pin digits-x7k2m@1200 --note "figure 3"',
    )(pin)
    verb(group, "orch checkpoints unpin digits-x7k2m@1200")(unpin)
    verb(
        group,
        "orch checkpoints prune digits-x7k2m --dry-run",
        "orch checkpoints prune s3://bucket/prefix/digits-x7k2m --keep-last 1",
    )(prune)
    verb(
        group,
        "orch checkpoints cp digits-x7k2m@1200 s3://archive/digits",
        "orch checkpoints cp digits-x7k2m@1200 /mnt/archive",
        name="cp",
    )(copy)
    verb(
        group,
        "orch checkpoints export digits-x7k2m@1200 --to safetensors               # a folder, a file per argument",
        "orch checkpoints export digits-x7k2m@1200 --to torch --only model --into model.pt",
    )(export)
    verb(
        group,
        "orch checkpoints rm digits-x7k2m@1200",
        "orch checkpoints rm digits-x7k2m@1200 --yes",
        name="rm",
    )(remove)


def _with_step(job: str) -> None:
    if parse_address(job).step is None:
        raise WrongUse(f"{job} names no step: write {job}@STEP; `orch checkpoints list {job}` shows them")


def pin(
    job: Checkpoint,
    note: Annotated[str, typer.Option("--note", help="Why; shown by list.")] = "",
    output_format: Output = Format.TABLE,
    option: Options = None,
    cluster: Cluster = None,
) -> None:
    """Keeps a checkpoint, whatever the rules of `keep` say."""
    _with_step(job)
    address = parse_address(job)
    place = find_place(address, cluster, option or ())
    with sentences(place):
        point = place.point(address)
        new = place.catalog.pin(point, note)
    _tell_pin(place, point, "pinned" if new else "pinned already; the first note stays", output_format)


def unpin(
    job: Checkpoint,
    output_format: Output = Format.TABLE,
    option: Options = None,
    cluster: Cluster = None,
) -> None:
    """Lets the rules of `keep` decide about a checkpoint again."""
    _with_step(job)
    address = parse_address(job)
    place = find_place(address, cluster, option or ())
    with sentences(place):
        point = place.point(address)
        was = place.catalog.unpin(point)
    _tell_pin(place, point, "not pinned any more" if was else "was not pinned", output_format)


def _tell_pin(place: Place, point: RestorePoint, told: str, output_format: Format) -> None:
    from orch.cli.checkpoints_tables import named, point_text

    if output_format is Format.JSON:
        pinned = told.startswith("pinned")
        document = {"version": output.VERSION, "job": place.job_id, "storage": place.url}
        output.write_json({**document, "checkpoints": [{**named(point), "is_pinned": pinned}]})
    else:
        output.write_line(f"{place.job_id} {point_text(named(point))}: {told}")


def prune(
    job: Job,
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would go and why; remove nothing.")
    ] = False,
    keep_last: Annotated[
        int | None,
        typer.Option(
            "--keep-last", metavar="N", min=1, show_default=False, help="Instead of the job file's rules."
        ),
    ] = None,
    yes: Yes = False,
    output_format: Output = Format.TABLE,
    option: Options = None,
    cluster: Cluster = None,
) -> None:
    """Removes what no rule of `keep` asks for.

    Pinned ones, those in quarantine and the newest are never removed.
    """
    from orch.cli.checkpoints_tables import prune_table
    from orch.model.units import describe_size

    address = parse_address(job)
    if address.step is not None:
        raise WrongUse(f"prune looks at all checkpoints of a job; to remove one: orch checkpoints rm {job}")
    place = find_place(address, cluster, option or ())
    rules = _rules(place, keep_last)
    with sentences(place):
        document = _judged(place, rules)
    kept, removed = document["kept"], document["removed"]
    size = describe_size(sum(one["size_bytes"] or 0 for one in removed))
    if output_format is Format.TABLE:
        output.console().print(prune_table(kept, removed))
    if not dry_run and removed:
        _ask(f"remove {len(removed)} of {len(kept) + len(removed)} checkpoints ({size})?", yes=yes)
        with sentences(place):
            done = {point[:2] for point in place.catalog.retain(rules).removed}
        document["removed"] = [one for one in removed if _spot(one) in done]
    if output_format is Format.JSON:
        output.write_json({**document, "dry_run": dry_run})
    elif dry_run:
        output.say(f"dry run: {len(removed)} would be removed ({size}), nothing was")
    else:
        output.say(f"{len(document['removed'])} removed" if removed else "nothing to remove")


def _rules(place: Place, keep_last: int | None) -> Rules:
    from orch_policies.retention import Rules

    if keep_last is not None:
        return Rules(last=keep_last)
    if place.rules is None:
        raise WrongUse(f"{place.url} has no job file that says what to keep: name --keep-last N")
    return place.rules


def _judged(place: Place, rules: Rules) -> Document:
    from orch.cli.checkpoints_tables import named
    from orch_workers.checkpoint.listing import list_checkpoints

    listed = list_checkpoints(place.catalog, rules)
    documents = []
    for one in listed:
        size_bytes = one.manifest.size_bytes if one.manifest else None
        documents.append({**named(one.point), "size_bytes": size_bytes, "why": _why(one)})
    goes = [one.on_chain and one.quarantined is None and one.kept is None for one in listed]
    return {
        "version": output.VERSION,
        "job": place.job_id,
        "storage": place.url,
        "rules": rules.to_dict(),
        "kept": [document for document, gone in zip(documents, goes, strict=True) if not gone],
        "removed": [document for document, gone in zip(documents, goes, strict=True) if gone],
    }


def _why(one: Any) -> str:
    if one.kept is not None:
        return str(one.kept)
    if one.quarantined is not None:
        return "in quarantine, for a person to look at; `orch checkpoints rm` removes it"
    if not one.on_chain:
        return "off the chain: the job's own sweep takes it"
    return "no rule of `keep` asks for it"


def _spot(one: Document) -> tuple[tuple[int, int], int]:
    from orch_workers.training.slots import parse_generation

    return parse_generation(one["generation"]), one["step"]


def _ask(question: str, *, yes: bool) -> None:
    """WrongUse where nobody can answer; exit code 1 for no."""
    if yes:
        return
    if not output.is_terminal(sys.stdin):
        raise WrongUse(f"{question} Nobody can be asked here: add --yes")
    if not click.confirm(question, err=True):
        raise OrchError("nothing was removed")


def copy(
    job: Checkpoint,
    url: Annotated[
        str,
        typer.Argument(
            metavar="URL",
            show_default=False,
            help="Prefix or path below which the job's folder is made or found.",
        ),
    ],
    output_format: Output = Format.TABLE,
    option: Options = None,
    to_option: Annotated[
        list[str] | None,
        typer.Option(
            "--to-option", metavar="NAME=VALUE", show_default=False, help="Of the storage at URL; repeatable."
        ),
    ] = None,
    cluster: Cluster = None,
) -> None:
    """Copies a checkpoint into another storage, where it can be restored by itself.

    Digests are checked on the way. A copy that broke off is finished by the same command.
    """
    from orch.cli.checkpoints_meter import Meter
    from orch.cli.checkpoints_tables import named, point_text
    from orch.model.units import describe_size
    from orch_workers.checkpoint.copying import bytes_of
    from orch_workers.checkpoint.copying import copy as copy_checkpoint

    _with_step(job)
    address = parse_address(job)
    place = find_place(address, cluster, option or ())
    target = open_target(url, place.job_id, to_option or ())
    with sentences(place):
        point = place.point(address)
        with Meter(f"copying step {point.step}", bytes_of(place.catalog, point)) as meter:
            done = copy_checkpoint(place.catalog, point, target, moved=meter.moved)
    there = f"{target.storage.url}/{target.job_id}"
    if output_format is Format.JSON:
        result = {**named(point), "size_bytes": done.size_bytes, "there_bytes": done.there_bytes}
        document = {"version": output.VERSION, "job": place.job_id, "storage": place.url, "to": there}
        output.write_json({**document, "checkpoint": {**result, "already": done.already}})
    elif done.already:
        output.write_line(
            f"{place.job_id} {point_text(named(point))} is in {there} already; its digests match"
        )
    else:
        output.write_line(
            f"{place.job_id} {point_text(named(point))} is in {there} now ({describe_size(done.size_bytes)})"
        )


def export(
    job: Checkpoint,
    *,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="FORMAT",
            show_default=False,
            help="safetensors, torch (state dicts), torch-plain (one {epoch, model_state_dict, …}), tensorflow,"
            " or files (as the script wrote them).",
        ),
    ],
    into: Annotated[
        Path | None,
        typer.Option(
            "--into",
            metavar="PATH",
            show_default=False,
            help="A folder with a file per argument, or with .safetensors or .pt at its end one file."
            " Default: the folder JOB-STEP here.",
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only", metavar="ARGUMENT", show_default=False, help="This argument alone; may be repeated."
        ),
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace files that are there.")] = False,
    output_format: Output = Format.TABLE,
    option: Options = None,
    cluster: Cluster = None,
) -> None:
    """Writes a checkpoint as files for other programs.

    safetensors: `load_state_dict(load_file(…))`; torch: `torch.load(…, weights_only=True)`, needs PyTorch here.
    """
    from orch.cli.checkpoints_meter import Meter
    from orch_workers.checkpoint import exporting, exporting_files
    from orch_workers.checkpoint.content import Content

    if to not in (formats := (*exporting.FORMATS, exporting_files.FORMAT)):
        raise WrongUse(f"--to: {to!r} is no format; allowed: {', '.join(formats)}")
    address = parse_address(job)
    place = find_place(address, cluster, option or ())
    with sentences(place):
        point = place.point(address)
        content = Content.open(place.catalog, point)
        target = into or Path(f"{place.job_id}-{point.step}")
        try:
            with Meter("exporting", exporting.tree_size_bytes(content, only or ())) as meter:
                given: dict[str, Any] = {"only": only or (), "replace": replace, "moved": meter.moved}
                if to == exporting_files.FORMAT:
                    files = exporting_files.export(content, target, **given)
                else:
                    files = exporting.export(content, to, target, **given)
        except FileExistsError as error:
            raise WrongUse(f"{error}: name another place with --into, or add --replace") from error
        except OSError as error:
            raise OrchError(f"cannot write {target}: {error.strerror or error}") from error
    _tell_exported(place, point, files, output_format)


def _tell_exported(place: Place, point: RestorePoint, files: list[Any], output_format: Format) -> None:
    from orch.cli.checkpoints_tables import named
    from orch.cli.humans import count, one_line
    from orch.model.units import describe_size

    if output_format is Format.JSON:
        documents = [
            {
                "path": str(file.path),
                "arguments": list(file.arguments),
                "tensors": file.tensors,
                "size_bytes": file.size_bytes,
                "notes": list(file.notes),
            }
            for file in files
        ]
        document = {"version": output.VERSION, "job": place.job_id, "storage": place.url}
        output.write_json({**document, "checkpoint": named(point), "files": documents})
        return
    for file in files:
        held = describe_size(file.size_bytes)
        if file.arguments:
            held = f"{', '.join(map(one_line, file.arguments))}: {count(file.tensors, 'tensor')}, {held}"
        output.write_line(f"{file.path}  ({held})")
        for note in file.notes:
            output.say(f"  {one_line(note)}")


def remove(
    job: Checkpoint,
    *,
    force: Annotated[
        bool, typer.Option("--force", help="Also a pinned one, and the newest of a job that is not over.")
    ] = False,
    yes: Yes = False,
    output_format: Output = Format.TABLE,
    option: Options = None,
    cluster: Cluster = None,
) -> None:
    """Removes a checkpoint for good.

    Refused without --force for a pinned one, and for the newest restore point of a job that is not over.
    """
    from orch.cli.checkpoints_tables import named, point_text
    from orch_workers.checkpoint import Damaged

    _with_step(job)
    address = parse_address(job)
    place = find_place(address, cluster, option or ())
    with sentences(place):
        point = place.point(address)
        what = f"{place.job_id} {point_text(named(point))}"
        if not force:
            _refuse(place, point, what)
        size_bytes = None
        with contextlib.suppress(Damaged):
            size_bytes = place.catalog.manifest(point).size_bytes
        _ask(f"remove {what} for good?", yes=yes)
        place.catalog.unpin(point)
        place.catalog.remove(point)
    if output_format is Format.JSON:
        document = {"version": output.VERSION, "job": place.job_id, "storage": place.url}
        output.write_json({**document, "removed": [{**named(point), "size_bytes": size_bytes}]})
    else:
        output.write_line(f"{what} is removed")


def _refuse(place: Place, point: RestorePoint, what: str) -> None:
    if any(pinned[:2] == point[:2] for pinned in place.catalog.pins()):
        raise WrongUse(f"{what} is pinned: unpin it first with `orch checkpoints unpin`, or add --force")
    if place.is_over:
        return
    newest = place.catalog.restore_points()[:1]
    if [one[:2] for one in newest] == [point[:2]]:
        whose = "a job that is not over" if place.is_over is False else "a job that may not be over"
        raise WrongUse(
            f"{what} is the newest restore point of {whose}: it would go on from an older one, or from nothing; "
            f"add --force if that is meant"
        )
