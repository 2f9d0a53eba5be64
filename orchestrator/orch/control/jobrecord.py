"""A job's own records in its storage: `job.json` from its submit on, `resumed/A.N.json` with each resume,
`ended/A.json` once it is over.

With the checkpoints beside them they are enough to go on without the store (`orch recover`). Formats in
docs/checkpoint-format.md. Knows neither SQL nor Ray: the CLI reads them too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orch.model.states import ENDED, JobState, State
from orch_workers.checkpoint import Catalog, NotFound, Storage
from orch_workers.checkpoint.listing import list_checkpoints

VERSION = 1
RECORD_BYTES_MAX = 16 << 20
CHECKPOINTS_MAX = 50
"""Newest checkpoints that are read back with a job; all of them stay in storage."""
ATTEMPTS_UNSEEN = 99
"""Attempts that may have been placed and have written nothing: the first one after recovery is above them, or a
straggler of the lost cluster could carry its number.
"""
_ATTEMPT = re.compile(r"([0-9]{6,9})(?:\.[0-9]{6,9})?(?:\.json)?")


class UnreadableJobError(ValueError):
    """What lies in storage under a job's name is no job that this version can run again; the message says why."""


@dataclass(frozen=True, kw_only=True)
class StoredJob:
    """What storage knows of a job."""

    job: str
    spec: Mapping[str, Any]
    code: Mapping[str, Any] | None
    seed: int
    unprotected: bool
    submitted_us: int
    """When job.json was written, by the storage's clock."""
    attempt: int
    """The highest attempt that has written anything; 0: none has."""
    step: int | None
    """Of the newest restore point."""
    committed: bool
    """Whether there is any checkpoint at all, restorable or not."""
    checkpoints: tuple[Mapping[str, Any], ...]
    """Newest first: generation, step, epoch, committed_us, size_bytes, quarantined."""
    end: Mapping[str, Any] | None
    """The newest record of an end, if the job has not gone on since: state, reason, exit_code, ended_us."""


def next_attempt(stored: StoredJob) -> int:
    """The number of the first attempt after recovery."""
    return stored.attempt + ATTEMPTS_UNSEEN + 1


def job_record(
    job: str, spec: Mapping[str, Any], code: Mapping[str, Any] | None, *, seed: int, unprotected: bool
) -> bytes:
    document = {"version": VERSION, "job": job, "spec": spec, "code": code, "seed": seed}
    return json.dumps(document | {"unprotected": unprotected}, sort_keys=True).encode()


def resume_path(job: str, attempt: int, number: int) -> str:
    return f"{job}/resumed/{attempt:06d}.{number:06d}.json"


def resume_record(
    job: str,
    spec: Mapping[str, Any],
    code: Mapping[str, Any] | None,
    state: JobState,
    *,
    attempt: int,
    number: int,
) -> bytes:
    """What the job goes on with from `attempt` on; `number` counts its resumes."""
    document = {
        "version": VERSION,
        "job": job,
        "attempt": attempt,
        "number": number,
        "spec": spec,
        "code": code,
    }
    told = {"seed": state.seed, "unprotected": state.unprotected, "reason": state.reason}
    return json.dumps(document | told, sort_keys=True).encode()


def end_path(job: str, attempt: int) -> str:
    return f"{job}/ended/{attempt:06d}.json"


def last_attempt(state: JobState) -> int:
    """Of an end: also one that was asked for and never made, or it would seem that the job goes on with that."""
    return max(state.attempt, state.resumed or 0)


def end_record(state: JobState) -> bytes:
    """Always the same for one end, so that writing it can be repeated."""
    document = {
        "version": VERSION,
        "job": state.job,
        "attempt": last_attempt(state),
        "state": state.state.value,
        "reason": state.reason,
        "exit_code": state.exit_code,
        "ended_us": state.ended_us,
    }
    return json.dumps(document, sort_keys=True).encode()


def read_job(storage: Storage, job: str) -> StoredJob | None:
    """None: there is no job of that name. UnreadableJobError; StorageError."""
    entries = storage.list(job)
    record = next((entry for entry in entries if entry.path == f"{job}/job.json"), None)
    if record is None:
        return None
    # The names are of one length up to a million attempts, so that the last one is the newest.
    resumes = [entry.path for entry in entries if entry.path.startswith(f"{job}/resumed/")]
    document = _document(storage, max(resumes, default=record.path))
    spec, code = document.get("spec"), document.get("code")
    if document.get("job") != job or not isinstance(spec, dict) or not isinstance(code, dict | None):
        raise UnreadableJobError(f"{record.path} is not the record of {job}")
    ends, attempt = [], 0
    for entry in entries:
        _, folder, name, *_ = [*entry.path.split("/"), "", ""]
        found = _ATTEMPT.fullmatch(name)
        if found is not None and folder == "ended":
            ends.append(int(found[1]))
        elif found is not None:
            attempt = max(attempt, int(found[1]))
    end = None
    if ends and max(ends) >= attempt:
        attempt = max(ends)
        end = _end(_document(storage, end_path(job, attempt)), job)
    catalog = Catalog(storage, job)
    points = list_checkpoints(catalog)
    newest = next((point for point in points if point.is_newest), None)
    return StoredJob(
        job=job,
        spec=spec,
        code=code,
        seed=int(document.get("seed") or 0),
        unprotected=bool(document.get("unprotected")),
        submitted_us=record.modified_us,
        attempt=attempt,
        step=None if newest is None else newest.step,
        committed=bool(points),
        checkpoints=tuple(
            {
                "generation": f"{point.point.generation[0]:06d}.{point.point.generation[1]:06d}",
                "step": point.step,
                "epoch": point.epoch,
                "committed_us": point.point.committed_us,
                "size_bytes": point.size_bytes,
                "quarantined": point.quarantined,
            }
            for point in points[:CHECKPOINTS_MAX]
        ),
        end=end,
    )


def _document(storage: Storage, path: str) -> dict[str, Any]:
    try:
        document = json.loads(storage.read(path, 0, RECORD_BYTES_MAX))
    except (NotFound, ValueError) as error:
        raise UnreadableJobError(f"{path} does not read: {error}") from error
    if not isinstance(document, dict) or document.get("version") != VERSION:
        raise UnreadableJobError(f"{path} is of another version of orch; this one knows {VERSION}")
    return document


def _end(document: Mapping[str, Any], job: str) -> Mapping[str, Any]:
    if document.get("job") != job or document.get("state") not in {state.value for state in ENDED}:
        raise UnreadableJobError(f"the record of the end of {job} is not one")
    return {
        "state": State(document["state"]).value,
        "reason": str(document.get("reason") or ""),
        "exit_code": document.get("exit_code"),
        "ended_us": int(document.get("ended_us") or 0),
    }


__all__ = [
    "StoredJob",
    "UnreadableJobError",
    "end_path",
    "end_record",
    "job_record",
    "last_attempt",
    "next_attempt",
    "read_job",
    "resume_path",
    "resume_record",
]
