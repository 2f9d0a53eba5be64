"""`JOB`, `JOB@STEP`, `URL`, `URL@STEP`: whose checkpoints are meant, and where they lie.

A job's storage is asked of its server; without one, checkpoints are found in the home's default folder. A URL needs
neither. Credentials are those of whoever types the command.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orch.cli.connect import connected, find_target
from orch.model.errors import NoServer, NoSuchJob, OrchError, WrongUse
from orch.model.ids import valid_job_id

if TYPE_CHECKING:
    from orch.model.spec import JobSpec
    from orch_policies.retention import Rules
    from orch_workers.checkpoint import Catalog, RestorePoint, Storage

Document = dict[str, Any]
Generation = tuple[int, int]

JOB_FILE_BYTES_MAX = 16 << 20
JOBS_NAMED_MAX = 10
_STEP = re.compile(r"(?:([0-9]{1,9})\.([0-9]{1,9}):)?([0-9]{1,18})")
ADDRESS_ALLOWED = "JOB, JOB@STEP, URL or URL@STEP; JOB@1.2:STEP names the generation too"


@dataclass(frozen=True, slots=True)
class Address:
    """What was typed, taken apart."""

    where: str
    step: int | None = None
    generation: Generation | None = None

    @property
    def is_job(self) -> bool:
        return valid_job_id(self.where)


def parse_address(text: str) -> Address:
    """WrongUse for what names neither a job nor a place."""
    where, at, tail = text.rpartition("@")
    if not at or "/" in tail:  # an @ in the middle of a URL is part of it
        where, at, tail = text, "", ""
    if not where or not where.isprintable():
        raise WrongUse(f"{text[:200]!r} names no checkpoint; write {ADDRESS_ALLOWED}")
    if not at:
        return Address(where)
    step, generation = parse_step(tail)
    if step is None:
        raise WrongUse(f"{text[:200]!r}: {tail[:80]!r} is no step; write {ADDRESS_ALLOWED}")
    return Address(where, step, generation)


def parse_step(text: str) -> tuple[int | None, Generation | None]:
    """`STEP`, or `1.2:STEP` with the generation. (None, None) for anything else."""
    found = _STEP.fullmatch(text)
    if found is None:
        return None, None
    return int(found[3]), (int(found[1]), int(found[2])) if found[1] else None


@dataclass(frozen=True)
class Place:
    """A job's folder in storage, and what is known of the job itself."""

    catalog: Catalog
    job: Document | None = None
    """The server's document; None without one."""
    spec: JobSpec | None = None
    missing_secrets: Sequence[str] = field(default=())

    @property
    def job_id(self) -> str:
        return self.catalog.job_id

    @property
    def url(self) -> str:
        return f"{self.catalog.storage.url}/{self.job_id}"

    @property
    def is_over(self) -> bool | None:
        """None: nobody here knows."""
        from orch.cli.following import ENDED

        return None if self.job is None else self.job["state"] in ENDED

    @property
    def rules(self) -> Rules | None:
        """What `keep` in the job file says; None where there is no job file."""
        from orch.control.configs import rules_of

        return None if self.spec is None else rules_of(self.spec.checkpoint.keep, self.spec.stop)

    def point(self, address: Address) -> RestorePoint:
        from orch_workers.checkpoint.listing import find_point

        return find_point(self.catalog, address.step, address.generation)


@contextlib.contextmanager
def sentences(*places: Place) -> Iterator[None]:
    """What storage and checkpoints have to say leaves as a sentence, with what to do about it."""
    from orch_workers.checkpoint import CheckpointError, NotFound, StorageError, StorageRefused

    try:
        yield
    except StorageRefused as error:
        missing = sorted({name for place in places for name in place.missing_secrets})
        hint = (
            f"; the job's secrets {', '.join(missing)} are not set here: set them and try again"
            if missing
            else ""
        )
        raise OrchError(f"{error}{hint}") from error
    except NotFound as error:
        raise OrchError(f"{error}; `orch checkpoints list` shows what is there") from error
    except (StorageError, CheckpointError, FileExistsError) as error:
        raise OrchError(str(error)) from error


def find_place(address: Address, cluster: str | None = None, options: Sequence[str] = ()) -> Place:
    """NoSuchJob, NoServer or WrongUse when there is no such place. Nothing is read from storage yet but job.json."""
    given = parse_options(options)
    if address.is_job:
        if given:
            raise WrongUse(
                "--option is for a storage that is named by its URL; a job's options are in its job file"
            )
        return _place_of_job(address.where, cluster)
    return _place_of_url(address.where, given)


def parse_options(options: Sequence[str]) -> dict[str, str]:
    found = {}
    for option in options:
        name, equals, value = option.partition("=")
        if not name or not equals:
            raise WrongUse(
                f"--option: {option!r} is no NAME=VALUE, such as endpoint_url=http://127.0.0.1:9000"
            )
        found[name] = value
    return found


def split_url(url: str) -> tuple[str, str]:
    """(prefix, job). WrongUse when the last part cannot be a job's id."""
    from orch_workers.checkpoint.location import split_location

    try:
        return split_location(url)
    except ValueError as error:
        raise WrongUse(
            f"{error}: name the job's own folder, such as s3://bucket/prefix/JOB, or write ./ before a folder here"
        ) from None


def _place_of_url(url: str, options: Mapping[str, str]) -> Place:
    from orch_workers.checkpoint import Catalog

    prefix, job = split_url(url)
    storage = _open(prefix, options, dict(os.environ))
    catalog = Catalog(storage, job)
    place = Place(catalog)
    with sentences(place):
        spec = _stored_spec(catalog)
        if spec is None and not catalog.generations() and not catalog.committed():
            raise NoSuchJob(f"{place.url} holds no checkpoints{_jobs_below(url)}")
    return Place(catalog, spec=spec)


def _place_of_job(job: str, cluster: str | None) -> Place:
    from orch.model.spec import JobSpec
    from orch_workers.checkpoint import Catalog

    target = find_target(cluster)
    stored = target.home.storage / job
    try:
        with connected(cluster) as client:
            document = client.job(job)
    except NoServer as error:
        if target.kind == "home" and stored.is_dir():
            return _place_of_url(str(stored), {})
        raise NoServer(
            f"{error.message}; without a server name the storage instead of the job: orch checkpoints list URL, with a "
            f"URL such as s3://bucket/prefix/{job}"
        ) from error
    except NoSuchJob:
        if target.kind == "home" and stored.is_dir():
            return _place_of_url(str(stored), {})
        raise
    spec = JobSpec.model_validate(document["spec"])
    if spec.checkpoint.storage is None:
        raise OrchError(f"the server does not say where {job} keeps its checkpoints")
    url, options = spec.checkpoint.storage.url, spec.checkpoint.storage.options
    if "://" not in url and target.kind != "home" and not Path(url).is_dir():
        raise OrchError(
            f"{job} keeps its checkpoints in {url} on the server's machine, and that folder is not here: "
            f"use the command on that machine"
        )
    secrets = {name: os.environ[name] for name in spec.secrets if name in os.environ}
    env = {**os.environ, **spec.env, **secrets}
    missing = [name for name in spec.secrets if name not in os.environ]
    return Place(Catalog(_open(url, options, env), job), document, spec, missing)


def _open(url: str, options: Mapping[str, Any], env: Mapping[str, str]) -> Storage:
    """Whether its creates are fenced is no question here: what is committed is read, and a mark is harmless."""
    from orch_workers.checkpoint import open_storage

    with sentences():
        return open_storage(url, options, env, unfenced=True)


def open_target(url: str, job: str, options: Sequence[str]) -> Catalog:
    """Where a copy of a checkpoint of `job` goes: the job's folder itself, or the prefix that it lies below."""
    from orch_workers.checkpoint import Catalog, open_storage

    text = url if "://" in url else str(Path(url).expanduser().absolute())
    text = text.rstrip("/")
    prefix = text.removesuffix(f"/{job}") if text.endswith(f"/{job}") else text
    with sentences():
        return Catalog(open_storage(prefix, parse_options(options), dict(os.environ)), job)


def _stored_spec(catalog: Catalog) -> JobSpec | None:
    """Of the job's own record in storage. None: no job of orch's, or a record that another version wrote."""
    from pydantic import ValidationError

    from orch.model.spec import JobSpec
    from orch_workers.checkpoint import NotFound

    try:
        data = catalog.storage.read(catalog.path("job.json"), 0, JOB_FILE_BYTES_MAX)
        return JobSpec.model_validate(json.loads(data)["spec"])
    except (NotFound, ValueError, KeyError, TypeError, ValidationError):
        return None


def _jobs_below(url: str) -> str:
    if "://" in url:
        return ": name the job's own folder, such as s3://bucket/prefix/JOB"
    folder = Path(url).expanduser().absolute()
    with contextlib.suppress(OSError):
        jobs = sorted(
            below.name
            for below in folder.iterdir()
            if (below / "manifests").is_dir() and valid_job_id(below.name)
        )
        if jobs:
            named = ", ".join(jobs[:JOBS_NAMED_MAX]) + (" …" if len(jobs) > JOBS_NAMED_MAX else "")
            return f", but the jobs {named} lie below it: name one of them, such as {folder / jobs[0]}"
    return ""
