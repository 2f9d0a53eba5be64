"""`orch submit` and `orch schema`: from a job file to a job."""

import os
import tempfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orch.cli import output
from orch.cli.app import INTERRUPTED, Cluster, FollowToTheEnd, Output, Variables, verb
from orch.cli.output import Format
from orch.cli.starting import From, Map, Only, beginning_with
from orch.model.errors import WrongUse

if TYPE_CHECKING:
    from orch.api.client import Client
    from orch.api.packing import PackPlan
    from orch.cli.output import Progress
    from orch.model.jobfile import LoadedJob
    from orch.model.problems import Problem
    from orch.model.spec import JobSpec

Document = dict[str, Any]


def register(app: typer.Typer) -> None:
    verb(
        app,
        "orch submit job.yaml",
        "orch submit job.yaml --follow",
        "orch submit job.yaml --dry-run",
        "orch submit finetune.yaml --from digits-x7k2m@1200 --only model --map 'head.*=old_head.*'",
        "orch submit job.yaml --set checkpoint.every.seconds=60 --env SEED=7 --name trial",
        "JOB=$(orch submit job.yaml --quiet) && orch wait $JOB",
        "generate-job | orch submit -",
    )(submit)
    verb(app, "orch schema > job.schema.json")(schema)


def submit(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="The job file; - reads standard input.", show_default=False)
    ],
    *,
    follow: FollowToTheEnd = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print the job's id and nothing else.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "-n", help="Show what would be submitted; start nothing.")
    ] = False,
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="Instead of the job file's.")
    ] = None,
    set_values: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a value, such as resources.gpus=1."),
    ] = None,
    env: Variables = None,
    begin_with: From = None,
    only: Only = None,
    maps: Map = None,
    output_format: Output = Format.TABLE,
    cluster: Cluster = None,
) -> None:
    """Submits a job, and prints its id.

    Ships the workdir, and starts the server if none runs.

    Exit code with --follow: 0 succeeded, 1 failed, 3 cancelled, 7 blocked. Ctrl-C leaves the job running.
    """
    from orch.model.jobfile import env_options, load_job

    loaded = load_job(file, set_values or (), env=env_options(env or (), os.environ), name=name)
    loaded = beginning_with(loaded, begin_with, only or (), maps or (), cluster)
    plan = plan_shipping(loaded)
    if dry_run:
        from orch.cli.dryrun import dry_run as show

        show(loaded, plan, output_format, cluster)
        return
    secrets = checked(loaded, plan, cluster)
    from orch.cli.connect import connected_or_started

    with output.progress(quiet=quiet) as shown, connected_or_started(cluster, shown) as client:
        code = ship(client, plan, shown)
        shown.show("submitting")
        found = client.submit(
            loaded.spec.model_dump(mode="json"),
            base_dir=str(loaded.base_dir),
            code=code,
            secrets=secrets,
        )
        shown.close()
        _announce(found, output_format, quiet=quiet, follow=follow)
        if follow:
            follow_to_the_end(client, found["id"], notices=not quiet)


def plan_shipping(loaded: "LoadedJob") -> "PackPlan | None":
    """None: nothing is shipped."""
    if loaded.spec.ship == "never":
        return None
    from orch.api.packing import plan

    return plan(Path(loaded.spec.workdir))


def checked(loaded: "LoadedJob", plan: "PackPlan | None", cluster: str | None) -> dict[str, str]:
    """The secrets' values. What only this machine can refuse is refused here, all of it at once."""
    from orch.model.jobfile import secret_values
    from orch.model.problems import JobFileError, Problem

    problems = local_problems(loaded, plan, cluster)
    secrets: dict[str, str] = {}
    try:
        secrets = secret_values(loaded.spec, os.environ)
    except WrongUse as error:
        problems.append(Problem(error.message, file=loaded.file))
    if not problems:
        problems += _refused_by_storage(loaded.spec, secrets, cluster)
    if problems:
        raise JobFileError(problem if problem.file else problem.at(loaded.file, None) for problem in problems)
    return secrets


def local_problems(loaded: "LoadedJob", plan: "PackPlan | None", cluster: str | None) -> list["Problem"]:
    """What stands against shipping the workdir, and against the storage where the server is this machine's."""
    from orch.cli.connect import find_target
    from orch.model.jobfile import missing_extra

    problems = list(plan.problems) if plan else []
    problems += _requirements_problems(loaded, plan)
    storage = loaded.spec.checkpoint.storage
    if storage is not None and find_target(cluster).kind == "home":
        problems += [found for found in (missing_extra(storage.url), _unwritable(storage.url)) if found]
    return problems


def _refused_by_storage(spec: "JobSpec", secrets: dict[str, str], cluster: str | None) -> list["Problem"]:
    """Why a storage elsewhere cannot be written to, where a server would have to be started to find it out."""
    from orch.cli.connect import find_target, server_answers
    from orch.model.problems import Problem
    from orch.model.storage_url import split_storage_url

    storage, target = spec.checkpoint.storage, find_target(cluster)
    if storage is None or target.kind != "home" or split_storage_url(storage.url)[0] == "file":
        return []
    if server_answers(target):
        return []  # it tries by itself
    from orch_workers.checkpoint.errors import StorageError
    from orch_workers.checkpoint.storage import open_storage

    env, unfenced = {**spec.env, **secrets}, spec.checkpoint.unfenced
    try:
        open_storage(storage.url, dict(storage.options), env, unfenced=unfenced).check_writable()
    except StorageError as error:
        return [Problem(str(error), path="checkpoint.storage")]
    return []


def _unwritable(url: str) -> "Problem | None":
    """Why no folder can be made where a storage on this disk is to be. What is made to find out is removed again.

    The server proves the whole of it, but would have been started for a job that it refuses.
    """
    from orch.model.problems import Problem
    from orch.model.storage_url import split_storage_url

    protocol, name = split_storage_url(url)
    if protocol != "file":
        return None
    at = Path(name)
    while not os.path.lexists(at):
        at = at.parent
    try:
        Path(tempfile.mkdtemp(prefix=".orch-write-test-", dir=at)).rmdir()
    except OSError as error:
        why = f"no folder can be made in {at}: {error.strerror}"
        return Problem(f"cannot write to {name}: {why}", path="checkpoint.storage")
    return None


def _requirements_problems(loaded: "LoadedJob", plan: "PackPlan | None") -> list["Problem"]:
    """The agents build the environment from what is shipped; that it is shipped is known here already."""
    from orch.model.problems import Problem

    python = loaded.spec.python
    if plan is None or plan.problems or python is None or python.requirements is None:
        return []
    name = str(PurePosixPath(python.requirements))
    if any(entry.path == name for entry in plan.files):
        return []
    is_there = (plan.workdir / name).exists()
    why = "is left out by .gitignore or .orchignore" if is_there else f"is not in the workdir {plan.workdir}"
    return [Problem(f"{name} {why}", path="python.requirements")]


def ship(client: "Client", plan: "PackPlan | None", shown: "Progress") -> Document | None:
    """Packs and uploads the workdir, unless the server has the very same already."""
    if plan is None:
        return None
    from orch.api.packing import pack
    from orch.cli.humans import count
    from orch.model.units import describe_size

    what = f"{count(len(plan.files), 'file')}, {describe_size(plan.size_bytes)}"
    with tempfile.TemporaryDirectory(prefix="orch-") as folder:
        archive = Path(folder) / "code.zip"
        shown.show(f"packing {what}")
        packed = pack(plan, archive)
        if not client.has_code(packed.digest):
            shown.show(f"uploading {what}")
            client.upload_code(
                packed.digest,
                archive,
                on_progress=lambda sent, size: shown.measure(f"uploading {what}", sent / max(size, 1)),
            )
    return {
        "digest": packed.digest,
        "size_bytes": packed.size_bytes,
        "git_commit": packed.git_commit,
        "git_dirty": packed.git_dirty,
    }


def _announce(job: Document, output_format: Format, *, quiet: bool, follow: bool) -> None:
    if quiet:
        output.write_line(job["id"])
        return
    unprotected = "UNPROTECTED" in (job.get("flags") or [])
    if output_format is Format.JSON:
        output.write_json({"version": output.VERSION, "jobs": [job]})
    else:
        output.write_line(f"{job['id']} submitted" + (", UNPROTECTED" if unprotected else ""))
    if unprotected:
        output.say(
            f"orch: nothing keeps the state of {job['id']}: if it dies it starts over."
            " `import orch` in the script keeps it; see docs/training-api.md"
        )
    if not follow and output_format is not Format.JSON:
        output.say(f"orch: follow it with `orch logs -f {job['id']}`, see how it stands with `orch status`")


def follow_to_the_end(client: "Client", job: str, *, notices: bool = True, tail: int | None = None) -> None:
    """Shows the log (`tail`: from so many lines before its end on) and ends the program with the job's exit code."""
    from orch.cli.following import LogFollower, LogView, exit_code, keeps_running, outcome_sentence

    try:
        found = LogFollower(client, job, LogView(tail=tail), notices=notices).run()
    except KeyboardInterrupt:
        output.say(keeps_running(job))
        raise typer.Exit(INTERRUPTED) from None
    output.say(f"orch: {outcome_sentence(found)}")
    raise typer.Exit(exit_code(found))


def schema() -> None:
    """The JSON schema of the job file, for editors.

    In the first line of a job file: # yaml-language-server: $schema=job.schema.json
    """
    from orch.model.jobfile import job_schema

    output.write_json(job_schema())
