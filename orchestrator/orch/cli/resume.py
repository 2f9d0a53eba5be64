"""`orch resume`: a job goes on, with what was put right."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from orch.cli import output
from orch.cli.app import Cluster, FollowToTheEnd, Job, Output, Variables, verb
from orch.cli.output import Format
from orch.model.errors import WrongUse

Document = dict[str, Any]


def register(app: typer.Typer) -> None:
    verb(
        app,
        "orch resume digits-x7k2m",
        "orch resume digits-x7k2m --workdir . --follow           # with the code of this folder",
        "orch resume digits-x7k2m --at 1200 --set env.LR=0.01    # a new branch from an older checkpoint",
        "orch resume digits-x7k2m --set restart.max_failures=10 --set resources.memory=16GiB",
    )(resume)


def resume(
    job: Job,
    *,
    at: Annotated[
        str | None,
        typer.Option(
            "--at", metavar="STEP", help="Go on from this checkpoint; 1.2:STEP names its generation."
        ),
    ] = None,
    workdir: Annotated[
        Path | None, typer.Option("--workdir", metavar="DIR", help="Go on with the code of this folder.")
    ] = None,
    set_values: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a value, such as restart.max_failures=10."),
    ] = None,
    env: Variables = None,
    grace: Annotated[
        str,
        typer.Option(
            "--grace", metavar="DURATION", help="How long one that runs may take to save and leave."
        ),
    ] = "30s",
    follow: FollowToTheEnd = False,
    output_format: Output = Format.TABLE,
    cluster: Cluster = None,
) -> None:
    """Has a job go on: ended, blocked or running, under the same id.

    From its newest checkpoint, or with --at from an older one: what lies past that stays until `keep` removes it, and
    is not restored any more. Budgets begin anew. One that runs saves and leaves its place first.
    """
    from orch.cli.connect import connected_or_started
    from orch.cli.preempt import duration_s
    from orch.cli.submit import follow_to_the_end, ship
    from orch.model.jobfile import changed_spec, env_options

    step, generation = _place(at)
    variables = env_options(env or (), os.environ)
    with output.progress() as shown, connected_or_started(cluster, shown) as client:
        before = client.job(job)
        spec = changed_spec(before["spec"], set_values or (), variables)
        plan = None if workdir is None else plan_of(workdir, spec.ship)
        code = ship(client, plan, shown)
        shown.show(f"resuming {job}")
        found = client.resume(
            job,
            spec=spec.model_dump(mode="json") if set_values or variables else None,
            at=step,
            at_generation=generation,
            code=code,
            workdir=None if workdir is None else str(workdir.expanduser().absolute()),
            secrets={name: os.environ[name] for name in spec.secrets if name in os.environ},
            resumes=before["resumes"],
            grace_s=duration_s("--grace", grace),
        )
        shown.close()
        if output_format is Format.JSON:
            output.write_json({"version": output.VERSION, "jobs": [found]})
        else:
            output.write_line(_sentence(before, found, step))
        if follow:
            follow_to_the_end(client, job, tail=0)


def _place(at: str | None) -> tuple[int | None, str | None]:
    from orch.cli.checkpoints_place import parse_step
    from orch.cli.checkpoints_tables import generation_text

    if at is None:
        return None, None
    step, generation = parse_step(at)
    if step is None:
        raise WrongUse(f"--at: {at[:80]!r} is no step; write a number, or 1.2:STEP with the generation")
    return step, None if generation is None else generation_text(generation)


def plan_of(workdir: Path, ship: str) -> Any:
    from orch.api.packing import plan
    from orch.model.problems import JobFileError

    if not workdir.is_dir():
        raise WrongUse(f"--workdir: {workdir} is no folder")
    if ship == "never":
        return None
    found = plan(workdir.expanduser().absolute())
    if found.problems:
        raise JobFileError(found.problems)
    return found


def _sentence(before: Document, found: Document, step: int | None) -> str:
    where = "its newest checkpoint" if step is None else f"step {step}"
    if before["last_checkpoint"] is None and step is None:
        where = "nothing: it has no checkpoint"
    code, was = found.get("code") or {}, before.get("code") or {}
    is_new = code.get("digest") != was.get("digest")
    told = f", with version {code.get('version', 1)} of its code" if is_new else ""
    return f"{found['id']} goes on from {where}{told}"
