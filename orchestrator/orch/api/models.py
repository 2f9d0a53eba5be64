"""What requests may say, and how what is wrong with them is told. No answer holds a secret's value."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from orch.control.jobrecord import CHECKPOINTS_MAX, StoredJob
from orch.control.resuming import CODE_VERSIONS_MAX
from orch.control.service import CodeInfo, Resumption, Submission
from orch.model.events import GRACE_S_DEFAULT
from orch.model.explain import explain
from orch.model.generation import Generation
from orch.model.problems import JobFileError, Problem
from orch.model.spec import JobSpec, unsupported

GENERATION_PATTERN = r"^[0-9]{6,9}[.][0-9]{6,9}$"
DIGEST_PATTERN = r"^[0-9a-f]{64}$"
SECRET_CHARS_MAX = 64 << 10
SECRETS_MAX = 1000
PATH_CHARS_MAX = 4096
PREEMPT_GRACE_MAX_S = 3600.0


Secrets = Annotated[
    dict[str, Annotated[str, StringConstraints(max_length=SECRET_CHARS_MAX, pattern=r"^[^\x00]*$")]],
    Field(max_length=SECRETS_MAX),
]
"""Values by name."""


_Count = Annotated[int, Field(ge=0, le=2**63 - 1)]
_Small = Annotated[int, Field(ge=-(2**31), le=2**31 - 1)]
_TimeUs = Annotated[int, Field(ge=0, le=253_402_300_799_999_999)]
"""What a database's columns and a calendar hold; more is a mistake of the sender's, not an error of the server's."""


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)


class CodeBody(_Body):
    """What `PUT /code/{digest}` has sent before."""

    digest: Annotated[str, StringConstraints(pattern=DIGEST_PATTERN)]
    size_bytes: Annotated[int, Field(ge=0)] = 0
    git_commit: Annotated[str, StringConstraints(max_length=64)] | None = None
    git_dirty: bool | None = None


class SubmitBody(_Body):
    spec: dict[str, Any]
    name: str | None = None
    base_dir: Annotated[str, StringConstraints(max_length=PATH_CHARS_MAX)] | None = None
    code: CodeBody | None = None
    secrets: Secrets = {}
    request: Annotated[str, StringConstraints(pattern=r"^[0-9A-Za-z-]{8,64}$")] | None = None


class CheckBody(_Body):
    spec: dict[str, Any]


class CancelBody(_Body):
    now: bool = False


class PreemptBody(_Body):
    grace_s: Annotated[float, Field(ge=0, le=PREEMPT_GRACE_MAX_S, allow_inf_nan=False, strict=False)] = (
        GRACE_S_DEFAULT
    )
    attempt: Annotated[int, Field(ge=0)] | None = None
    """The one that is to leave: a call that is repeated after it has left asks for nothing more."""


class ResumeBody(_Body):
    """`spec`: the whole of it, with what is to change."""

    spec: dict[str, Any] | None = None
    at: Annotated[int, Field(ge=0)] | None = None
    at_generation: Annotated[str, StringConstraints(pattern=GENERATION_PATTERN)] | None = None
    code: CodeBody | None = None
    workdir: Annotated[str, StringConstraints(max_length=PATH_CHARS_MAX, pattern=r"^/")] | None = None
    secrets: Secrets = {}
    resumes: Annotated[int, Field(ge=0)] | None = None
    """How often the job had been resumed before: a call that is repeated asks for nothing more."""
    grace_s: Annotated[float, Field(ge=0, le=PREEMPT_GRACE_MAX_S, allow_inf_nan=False, strict=False)] = (
        GRACE_S_DEFAULT
    )


class StoredCode(CodeBody):
    version: Annotated[int, Field(ge=1)] = 1
    attempt: Annotated[int, Field(ge=1)] = 1
    earlier: Annotated[list[StoredCode], Field(max_length=CODE_VERSIONS_MAX)] = []


class StoredCheckpoint(_Body):
    generation: Annotated[str, StringConstraints(pattern=GENERATION_PATTERN)]
    step: _Count
    epoch: _Small | None = None
    committed_us: _TimeUs
    size_bytes: _Count | None = None
    quarantined: str | None = None


class StoredEnd(_Body):
    state: Literal["SUCCEEDED", "FAILED", "CANCELLED"]
    reason: str = ""
    exit_code: _Small | None = None
    ended_us: _TimeUs


class RecoverBody(_Body):
    """A job as `orch.control.jobrecord.read_job` found it; `spec` names the storage it was found in."""

    url: Annotated[str, StringConstraints(max_length=PATH_CHARS_MAX)]
    spec: dict[str, Any]
    code: StoredCode | None = None
    seed: _Count = 0
    unprotected: bool = False
    submitted_us: _TimeUs
    attempt: Annotated[int, Field(ge=0, le=999_000)]
    step: _Count | None = None
    committed: bool = False
    checkpoints: Annotated[list[StoredCheckpoint], Field(max_length=CHECKPOINTS_MAX)] = []
    end: StoredEnd | None = None


class SecretsBody(_Body):
    secrets: Secrets


def parse_stored(job: str, body: RecoverBody) -> StoredJob:
    document = body.model_dump()
    del document["url"]
    return StoredJob(job=job, **{**document, "checkpoints": tuple(document["checkpoints"])})


def parse_resumption(body: ResumeBody) -> Resumption:
    generation = None if body.at_generation is None else Generation.parse(body.at_generation)
    return Resumption(
        spec=None if body.spec is None else parse_spec(body.spec),
        at=body.at,
        at_generation=generation,
        code=None if body.code is None else CodeInfo(**body.code.model_dump()),
        workdir=body.workdir,
        secrets=body.secrets,
        resumes=body.resumes,
        grace_s=body.grace_s,
    )


def parse_spec(data: dict[str, Any], name: str | None = None) -> JobSpec:
    """The spec, checked whole; JobFileError names all that is wrong or not possible in this version."""
    document = {**data, "name": name} if name is not None else data
    try:
        spec = JobSpec.model_validate(document)
    except ValidationError as error:
        raise JobFileError(problem for _, problem in explain(error, JobSpec, document)) from None
    if problems := unsupported(spec):
        raise JobFileError(problems)
    return spec


def parse_submission(body: SubmitBody) -> Submission:
    """JobFileError also if the code or a secret's value is missing."""
    spec = parse_spec(body.spec, body.name)
    problems = [
        Problem(f"the value of secret {name} was not sent", path="secrets", allowed="a value for every name")
        for name in spec.secrets
        if name not in body.secrets
    ]
    problems += [
        Problem(f"{name} was sent as a secret and is not named in the job", path="secrets")
        for name in sorted(set(body.secrets) - set(spec.secrets))
    ]
    if spec.ship == "auto" and body.code is None:
        problems.append(
            Problem("the workdir was not uploaded", path="workdir", allowed="code, or ship: never")
        )
    if spec.ship == "never" and not (body.base_dir or spec.workdir).startswith("/"):
        problems.append(
            Problem(
                "which folder the workdir is relative to was not sent", path="workdir", allowed="base_dir"
            )
        )
    if problems:
        raise JobFileError(problems)
    code = CodeInfo(**body.code.model_dump()) if body.code is not None else None
    return Submission(
        spec=spec, base_dir=body.base_dir, code=code, secrets=body.secrets, request=body.request
    )
