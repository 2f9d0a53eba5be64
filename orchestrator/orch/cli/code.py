"""`orch code list|diff`: the versions of a job's code, which lie beside its checkpoints."""

from __future__ import annotations

import io
import zipfile
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orch.cli import output
from orch.cli.app import Cluster, Job, Output, make, verb
from orch.cli.checkpoints_place import Address, Place, find_place, sentences
from orch.cli.output import Format
from orch.model.code_versions import versions_of
from orch.model.errors import OrchError, WrongUse

if TYPE_CHECKING:
    from collections.abc import Mapping

Document = dict[str, Any]

TEXT_BYTES_MAX = 1 << 20
"""Longer files are compared, and not shown line by line."""
DIGEST_CHARS = 12

Version = Annotated[
    str,
    typer.Argument(metavar="VERSION", show_default=False, help="Its number, or the beginning of its digest."),
]


def register(app: typer.Typer) -> None:
    group = make(
        "The versions of a job's code: `orch submit` ships the first, `orch resume --workdir` the next.",
        "orch code list digits-x7k2m",
        "orch code diff digits-x7k2m 1 2",
    )
    verb(group, "orch code list digits-x7k2m", name="list")(list_all)
    verb(group, "orch code diff digits-x7k2m 1 2")(diff)
    app.add_typer(group, name="code")


def list_all(job: Job, output_format: Output = Format.TABLE, cluster: Cluster = None) -> None:
    """Every version of a job's code, with the first attempt that ran it and the checkpoints that it made."""
    from orch.cli.checkpoints_tables import generation_text, short
    from orch.cli.tables import plain_table
    from orch_workers.checkpoint.listing import list_checkpoints

    place, versions = _versions(job, cluster)
    with sentences(place):
        listed = list_checkpoints(place.catalog)
    made: dict[str, list[str]] = {one["digest"]: [] for one in versions}
    for found in reversed(listed):
        if found.manifest is not None and found.manifest.code in made:
            where = short(generation_text(found.point.generation))
            made[found.manifest.code].append(f"{where}:{found.step}")
    if output_format is Format.JSON:
        told = [{**one, "checkpoints": made[one["digest"]]} for one in versions]
        output.write_json({"version": output.VERSION, "job": place.job_id, "versions": told})
        return
    table = plain_table(["VERSION", "FROM ATTEMPT", "DIGEST", "COMMIT", "CHECKPOINTS"], right={"VERSION"})
    for one in versions:
        commit = str(one.get("git_commit") or "-")[:DIGEST_CHARS] + (
            ", changed" if one.get("git_dirty") else ""
        )
        cells = (one["version"], one["attempt"], one["digest"][:DIGEST_CHARS], commit)
        table.add_row(*map(str, cells), ", ".join(made[one["digest"]]) or "-")
    output.console().print(table)


def diff(job: Job, before: Version, after: Version, cluster: Cluster = None) -> None:
    """What differs between two versions of a job's code, as `diff -u` shows it.

    Exit code 0 when they are equal, 1 when they differ.
    """
    place, versions = _versions(job, cluster)
    one, other = (_chosen(versions, text, job) for text in (before, after))
    with sentences(place):
        old, new = (_files(place, version["digest"]) for version in (one, other))
    differs = False
    for path in sorted({*old, *new}):
        if old.get(path) != new.get(path):
            differs = True
            _show_file(path, old.get(path), new.get(path))
    if differs:
        raise typer.Exit(1)


def _versions(job: str, cluster: str | None) -> tuple[Place, list[Document]]:
    place = find_place(Address(job), cluster)
    if place.job is None:
        raise OrchError(
            f"which versions of its code {job} has is known to its server alone, and none answers"
        )
    versions = versions_of(place.job.get("code"))
    if not versions:
        raise WrongUse(f"the code of {job} was not shipped (`ship: never`), so no version of it was kept")
    return place, versions


def _chosen(versions: list[Document], text: str, job: str) -> Document:
    for one in versions:
        if text == str(one["version"]) or (len(text) > 3 and one["digest"].startswith(text)):
            return one
    numbers = ", ".join(str(one["version"]) for one in versions)
    raise WrongUse(f"{job} has no version {text[:80]!r} of its code; it has {numbers}")


def _files(place: Place, digest: str) -> Mapping[str, bytes]:
    data = place.catalog.storage.read(place.catalog.path("code", f"{digest}.zip"))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {entry.filename: archive.read(entry) for entry in archive.infolist() if not entry.is_dir()}


def _show_file(path: str, old: bytes | None, new: bytes | None) -> None:
    import difflib

    names = (f"a/{path}" if old is not None else "/dev/null", f"b/{path}" if new is not None else "/dev/null")
    before, after = _lines(old), _lines(new)
    if before is None or after is None:
        output.write_line(f"{names[0]} and {names[1]} differ")
        return
    for line in difflib.unified_diff(before, after, *names, lineterm=""):
        output.write_line(line)


def _lines(data: bytes | None) -> list[str] | None:
    """None: no text that could be shown."""
    if data is None:
        return []
    if len(data) > TEXT_BYTES_MAX or b"\0" in data:
        return None
    try:
        return data.decode().splitlines()
    except UnicodeDecodeError:
        return None
