"""`orch recover` and `orch secrets`: jobs back from storage when the server's store is lost."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orch.cli import output
from orch.cli.app import Cluster, Output, verb
from orch.cli.output import Format
from orch.model.errors import NoServer, NoSuchJob, OrchError, WrongUse

if TYPE_CHECKING:
    from orch.api.client import Client
    from orch.control.jobrecord import StoredJob
    from orch_workers.checkpoint import Storage

Document = dict[str, Any]

SECRET_OPTIONS = ("key", "secret", "token")
"""Options of a storage that are for this command alone: they never become part of a job."""
REFUSED = "refused"


def register(app: typer.Typer) -> None:
    verb(
        app,
        "orch recover s3://bucket/prefix --dry-run",
        "orch recover s3://bucket/prefix",
        "orch recover /data/checkpoints digits-x7k2m",
    )(recover)
    verb(app, "orch secrets digits-x7k2m", "orch secrets $(cat blocked-jobs)")(secrets)


def recover(
    url: Annotated[str, typer.Argument(metavar="STORAGE_URL", help="Where jobs keep their checkpoints.")],
    jobs: Annotated[
        list[str] | None, typer.Argument(metavar="JOB", help="Only these.", show_default=False)
    ] = None,
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "-n", help="Show what would be done; start nothing.")
    ] = False,
    options: Annotated[
        list[str] | None,
        typer.Option("--option", metavar="NAME=VALUE", help="Of the storage, such as endpoint_url=https://…"),
    ] = None,
    output_format: Output = Format.TABLE,
    cluster: Cluster = None,
) -> None:
    """Reads jobs back from their storage, when the server's store is lost.

    Those that had not ended go on from their newest checkpoint. Jobs with secrets wait, BLOCKED, until
    `orch secrets JOB` sets them again. Jobs that the server knows are left alone, so it can be repeated.
    The storage is read with the credentials of whoever types the command.
    """
    from orch.cli.checkpoints_place import parse_options, sentences
    from orch_workers.checkpoint import open_storage

    given = parse_options(options or ())
    url = url.rstrip("/") if "://" in url else str(Path(url).expanduser().absolute())
    with sentences(), output.progress() as shown:
        storage = open_storage(url, given, dict(os.environ), unfenced=True)
        found = list(_found(storage, _names(storage, jobs or []), shown))
        kept = {name: value for name, value in given.items() if name not in SECRET_OPTIONS}
        told = _foreseen(found, cluster) if dry_run else _put_back(found, url, kept, cluster, shown)
    _show(told, url, output_format, dry_run=dry_run)
    if any(one["outcome"] == REFUSED for one in told):
        raise typer.Exit(1)


def _names(storage: Storage, asked: list[str]) -> list[str]:
    from orch.model.ids import valid_job_id

    names = [name for name in storage.folders() if valid_job_id(name)]
    missing = [name for name in asked if name not in names]
    if missing:
        raise NoSuchJob(f"{storage.url} holds no job {missing[0][:80]!r}")
    return asked or names


def _found(
    storage: Storage, names: list[str], shown: output.Progress
) -> Iterator[tuple[str, StoredJob | str]]:
    """Each job, or why it cannot be one. Folders without a job's record (of plain scripts) are passed over."""
    from orch.control.jobrecord import UnreadableJobError, read_job
    from orch_workers.checkpoint import CheckpointError

    some = False
    for number, name in enumerate(names):
        shown.measure(f"reading {len(names)} jobs", number / len(names))
        try:
            stored = read_job(storage, name)
        except (UnreadableJobError, CheckpointError) as error:
            some = True
            yield name, str(error)
            continue
        if stored is not None:
            some = True
            yield name, stored
    if not some:
        raise NoSuchJob(f"{storage.url} holds no jobs of orch: name the folder that their folders lie in")


def _foreseen(found: list[tuple[str, StoredJob | str]], cluster: str | None) -> list[Document]:
    from orch.cli.connect import connected

    known: set[str] = set()
    # Nothing is started for a look: where no server answers, none knows any job.
    with contextlib.suppress(NoServer), connected(cluster) as client:
        known = {str(job["id"]) for job in client.jobs()}
    told = []
    for name, stored in found:
        if isinstance(stored, str):
            told.append(_told(name, REFUSED, stored))
        elif name in known:
            told.append(_told(name, "known", "the server knows it: it is left alone", stored))
        elif stored.end is not None:
            told.append(_told(name, "ended", f"it is over: {stored.end['state']}", stored))
        elif stored.spec.get("secrets"):
            names = ", ".join(stored.spec["secrets"])
            told.append(_told(name, "blocked", f"its secrets ({names}) are to be set again", stored))
        else:
            told.append(_told(name, "resumed", "", stored))
    return told


def _put_back(
    found: list[tuple[str, StoredJob | str]],
    url: str,
    options: Mapping[str, str],
    cluster: str | None,
    shown: output.Progress,
) -> list[Document]:
    from orch.cli.connect import connected_or_started

    told = []
    with connected_or_started(cluster, shown) as client:
        for number, (name, stored) in enumerate(found):
            shown.measure(f"recovering {len(found)} jobs", number / len(found))
            if isinstance(stored, str):
                told.append(_told(name, REFUSED, stored))
                continue
            try:
                told.append(_put_back_one(client, stored, url, options))
            except NoServer:
                raise
            except OrchError as error:
                told.append(_told(name, REFUSED, error.message, stored))
    return told


def _put_back_one(client: Client, stored: StoredJob, url: str, options: Mapping[str, str]) -> Document:
    document = asdict(stored)
    del document["job"]
    outcome, job = client.recover(
        stored.job, {**document, "url": url, "spec": _with_storage(stored, url, options)}
    )
    why = "the server knows it: it is left alone" if outcome == "known" else str(job["reason"] or "")
    return _told(stored.job, outcome, why, stored) | {"state": job["state"]}


def _with_storage(stored: StoredJob, url: str, options: Mapping[str, str]) -> Document:
    """The job's spec with the storage that it was found in, which need not be where it was."""
    checkpoint = dict(stored.spec.get("checkpoint") or {})
    before = checkpoint.get("storage") or {}
    merged = {**(before.get("options") or {}), **options} if "://" in url else {}
    return {**stored.spec, "checkpoint": {**checkpoint, "storage": {"url": url, "options": merged}}}


def _told(job: str, outcome: str, reason: str, stored: StoredJob | None = None) -> Document:
    from orch.control.jobrecord import next_attempt

    goes_on = stored is not None and outcome in {"resumed", "blocked"}
    return {
        "job": job,
        "outcome": outcome,
        "state": None,
        "step": None if stored is None else stored.step,
        "attempt": next_attempt(stored) if goes_on and stored is not None else None,
        "reason": reason,
    }


def _show(told: list[Document], url: str, output_format: Format, *, dry_run: bool) -> None:
    if output_format is Format.JSON:
        document = {"version": output.VERSION, "storage": url, "dry_run": dry_run, "jobs": told}
        output.write_json(document)
        return
    for one in told:
        step = "" if one["step"] is None else f"step {one['step']}"
        place = step if one["attempt"] is None else f"{step or 'no step'}, attempt {one['attempt']}"
        parts = [one["job"], one["outcome"], *([place] if place else []), one["reason"]]
        output.write_line("  ".join(part for part in parts if part))
    if dry_run:
        output.say("orch: nothing was done; without --dry-run, it is")


def secrets(
    jobs: Annotated[list[str], typer.Argument(metavar="JOB...", help="Ids of jobs.", show_default=False)],
    output_format: Output = Format.TABLE,
    cluster: Cluster = None,
) -> None:
    """Sets a job's secrets again, from the environment of this command.

    For jobs that are BLOCKED because their secrets were lost (`orch recover`, or a new key): they go on.
    """
    from orch.cli.connect import connected
    from orch.model.ids import valid_job_id
    from orch.model.jobfile import secret_values
    from orch.model.spec import JobSpec

    for job in jobs:
        if not valid_job_id(job):
            raise NoSuchJob(f"{job[:80]!r} cannot be a job's id; `orch status` lists the jobs of this server")
    found = []
    with connected(cluster) as client:
        for job in jobs:
            spec = JobSpec.model_validate(client.job(job)["spec"])
            if not spec.secrets:
                raise WrongUse(f"{job} has no secrets")
            found.append(client.set_secrets(job, secret_values(spec, os.environ)))
    if output_format is Format.JSON:
        output.write_json({"version": output.VERSION, "jobs": found})
        return
    for one in found:
        output.write_line(f"{one['id']} is {one['state']}" + (f": {one['reason']}" if one["reason"] else ""))
