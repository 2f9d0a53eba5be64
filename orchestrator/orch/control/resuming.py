"""`orch resume`: what of a job may be changed on the way, its new code beside the old, a new branch of its chain."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from orch.control.configs import budgets_of
from orch.control.home import Home
from orch.control.jobrecord import resume_path, resume_record
from orch.control.jobstorage import open_job_storage
from orch.control.recovering import why_secrets_are_missing
from orch.control.service import CodeInfo, Resumption
from orch.control.store import Store
from orch.model.code_versions import versions_of
from orch.model.commands import RecordResume
from orch.model.errors import WrongUse
from orch.model.events import ResumeRequested
from orch.model.generation import Generation
from orch.model.spec import JobSpec
from orch.model.states import PLACED, Branch, JobState, State
from orch_workers.checkpoint import Catalog, CheckpointError
from orch_workers.checkpoint.chain import tuple_of
from orch_workers.checkpoint.errors import AlreadyExists, StorageError, Superseded
from orch_workers.checkpoint.listing import find_point

CODE_VERSIONS_MAX = 200
"""Newest versions of a job's code that are remembered; the code of all of them stays in storage."""

FIXED: Mapping[str, str] = {
    "name": "the job's id is made of it",
    "workdir": "`--workdir DIR` sends other code",
    "ship": "how the code gets to the machines was settled by `orch submit`",
    "secrets": "their names were settled by `orch submit`; `orch secrets JOB` sets new values",
    "resources.workers": "its checkpoints are those of so many workers",
    "checkpoint.storage": "its checkpoints lie there; `orch checkpoints cp` takes one elsewhere",
    "checkpoint.unfenced": "it belongs to the storage, which stays",
    "drill": "only `orch drill` sets it",
}
"""What stays as it was submitted, each with the reason. All else may change from one attempt to the next."""


class BranchGoneError(CheckpointError):
    """The checkpoint that a job was to go on from is not there any more."""

    def __init__(self, branch: Branch) -> None:
        super().__init__(
            f"the checkpoint of step {branch.step} that it was to go on from is gone; `orch resume` it from another, or"
            " without --at from the newest"
        )
        self.branch = branch


def changed_keys(before: JobSpec, after: JobSpec) -> list[str]:
    """Names of what differs, sorted; never a value, which may be private. WrongUse for what may not change."""
    old, new = (dict(_leaves(spec.model_dump(mode="json"), "")) for spec in (before, after))
    changed = sorted(key for key in {*old, *new} if old.get(key) != new.get(key))
    for key in changed:
        fixed = next((name for name in FIXED if key == name or key.startswith(f"{name}.")), None)
        if fixed is not None:
            raise WrongUse(f"--set {key}: it cannot change in a job that exists: {FIXED[fixed]}")
    if bool(before.checkpoint.files) != bool(after.checkpoint.files):
        raise WrongUse(
            "--set checkpoint.files: a job keeps either its script's own files or what `import orch` saves; submit a"
            " new one"
        )
    return changed


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, below in value.items():
            yield from _leaves(below, f"{path}.{key}" if path else key)
    else:
        yield path, value


def refuse_unless_possible(job: str, state: JobState, asked: Resumption) -> None:
    """WrongUse for a job that is ending, or that runs and is to be left as it is."""
    if state.state is State.STOPPING:
        raise WrongUse(
            f"{job} is being ended ({state.reason}): wait until that is over with `orch wait {job}`, then resume it"
        )
    nothing_new = asked.at is None and asked.spec is None and asked.code is None and asked.workdir is None
    if nothing_new and state.state in PLACED | {State.QUEUED}:
        how = "waits for its turn" if state.state is State.QUEUED else "runs"
        raise WrongUse(
            f"{job} {how} already: there is nothing to resume. `--at STEP`, `--set KEY=VALUE` and `--workdir DIR` have"
            f" it begin anew; `orch preempt {job}` only has it leave its place"
        )


def next_code(present: Mapping[str, Any] | None, sent: CodeInfo, attempt: int) -> dict[str, Any] | None:
    """The job's code document with `sent` as its newest version; None where that is the present one already."""
    earlier = versions_of(present)
    if earlier and earlier[-1]["digest"] == sent.digest:
        return None
    number = max((one["version"] for one in earlier), default=0) + 1
    return {
        **asdict(sent),
        "version": number,
        "attempt": attempt,
        "earlier": earlier[-CODE_VERSIONS_MAX + 1 :],
    }


def code_sentence(code: Mapping[str, Any] | None) -> str | None:
    if code is None:
        return None
    commit = f" of commit {str(code['git_commit'])[:12]}" if code.get("git_commit") else ""
    dirty = ", with changes" if code.get("git_dirty") and commit else ""
    return f"code version {code['version']}{commit}{dirty}"


def lost_secrets(
    job: str, spec: JobSpec, sealed: Mapping[str, bytes], given: Mapping[str, str]
) -> dict[str, str]:
    """Values of the secrets that were lost with a store; the others stay. WrongUse when one is missing."""
    unknown = sorted(set(given) - set(spec.secrets))
    if unknown:
        raise WrongUse(f"{unknown[0]} was sent as a secret and is not named in {job}")
    lost = [name for name in spec.secrets if name not in sealed]
    missing = tuple(name for name in lost if name not in given)
    if missing:
        raise WrongUse(f"{job} cannot be resumed yet: {why_secrets_are_missing(job, missing)}")
    return {name: given[name] for name in lost}


def spec_of(before: JobSpec, asked: Resumption) -> tuple[JobSpec, list[str]]:
    """The job's spec from now on, and the names of what differs. WrongUse for what may not."""
    after = asked.spec or before
    changed = changed_keys(before, after)
    if asked.workdir is not None:
        after = after.model_copy(update={"workdir": asked.workdir})
    return after, changed


def event_of(
    before: JobSpec,
    after: JobSpec,
    changed: list[str],
    asked: Resumption,
    code: Mapping[str, Any] | None,
    catalog: Catalog,
) -> ResumeRequested:
    """WrongUse for a step that cannot be gone on from."""
    if asked.workdir is not None and before.ship == "never" and asked.workdir != before.workdir:
        changed = [*changed, "workdir"]
    at_step, at_generation = _found(catalog, asked)
    budgets = budgets_of(after)
    return ResumeRequested(
        at_step=at_step,
        at_generation=at_generation,
        budgets=budgets if budgets != budgets_of(before) else None,
        changed=tuple(changed),
        code=code_sentence(code),
        grace_s=asked.grace_s,
    )


def _found(catalog: Catalog, asked: Resumption) -> tuple[int | None, Generation | None]:
    if asked.at is None:
        return None, None
    try:
        point = find_point(catalog, asked.at, asked.at_generation)
        marks = {found[:2]: reason for found, reason in catalog.quarantined().items()}
    except (CheckpointError, StorageError) as error:
        raise WrongUse(f"--at {asked.at}: {error}") from error
    if point[:2] in marks:
        raise WrongUse(f"--at {asked.at}: this checkpoint is in quarantine: {marks[point[:2]]}")
    return point.step, Generation(*point.generation)


def ensure_branch(catalog: Catalog, branch: Branch) -> None:
    """Writes the fork down as a generation that no process has: the restart numbered 0. Repeatable.

    From then on it is the newest, and only what lies on its chain is restored; what earlier generations still write
    past the fork lies off it. BranchGoneError; StorageError.
    """
    generation = (branch.attempt, 0)
    newest = catalog.newest_generation()
    if newest is not None and newest >= generation:
        return
    point = (tuple_of(branch.generation), branch.step)
    if not catalog.storage.exists(catalog.manifest_path(*point)):
        raise BranchGoneError(branch)
    with contextlib.suppress(Superseded):  # it has gone on from there already
        catalog.begin(catalog.chain_of(point[0]).fork(generation, *point))


def record_resume(store: Store, home: Home, job: str, command: RecordResume) -> None:
    """Can be repeated. StorageError while storage is away; BranchGoneError."""
    detail, state = store.job(job), store.lifecycle(job)
    storage = open_job_storage(store, home, job)
    if state.branch is not None:
        ensure_branch(Catalog(storage, job), state.branch)
    document = resume_record(
        job, detail.spec, detail.code, state, attempt=command.attempt, number=command.number
    )
    with contextlib.suppress(AlreadyExists):
        storage.create(resume_path(job, command.attempt, command.number), document)
