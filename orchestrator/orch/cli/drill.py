"""`orch drill`: a short form of the user's own job, undisturbed and killed: do both end with the same bytes?"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orch.cli import output
from orch.cli.app import INTERRUPTED, Cluster, Output, verb
from orch.cli.output import Format
from orch.model.errors import JobFailed, OrchError, WrongUse
from orch.model.ids import valid_job_id

if TYPE_CHECKING:
    from collections.abc import Sequence

    from orch.api.client import Client
    from orch.cli.checkpoints_place import Place
    from orch.cli.output import Progress
    from orch.model.spec import JobSpec
    from orch_policies.drill import Reason
    from orch_workers.checkpoint.catalog import RestorePoint
    from orch_workers.checkpoint.compare import Comparison

Document = dict[str, Any]

STEPS, KILLS = 60, 3
STEPS_MAX = 1_000_000
KILLS_MAX = 1000
NAME_CHARACTERS_MAX = 40
SHOWN_MAX = 5
"""Of the differences in a table for people; `-o json` and `orch checkpoints diff` have them all."""


def register(app: typer.Typer) -> None:
    verb(
        app,
        "orch drill job.yaml",
        "orch drill job.yaml --steps 200 --kills 5",
        "orch drill digits-x7k2m --at 17 --at 40",
        name="drill",
    )(drill)


def drill(
    job: Annotated[
        str, typer.Argument(metavar="JOB|FILE", show_default=False, help="A job file, or the id of a job.")
    ],
    *,
    steps: Annotated[int, typer.Option("--steps", min=2, max=STEPS_MAX, help="Where both runs end.")] = STEPS,
    kills: Annotated[int, typer.Option("--kills", min=1, max=KILLS_MAX, help="Spread evenly.")] = KILLS,
    at: Annotated[
        list[int] | None,
        typer.Option(
            "--at", metavar="STEP", help="Kill at this step instead; repeatable.", show_default=False
        ),
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the checkpoints of an equal drill too.")] = False,
    set_values: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a value of the job file."),
    ] = None,
    output_format: Output = Format.TABLE,
    cluster: Cluster = None,
) -> None:
    """Does your job survive being killed, bit for bit?

    Runs it twice in a short form, once undisturbed and once with its training process SIGKILLed, and compares the final
    states. Exit code 0 when they are equal, 1 when they differ: then it says from which step on, in what, and the
    likely reason.
    """
    from orch.cli.connect import connected_or_started

    with output.progress() as shown, connected_or_started(cluster, shown) as client:
        planned = _plan(client, job, set_values or (), _kills(steps, kills, at), steps, shown)
        runner = _Runner(client, planned, cluster, shown)
        try:
            found = runner.run()
        except KeyboardInterrupt:
            runner.cancel()
            raise typer.Exit(INTERRUPTED) from None
        shown.close()
        if found.reason is None and not keep:
            runner.clean_up()
    if output_format is Format.JSON:
        output.write_json({"version": output.VERSION, "drill": found.document()})
    else:
        _print(found)
    if found.reason is not None:
        raise typer.Exit(1)


def _kills(steps: int, kills: int, at: Sequence[int] | None) -> tuple[int, ...]:
    from orch_policies.drill import kill_steps

    if not at:
        return kill_steps(steps, kills)
    outside = [step for step in at if not 0 < step < steps]
    if outside:
        raise WrongUse(f"--at: {outside[0]} is no step between the first and the last ({steps}; see --steps)")
    return tuple(sorted(set(at)))


@dataclass(frozen=True)
class _Planned:
    """What both runs have in common."""

    spec: JobSpec
    base_dir: str | None
    code: Document | None
    secrets: dict[str, str]
    steps: int
    kill_at: tuple[int, ...]


def _plan(
    client: Client, job: str, set_values: Sequence[str], kill_at: tuple[int, ...], steps: int, shown: Progress
) -> _Planned:
    import os

    from orch.model.jobfile import load_job, secret_values
    from orch.model.spec import JobSpec

    if valid_job_id(job):
        if set_values:
            raise WrongUse("--set changes a job file; name the file instead of the job")
        known = client.job(job)
        spec = JobSpec.model_validate(known["spec"])
        code, base_dir = known.get("code"), None
    else:
        from orch.cli.submit import checked, plan_shipping, ship

        loaded = load_job(job, set_values, env={}, name=None)
        packed = plan_shipping(loaded)
        checked(loaded, packed, None)
        spec, base_dir = loaded.spec, str(loaded.base_dir)
        code = ship(client, packed, shown)
    if spec.checkpoint.files:
        raise WrongUse(
            "a drill counts the steps that `import orch` tells, and the script of this job, whose own files are kept"
            " (`checkpoint.files`), tells none"
        )
    return _Planned(spec, base_dir, code, secret_values(spec, os.environ), steps, kill_at)


def short_form(planned: _Planned, kill_at: Sequence[int]) -> JobSpec:
    """The job as the drill runs it: to its last step, every so many steps saved, nothing brought back."""
    from orch.model.spec import Backoff, Drill, Every, Keep
    from orch.model.units import UNLIMITED
    from orch_policies.drill import save_every

    spec = planned.spec
    checkpoint = spec.checkpoint.model_copy(
        update={"every": Every(steps=save_every(planned.steps)), "keep": Keep(last=planned.steps + 1)}
    )
    restart = spec.restart.model_copy(
        update={"max_failures": UNLIMITED, "backoff": Backoff.model_validate({"initial": 0, "max": 0})}
    )
    return spec.model_copy(
        update={
            "name": f"{spec.job_name[:NAME_CHARACTERS_MAX].rstrip('-')}-drill",
            "outputs": (),
            "checkpoint": checkpoint,
            "restart": restart,
            "drill": Drill(stop_at=planned.steps, kill_at=tuple(kill_at)),
        }
    )


@dataclass(frozen=True)
class Differing:
    """The first pair of checkpoints of two runs that is not equal. `after`: the newest pair before it that is."""

    step: int
    after: int | None
    paths: tuple[str, ...]


@dataclass
class Found:
    """What a drill has shown; `reason` is None when the final states are equal."""

    steps: int
    jobs: dict[str, str]
    kills: list[Document]
    equal_tensors: int = 0
    differing: Differing | None = None
    reason: Reason | None = None
    compared: list[int] = field(default_factory=list)

    def document(self) -> Document:
        first = self.differing
        return {
            "steps": self.steps,
            "equal": self.reason is None,
            "jobs": self.jobs,
            "kills": self.kills,
            "tensors_equal": self.equal_tensors,
            "compared_steps": self.compared,
            "first_difference": None
            if first is None
            else {"step": first.step, "equal_until_step": first.after, "paths": list(first.paths)},
            "reason": None
            if self.reason is None
            else {"kind": self.reason.kind, "text": self.reason.sentence},
        }


class _Runner:
    """Runs the forms of the job one after the other: together they might not fit where one does."""

    def __init__(self, client: Client, planned: _Planned, cluster: str | None, shown: Progress) -> None:
        self._client, self._planned, self._cluster, self._shown = client, planned, cluster, shown
        self._running: str | None = None
        self._jobs: dict[str, str] = {}

    def run(self) -> Found:
        planned = self._planned
        calm = self._one("undisturbed", ())
        killed = self._one("killed", planned.kill_at)
        kills = _kills_of(killed)
        if not kills:
            raise OrchError(
                f"{killed['id']} was over before it could be killed: take more steps (--steps), or earlier ones (--at)"
            )
        found = Found(planned.steps, self._jobs, kills)
        final, found.differing, found.compared = self._compare(calm, killed)
        found.equal_tensors = final.tensors_equal
        if found.differing is not None:
            found.reason = self._reason(calm, killed, found.differing)
        return found

    def _one(self, what: str, kill_at: tuple[int, ...]) -> Document:
        from orch.cli.following import wait_over

        planned = self._planned
        sentence = f"{what}: to step {planned.steps}" + (f", killed at {_listed(kill_at)}" if kill_at else "")
        self._shown.show(sentence)
        found = self._client.submit(
            short_form(planned, kill_at).model_dump(mode="json"),
            base_dir=planned.base_dir,
            code=planned.code,
            secrets=planned.secrets,
        )
        job = self._running = found["id"]
        self._jobs[what] = job
        if "UNPROTECTED" in (found.get("flags") or []):
            self.cancel()
            raise WrongUse(
                "nothing keeps the state of this job, so there is nothing to compare: `import orch` in the script "
                "keeps it; see docs/training-api.md"
            )
        over = wait_over(self._client, job)
        self._running = None
        if over["state"] != "SUCCEEDED":
            raise JobFailed(
                f"the {what} run {job} is {over['state']}: {over['reason']}; see `orch logs {job}` and "
                f"`orch status {job}`"
            )
        return over

    def _reason(self, calm: Document, killed: Document, first: Differing) -> Reason:
        from orch_policies.drill import likely_reason

        self._shown.show("the states differ; is it the kills? Once more undisturbed")
        again = self._one("undisturbed again", ())
        _, between, _ = self._compare(calm, again)
        told = [note["text"] for note in killed.get("notes") or [] if "not exact" in note["text"]]
        return likely_reason(
            first.paths,
            first_step=first.step,
            undisturbed_differ_at=None if between is None else between.step,
            told=told,
        )

    def _compare(self, one: Document, other: Document) -> tuple[Comparison, Differing | None, list[int]]:
        from orch.cli.checkpoints_place import find_place, parse_address, sentences

        places = [find_place(parse_address(job["id"]), self._cluster) for job in (one, other)]
        self._shown.show("comparing")
        with sentences(*places):
            return _first_difference(*places, last=self._planned.steps)

    def cancel(self) -> None:
        if self._running is not None:
            self._client.cancel(self._running, now=True)

    def clean_up(self) -> None:
        from orch.cli.checkpoints_place import find_place, parse_address, sentences

        for job in self._jobs.values():
            place = find_place(parse_address(job), self._cluster)
            with sentences(place):
                place.catalog.delete_all()


def _first_difference(
    one: Place, other: Place, *, last: int
) -> tuple[Comparison, Differing | None, list[int]]:
    """The final comparison; and where that differs, the first common step that does."""
    from orch_policies.drill import counts, generator_of
    from orch_workers.checkpoint.compare import compare
    from orch_workers.checkpoint.content import Content

    ours, theirs = ({point.step: point for point in side.catalog.restore_points()} for side in (one, other))
    common = sorted(set(ours) & set(theirs))
    if last not in common:
        raise OrchError(
            f"{one.job_id} and {other.job_id} have no checkpoint of step {last} in common: did the script end by "
            f"itself before that? Take fewer steps (--steps)"
        )

    def at(step: int) -> tuple[Comparison, tuple[str, ...]]:
        sides: list[tuple[Place, RestorePoint]] = [(one, ours[step]), (other, theirs[step])]
        found = compare(*(Content.open(place.catalog, point) for place, point in sides))
        return found, tuple(path for path in _paths(found) if counts(path, unseeded))

    unseeded: set[str] = set()
    _, before_kills = at(common[0])
    unseeded.update(filter(None, map(generator_of, before_kills)))
    final, paths = at(last)
    if not paths:
        return final, None, [last]
    after, compared = None, [last]
    for step in common[:-1]:
        compared.append(step)
        _, found = at(step)
        if found:
            return final, Differing(step, after, found), sorted(compared)
        after = step
    return final, Differing(last, after, paths), sorted(compared)


def _paths(found: Comparison) -> list[str]:
    return [change.name for change in found.changes] + [difference.path for difference in found.tree]


def _kills_of(job: Document) -> list[Document]:
    """Each restart of a run: at which step its process died, what was restored from where, what was lost."""
    restarts = [restart for attempt in job["attempts"] for restart in attempt["restarts"]]
    return [
        {name: restart[name] for name in ("restored_step", "restored_from", "lost_steps", "recovery_s")}
        for restart in restarts[1:]
    ]


def _listed(steps: Sequence[int]) -> str:
    return ("step " if len(steps) == 1 else "steps ") + ", ".join(map(str, steps))


def _print(found: Found) -> None:
    from orch.cli.humans import count, span

    console = output.console()
    for kill in found.kills:
        where = f"step {kill['restored_step']} from {kill['restored_from']}"
        cost = f"{kill['lost_steps']} steps done again" if kill["lost_steps"] is not None else ""
        took = f"first new step after {span(kill['recovery_s'])}" if kill["recovery_s"] is not None else ""
        console.print("killed, went on from " + ", ".join(filter(None, [where, cost, took])))
    first = found.differing
    if first is None or found.reason is None:
        tensors = count(found.equal_tensors, "tensor")
        console.print(
            f"equal bit for bit at step {found.steps}: {tensors}, random states and every other value, after "
            f"{count(len(found.kills), 'kill')}"
        )
        return
    since = "from the first checkpoint on" if first.after is None else f"equal until step {first.after}"
    console.print(f"NOT equal: the final states differ; {since}, different at step {first.step} in")
    for path in first.paths[:SHOWN_MAX]:
        console.print(f"  {path}", markup=False)
    if len(first.paths) > SHOWN_MAX:
        console.print(f"  and {len(first.paths) - SHOWN_MAX} more")
    console.print(f"likely reason: {found.reason.sentence}", markup=False)
    jobs = found.jobs
    console.print(
        f"look closer: orch checkpoints diff {jobs['undisturbed']}@{first.step} {jobs['killed']}@{first.step}"
    )
