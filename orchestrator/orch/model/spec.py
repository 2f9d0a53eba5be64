"""The job: everything `job.yaml` may say (DESIGN section 4), frozen and checked.

Attributes carry their units (`backoff.initial_s`, `resources.memory_bytes`); the file and JSON use the short
names (`initial`, `memory`). `JobSpec.model_validate(spec.model_dump(mode="json")) == spec`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    StringConstraints,
    ValidationInfo,
    field_validator,
)

from orch.model import fields, ids
from orch.model.labels import LABELS_MAX, Label, LabelRule
from orch.model.problems import Problem, shown
from orch.model.storage_url import check_storage_options, check_storage_url

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "Backoff",
    "Best",
    "CheckpointSpec",
    "Drill",
    "Every",
    "JobSpec",
    "Keep",
    "OnExitCodes",
    "PythonSpec",
    "Resources",
    "RestartSpec",
    "StartFrom",
    "Stop",
    "StorageSpec",
    "job_schema",
    "unsupported",
]

WORKERS_MAX = 10_000
GPUS_MAX = 1024
CPUS_MAX = 65_536
STEPS_MAX = 10**12
"""A step has twelve digits in storage."""
KEEP_MAX = 100_000
PRIORITY_MAX = 1_000_000
OPTIONS_MAX = 100
DRILL_KILLS_MAX = 1000
EXIT_CODE_MAX = 255
ROLLBACKS_MAX = 1000
VARIABLES_MAX = 1000


class _Model(BaseModel):
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        serialize_by_alias=True,
        # Values may be secret, and pydantic would print them with its errors.
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
    )


class PythonSpec(_Model):
    """An own Python environment for the job, built once per content and machine."""

    version: Annotated[str, AfterValidator(fields.python_version)] | None = None
    """Of the interpreter, such as "3.11" (in quotes). Default: the one that orch runs in."""
    requirements: fields.Pattern | None = None
    """A requirements.txt, relative to the workdir."""


class Resources(_Model):
    """What each worker gets."""

    workers: Annotated[int, fields.whole(1, WORKERS_MAX)] = 1
    """How many workers (ranks) run the command at once."""
    gpus: Annotated[int | float, fields.amount(GPUS_MAX, zero=True, whole_above=1)] = 0
    """GPUs of each worker; a fraction shares one."""
    cpus: Annotated[int | float, fields.amount(CPUS_MAX, zero=False)] = 1
    """CPU cores of each worker."""
    memory_bytes: fields.Size | None = Field(default=None, alias="memory")
    """Memory of each worker, such as 8GiB. Without it, memory is not counted when the job is placed."""


class Placement(_Model):
    """On which machines the workers go."""

    labels: dict[Label, LabelRule] = Field(default={}, max_length=LABELS_MAX)
    """Labels that every machine of the job must have: `market-type: spot`, `!spot`, `in(a,b)`, `!in(a,b)`."""
    workers: Annotated[Literal["pack", "spread"], fields.choice("pack", "spread")] = "pack"
    """On as few machines as hold them, or on as many as there are."""


class StorageSpec(_Model):
    """Where checkpoints are kept."""

    url: fields.Text
    """An absolute path, or a URL such as s3://bucket/prefix."""
    options: dict[str, JsonValue] = Field(default={}, max_length=OPTIONS_MAX)
    """Options of the fsspec file system, such as endpoint_url. No secrets: name those under `secrets`."""

    @field_validator("options")
    @classmethod
    def _safe_options(cls, value: dict[str, Any]) -> dict[str, Any]:
        fields.refuse_first(check_storage_options(value))
        return value


def _storage(value: object) -> object:
    return {"url": value} if isinstance(value, str) else value


_short_storage = BeforeValidator(_storage, json_schema_input_type=str | StorageSpec)


class Every(_Model):
    """When to checkpoint: whichever comes first of what is named here."""

    steps: Annotated[int, fields.whole(1, STEPS_MAX)] | None = None
    """After so many steps."""
    seconds: fields.PositiveDuration | None = None
    """After so much time."""
    epochs: Annotated[int, fields.whole(1, STEPS_MAX)] | None = None
    """After so many epochs."""


def _python(value: PythonSpec) -> PythonSpec:
    if value.requirements is None and value.version is None:
        fields.refuse("names nothing", allowed="requirements, version, or both")
    return value


def _every(value: object) -> object:
    """`auto` or a mapping that names something."""
    if isinstance(value, Every) or value == "auto":
        return value
    allowed = "auto, or a mapping of steps, seconds and epochs"
    if not isinstance(value, dict):
        near = "auto" if isinstance(value, str) and value.lower()[:4] == "auto" else None
        fields.refuse(f"is {shown(value)}", allowed=allowed, near=near)
    if not any(named is not None for named in value.values()):
        fields.refuse("names no interval", allowed="at least one of steps, seconds, epochs")
    return Every.model_validate(value)


_MODES_MEANT = {
    **dict.fromkeys(
        ("lowest", "lower", "least", "smallest", "less", "low", "minimise", "minimize", "down"), "min"
    ),
    **dict.fromkeys(
        ("highest", "higher", "most", "largest", "more", "high", "maximise", "maximize", "up"), "max"
    ),
}


class Best(_Model):
    """Keep the checkpoints with the best value of a metric."""

    metric: fields.Text
    """The name given to run.step(name=…)."""
    mode: Annotated[Literal["min", "max"], fields.choice("min", "max", meant=_MODES_MEANT)] = "min"
    """Whether lower or higher is better."""
    count: Annotated[int, fields.whole(1, KEEP_MAX)] = 1
    """How many."""


class Keep(_Model):
    """Which checkpoints are kept: whatever any of these rules names, what is pinned, and the newest verified one.

    None counts against another: the newest five may be kept beside one for every hour.
    """

    last: Annotated[int, fields.whole(1, KEEP_MAX)] = 5
    """The newest ones."""
    every_hours: Annotated[int | float, fields.amount(24 * 3660, zero=False)] | None = None
    """The oldest, and from there each that is at least so many hours younger than the one kept before it."""
    every_steps: Annotated[int, fields.whole(1, STEPS_MAX)] | None = None
    """The first at or after each multiple of so many steps."""
    best: Best | None = None
    """The best by a metric."""
    min_age_s: fields.PositiveDuration | None = Field(default=None, alias="min_age")
    """Nothing is deleted before it is so old."""


class CheckpointSpec(_Model):
    """Where, when and how long the state is kept."""

    unfenced: bool = False
    """Accept a storage that cannot refuse to overwrite: two writers could damage a checkpoint."""
    storage: Annotated[StorageSpec, _short_storage] | None = None
    """An absolute path or URL, or a mapping of url and options. Default: a folder of the server's home."""
    every: Annotated[Every | Literal["auto"], BeforeValidator(_every)] = Every(seconds=600)
    """Steps, seconds, epochs: whichever comes first; `auto` chooses. The first and the last step are always saved."""
    max_overhead: fields.Share | None = None
    """The share of the run time that saves may block, such as 1%: what `every` says is stretched to it."""
    keep: Keep = Keep()
    """What is kept when newer checkpoints arrive."""
    files: fields.Patterns = ()
    """Files that the script writes itself as its checkpoints: kept safe instead of orch's own."""

    @field_validator("storage")
    @classmethod
    def _possible_storage(cls, value: StorageSpec | None, info: ValidationInfo) -> StorageSpec | None:
        if value is not None:
            fields.refuse_first(check_storage_url(value.url, unfenced=info.data.get("unfenced", False)))
        return value


class Backoff(_Model):
    """The pause before a restart: doubled from one to the next, with jitter."""

    initial_s: fields.Duration = Field(default=1, alias="initial")
    """The first pause."""
    max_s: fields.Duration = Field(default=300, alias="max")
    """The longest pause."""

    @field_validator("max_s")
    @classmethod
    def _not_below_initial(cls, value: float, info: ValidationInfo) -> float:
        initial_s = info.data.get("initial_s", 0)
        if value < initial_s:
            fields.refuse(f"{value} seconds is less than `initial`", allowed=f"{initial_s} seconds or more")
        return value


ExitCodes = Annotated[
    tuple[Annotated[int, fields.whole(1, EXIT_CODE_MAX)], ...], Field(strict=False, max_length=EXIT_CODE_MAX)
]


class OnExitCodes(_Model):
    """What exit codes of the command mean that it chose for itself."""

    stop: ExitCodes = ()
    """The job has failed for good, whatever is left of the budgets."""
    restart: ExitCodes = ()
    """The command asks to be started again: charged to nothing, if it has made a new step since the last time."""

    @field_validator("restart")
    @classmethod
    def _one_meaning(cls, value: tuple[int, ...], info: ValidationInfo) -> tuple[int, ...]:
        both = sorted(set(value) & set(info.data.get("stop", ())))
        if both:
            fields.refuse(f"{both[0]} stands under `stop` too", allowed="each code in one of the two")
        return value


class RestartSpec(_Model):
    """How often what may go wrong before the job counts as failed."""

    max_failures: fields.Budget = 3
    """Crashes of the training process or of its agent: a number or `unlimited`."""
    max_hangs: fields.Budget = 3
    """Times without progress: a number or `unlimited`."""
    max_preemptions: fields.Budget = "unlimited"
    """Machines that went away: a number or `unlimited`."""
    backoff: Backoff = Backoff()
    """The pause before a restart."""
    hang: fields.HangRule = "auto"
    """When a job counts as hung: learned from its steps (`auto`), never (`off`), or after a duration."""
    on_exit_codes: OnExitCodes = OnExitCodes()
    """Exit codes of the command with a meaning of their own."""
    on_nan: Annotated[Literal["stop", "rollback"], fields.choice("stop", "rollback")] = "stop"
    """When the loss is NaN or infinite: stop, or go back to the newest checkpoint before that and skip its data."""
    max_rollbacks: Annotated[int, fields.whole(1, ROLLBACKS_MAX)] = 3
    """How often a job may be rolled back."""
    preemption: Annotated[Literal["auto", "off"], fields.choice("auto", "off")] = "auto"
    """Leave in time when the machine is announced to go away (`auto`), or wait until it goes (`off`)."""
    standby: bool = True
    """Keep a second, warmed process ready that takes over when the training process dies."""
    snapshot_every_steps: Annotated[int, fields.whole(1, STEPS_MAX)] | None = None
    """A snapshot in memory after so many steps, between the checkpoints: less is lost when the process dies."""


class Stop(_Model):
    """Early stopping: the training is done when a metric has not become better for a while."""

    metric: fields.Text
    """The name given to run.step(name=…); each step that is given it is an evaluation."""
    mode: Annotated[Literal["min", "max"], fields.choice("min", "max", meant=_MODES_MEANT)] = "min"
    """Whether lower or higher is better."""
    patience: Annotated[int, fields.whole(1, STEPS_MAX)] = 5
    """After so many evaluations that were no better."""


class StartFrom(StorageSpec):
    """Another job's checkpoint that this one begins with; `orch submit --from` sets it."""

    url: fields.Text
    """The other job's folder in storage: an absolute path, or a URL such as s3://bucket/prefix/digits-x7k2m."""
    step: Annotated[int, fields.whole(0, STEPS_MAX)]
    """Which checkpoint."""
    generation: Annotated[str, StringConstraints(pattern=r"^[0-9]{6,9}[.][0-9]{6,9}$")]
    """Whose: attempt and restart, such as 000001.000002."""
    only: Annotated[tuple[fields.Text, ...], Field(strict=False, max_length=OPTIONS_MAX)] = ()
    """Only these arguments of orch.training(…), without counters and random states; none: all that fits."""
    map: dict[fields.Text, fields.Text] = Field(default={}, max_length=OPTIONS_MAX)
    """Old names of tensors and new ones; one * on each side stands for the same."""

    @field_validator("map")
    @classmethod
    def _one_wildcard(cls, value: dict[str, str]) -> dict[str, str]:
        for old, new in value.items():
            if old.count("*") > 1 or new.count("*") > old.count("*"):
                fields.refuse(f"{old}={new} has too many *", allowed="old.*=new.*, with one * on each side")
        return value

    @field_validator("url")
    @classmethod
    def _possible_url(cls, value: str) -> str:
        fields.refuse_first(check_storage_url(value, unfenced=True))
        return value


class Drill(_Model):
    """What `orch drill` adds to its short form of a job; no job file needs it."""

    stop_at: Annotated[int, fields.whole(1, STEPS_MAX)]
    """The run saves and ends at this step, and has then succeeded."""
    kill_at: Annotated[
        tuple[Annotated[int, fields.whole(1, STEPS_MAX)], ...],
        Field(strict=False, max_length=DRILL_KILLS_MAX),
    ] = ()
    """The training process is SIGKILLed at these steps, one in each of its starts."""


class JobSpec(_Model):
    """A training job of orch."""

    name: fields.JobName | None = None
    """The first part of the job's id. Default: the name of the workdir."""
    run: fields.Command
    """The command of every worker. Executed without a shell where it needs none."""
    workdir: fields.Text = "."
    """The folder that is shipped and in which the command runs, relative to the job file."""
    ship: Annotated[Literal["auto", "never"], fields.choice("auto", "never")] = "auto"
    """`auto` ships the workdir; `never` runs in place, on a path that every machine has."""
    outputs: fields.Patterns = ()
    """Files and patterns inside the workdir that `orch fetch` brings back."""
    env: dict[fields.EnvName, fields.EnvValue] = Field(default={}, max_length=VARIABLES_MAX)
    """Environment variables of the command."""
    secrets: fields.SecretNames = ()
    """Names of environment variables whose values are taken at submit, encrypted, and never shown."""
    python: Annotated[PythonSpec, AfterValidator(_python)] | None = None
    """An own Python environment."""
    resources: Resources = Resources()
    """How many workers, and the GPUs, CPU cores and memory of each."""
    placement: Placement = Placement()
    """Labels of the machines that the workers go to, and whether on few or on many of them."""
    checkpoint: CheckpointSpec = CheckpointSpec()
    """Where the state is kept, when it is saved, and for how long."""
    metrics: dict[fields.MetricName, fields.Expression] = Field(default={}, max_length=fields.METRICS_MAX)
    """Of a script without orch: regular expressions that find numbers in the lines of its log."""
    restart: RestartSpec = RestartSpec()
    """How often what may go wrong."""
    priority: Annotated[int, fields.whole(-PRIORITY_MAX, PRIORITY_MAX)] = 0
    """Jobs with a higher priority are placed first."""
    stop: Stop | None = None
    """Early stopping; the best checkpoint by its metric is kept."""
    start_from: StartFrom | None = None
    """Another job's checkpoint to begin with."""
    drill: Drill | None = None
    """Set by `orch drill`."""

    @field_validator("secrets")
    @classmethod
    def _no_secret_in_env(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        both = sorted(set(value) & set(info.data.get("env", {})))
        if both:
            fields.refuse(f"{', '.join(both)} stands under `env` too", allowed="each name in one of the two")
        return value

    @field_validator("metrics")
    @classmethod
    def _of_files(cls, value: dict[str, str], info: ValidationInfo) -> dict[str, str]:
        checkpoint = info.data.get("checkpoint")
        if value and checkpoint is not None and not checkpoint.files:
            fields.refuse(
                "is for scripts whose own files are kept (`checkpoint.files`)",
                allowed="run.step(loss=…) in a script that uses `import orch`",
            )
        return value

    @field_validator("restart")
    @classmethod
    def _possible_restart(cls, value: RestartSpec, info: ValidationInfo) -> RestartSpec:
        checkpoint = info.data.get("checkpoint")
        if checkpoint is not None and checkpoint.files and value.on_nan == "rollback":
            fields.refuse(
                "`on_nan: rollback` leaves out data, which orch does not hand to a script that keeps its own files",
                allowed="on_nan: stop",
            )
        return value

    @field_validator("stop", "start_from")
    @classmethod
    def _has_a_state(cls, value: Stop | StartFrom | None, info: ValidationInfo) -> Stop | StartFrom | None:
        checkpoint = info.data.get("checkpoint")
        if value is not None and checkpoint is not None and checkpoint.files:
            fields.refuse(
                "is for scripts that use `import orch`; this job's script keeps its own files",
                allowed="nothing here, or a script with orch.training(…) and no `checkpoint.files`",
            )
        return value

    @property
    def job_name(self) -> str:
        """The name given, else that of the workdir."""
        return self.name or ids.default_name(self.workdir)


def job_schema() -> dict[str, Any]:
    """The JSON schema of job.yaml, for editors."""
    schema = JobSpec.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "orch job"}


def unsupported(spec: JobSpec) -> list[Problem]:
    """What the spec asks for and this version cannot do yet; submit refuses it. The one place that says so."""
    return [
        Problem(f"{what} is not possible in this version of orch: {instead}", path=path)
        for path, what, instead, asks in NOT_YET
        if asks(spec)
    ]


NOT_YET: tuple[tuple[str, str, str, Callable[[JobSpec], bool]], ...] = ()
"""Path in the job file, what cannot be done, what to do instead, and whether a job asks for it. Nothing at present."""
