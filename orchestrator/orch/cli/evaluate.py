"""`orch evaluate`: one evaluation for each checkpoint of a job, each a job of its own, and what came out of them."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orch.cli import output
from orch.cli.app import INTERRUPTED, Cluster, Job, Output, verb
from orch.cli.output import Format
from orch.model.errors import OrchError, WrongUse

if TYPE_CHECKING:
    from collections.abc import Sequence

    from orch.api.client import Client
    from orch.cli.checkpoints_place import Place
    from orch.cli.output import Progress
    from orch_workers.checkpoint.listing import Listed

Document = dict[str, Any]

EVALUATIONS_MAX = 200
"""Jobs that one command may submit."""
BAR_CELLS = 24
BEST = "best:"
NAME_CHARS = 40


def register(app: typer.Typer) -> None:
    verb(
        app,
        'orch evaluate digits-x7k2m --run "python eval.py"',
        'orch evaluate digits-x7k2m --run "python eval.py" --steps 400,800,1200 --metric accuracy --mode max',
        'orch evaluate digits-x7k2m --run "python eval.py" --steps best:3 --workdir . --plot curve.svg',
    )(evaluate)


def evaluate(
    job: Job,
    run: Annotated[str, typer.Option("--run", metavar="COMMAND", help="What evaluates one checkpoint.")],
    *,
    steps: Annotated[
        str,
        typer.Option(
            "--steps", metavar="WHICH", help="all, some (400,800), or the best by --metric (best:3)."
        ),
    ] = "all",
    metric: Annotated[
        str | None,
        typer.Option("--metric", metavar="NAME", help="What is compared; needed where there are several."),
    ] = None,
    mode: Annotated[
        str, typer.Option("--mode", metavar="min|max", help="Whether lower or higher is better.")
    ] = "min",
    workdir: Annotated[
        Path | None,
        typer.Option("--workdir", metavar="DIR", help="With this folder's code, not the job's newest."),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE.svg", help="Also draw the metric over the steps.")
    ] = None,
    output_format: Output = Format.TABLE,
    cluster: Cluster = None,
) -> None:
    """Evaluates checkpoints of a job, one job for each, and names the best.

    The command begins with the checkpoint as `orch submit --from` does: `orch.training(model=model)` loads it, and the
    metrics given to run.step(…) are what is compared. Exit code 1 when an evaluation failed.
    """
    from orch.cli.checkpoints_place import Address, find_place, sentences
    from orch.cli.connect import connected_or_started

    if mode not in {"min", "max"}:
        raise WrongUse(f"--mode: {mode!r} is neither min nor max")
    place = find_place(Address(job), cluster)
    if place.job is None or place.spec is None:
        raise OrchError(f"the command and resources of {job} are known to its server alone, and none answers")
    with sentences(place):
        chosen = _chosen(place, steps, metric, mode)
    with output.progress() as shown, connected_or_started(cluster, shown) as client:
        code = _code(client, place, workdir, shown)
        jobs = {}
        for one in chosen:
            shown.show(f"submitting the evaluation of step {one.step}")
            jobs[one.step] = _submit(client, place, one, run, code)
        try:
            found = {step: _waited(client, name, step, shown) for step, name in jobs.items()}
        except KeyboardInterrupt:
            shown.close()
            output.say("\norch: the evaluations go on; `orch status` shows them, `orch cancel JOB` ends one")
            raise typer.Exit(INTERRUPTED) from None
    rows = [_row(one, found[one.step]) for one in chosen]
    _show(job, rows, metric, mode, plot, output_format)


def _chosen(place: Place, steps: str, metric: str | None, mode: str) -> list[Listed]:
    """Oldest first. WrongUse for what there is not."""
    from orch_workers.checkpoint.blobs import KIND
    from orch_workers.checkpoint.listing import list_checkpoints

    listed = reversed(list_checkpoints(place.catalog))
    whole = [one for one in listed if one.is_restorable and one.manifest and one.manifest.kind != KIND]
    if not whole:
        raise WrongUse(
            f"{place.job_id} has no checkpoint that could be evaluated; `orch checkpoints list` shows all"
        )
    if steps == "all":
        found = whole
    elif steps.startswith(BEST):
        found = _best(whole, steps.removeprefix(BEST), metric, mode)
    else:
        by_step = {str(one.step): one for one in whole}
        wanted = [text.strip() for text in steps.split(",")]
        missing = [text for text in wanted if text not in by_step]
        if missing:
            raise WrongUse(
                f"--steps: {place.job_id} has no restorable step {missing[0]!r}; it has {', '.join(by_step)}"
            )
        found = [by_step[text] for text in dict.fromkeys(wanted)]
    if len(found) > EVALUATIONS_MAX:
        raise WrongUse(
            f"--steps: {len(found)} evaluations at once are too many; name at most {EVALUATIONS_MAX}"
        )
    return found


def _best(whole: Sequence[Listed], count: str, metric: str | None, mode: str) -> list[Listed]:
    if not count.isdigit() or not int(count):
        raise WrongUse(f"--steps: best:{count} names no number, such as best:3")
    if metric is None:
        raise WrongUse("--steps best:N goes by a metric of the training: name it with --metric")
    known = [(value, one) for one in whole if (value := _number((one.metrics or {}).get(metric))) is not None]
    if not known:
        raise WrongUse(
            f"--metric {metric}: no checkpoint has it; run.step({metric}=…) keeps it with the next ones"
        )
    known.sort(key=lambda pair: pair[0], reverse=mode == "max")
    return sorted((one for _, one in known[: int(count)]), key=lambda one: one.step)


def _number(value: Any) -> float | None:
    import math

    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if math.isfinite(found) else None


def _code(client: Client, place: Place, workdir: Path | None, shown: Progress) -> Document | None:
    """The job's own, unless another folder is named."""
    from orch.cli.resume import plan_of
    from orch.cli.submit import ship

    assert place.job is not None
    if workdir is not None:
        return ship(client, plan_of(workdir, "auto"), shown)
    known = place.job.get("code")
    if not known:
        return None
    code = {name: known[name] for name in ("digest", "size_bytes", "git_commit", "git_dirty")}
    if not client.has_code(code["digest"]):
        with tempfile.TemporaryDirectory(prefix="orch-") as folder:
            archive = Path(folder) / "code.zip"
            archive.write_bytes(
                place.catalog.storage.read(place.catalog.path("code", f"{code['digest']}.zip"))
            )
            client.upload_code(code["digest"], archive)
    return code


def _submit(client: Client, place: Place, one: Listed, run: str, code: Document | None) -> str:
    """Its id. The same resources, environment and storage; nothing of it is kept but its last state."""
    import os

    from orch.cli.checkpoints_tables import generation_text

    assert place.job is not None
    assert place.spec is not None
    spec = dict(place.job["spec"])
    checkpoint = {**spec["checkpoint"], "every": {"seconds": 600}, "keep": {"last": 1}, "files": []}
    spec |= {
        "name": f"{place.spec.job_name[:NAME_CHARS].rstrip('-')}-eval",
        "run": run,
        "outputs": [],
        "drill": None,
        "metrics": {},
        "checkpoint": checkpoint,
        "ship": "never" if code is None else "auto",
        "start_from": {
            "url": place.url.removeprefix("file://"),
            "options": dict(checkpoint["storage"].get("options") or {}),
            "step": one.step,
            "generation": generation_text(one.point.generation),
        },
    }
    secrets = {name: os.environ[name] for name in place.spec.secrets if name in os.environ}
    if missing := [name for name in place.spec.secrets if name not in secrets]:
        raise WrongUse(f"the secret {missing[0]} of {place.job_id} is not set here: export it and try again")
    return str(client.submit(spec, base_dir=str(Path.cwd()), code=code, secrets=secrets)["id"])


def _waited(client: Client, job: str, step: int, shown: Progress) -> Document:
    from orch.cli.following import wait_over

    shown.show(f"waiting for {job}, which evaluates step {step}")
    return wait_over(client, job, None)


def _row(one: Listed, job: Document) -> Document:
    succeeded = job["state"] == "SUCCEEDED"
    return {
        "step": one.step,
        "epoch": one.epoch,
        "job": job["id"],
        "state": job["state"],
        "reason": None if succeeded else job["reason"],
        "metrics": (job.get("metrics") or {}) if succeeded else {},
    }


def _show(
    job: str, rows: list[Document], metric: str | None, mode: str, plot: Path | None, output_format: Format
) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row["metrics"]))
    by = metric if metric is not None else (names[0] if len(names) == 1 else None)
    values = {
        row["step"]: value for row in rows if (value := _number(row["metrics"].get(by or ""))) is not None
    }
    best = (min if mode == "min" else max)(values, key=values.__getitem__) if values else None
    if plot is not None and by is not None and values:
        plot.write_text(svg(values, by, best))
    if output_format is Format.JSON:
        told = {"job": job, "metric": by, "mode": mode, "best": best, "evaluations": rows}
        output.write_json({"version": output.VERSION, **told})
    else:
        output.console().print(_table(rows, names, values, best))
        for line in _sentences(job, names, by, values, best, plot):
            output.say(line)
    if any(row["state"] != "SUCCEEDED" for row in rows):
        raise typer.Exit(1)


def _table(rows: list[Document], names: list[str], values: dict[int, float], best: int | None) -> Any:
    from orch.cli.humans import number, one_line
    from orch.cli.tables import plain_table

    table = plain_table(["STEP", "JOB", *(name.upper() for name in names), "OVER THE STEPS"], right={"STEP"})
    for row in rows:
        shown = [number(row["metrics"].get(name)) for name in names]
        bar = bar_of(values[row["step"]], values) if row["step"] in values else one_line(row["reason"] or "-")
        table.add_row(str(row["step"]), row["job"], *shown, bar + (" best" if row["step"] == best else ""))
    return table


def bar_of(value: float, values: dict[int, float]) -> str:
    """A bar between the lowest and the highest of all; the lowest has one cell."""
    low, high = min(values.values()), max(values.values())
    share = (value - low) / (high - low) if high > low else 1.0
    return "█" * (1 + round(share * (BAR_CELLS - 1)))


def _sentences(
    job: str, names: list[str], by: str | None, values: dict[int, float], best: int | None, plot: Path | None
) -> list[str]:
    if best is not None:
        found = [
            f"orch: best is step {best} with {by} {values[best]:g}: `orch checkpoints export {job}@{best}`"
        ]
    elif not names:
        found = ["orch: no evaluation told a metric: run.step(NAME=…) in its script tells one"]
    elif by is None:
        found = [f"orch: there are several metrics ({', '.join(names)}): --metric says which names the best"]
    else:
        found = [f"orch: no evaluation told {by}; there are {', '.join(names)}"]
    return [*found, *([f"orch: the curve is in {plot}"] if plot is not None and values else [])]


def svg(values: dict[int, float], name: str, best: int | None) -> str:
    """The metric over the steps, as a picture of 640 by 360."""
    from html import escape

    wide, high, edge = 640, 360, 50
    steps, low, top = sorted(values), min(values.values()), max(values.values())

    def at(step: int) -> tuple[float, float]:
        across = (step - steps[0]) / ((steps[-1] - steps[0]) or 1)
        up = (values[step] - low) / ((top - low) or 1)
        return edge + across * (wide - 2 * edge), high - edge - up * (high - 2 * edge)

    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(at, steps))
    dots = "".join(
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{5 if step == best else 3}" fill="{"#c00" if step == best else "#36c"}">'
        f"<title>step {step}: {values[step]:g}</title></circle>"
        for step in steps
        for x, y in [at(step)]
    )
    words = (
        f'<text x="{edge}" y="20">{escape(name)}</text><text x="5" y="{edge}">{top:g}</text>'
        f'<text x="5" y="{high - edge}">{low:g}</text><text x="{edge}" y="{high - 15}">step {steps[0]}</text>'
        f'<text x="{wide - edge}" y="{high - 15}" text-anchor="end">{steps[-1]}</text>'
    )
    size = f'width="{wide}" height="{high}" font-family="sans-serif" font-size="12"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size}>'
    back = f'<rect width="{wide}" height="{high}" fill="#fff"/>'
    return f'{head}{back}<polyline points="{points}" fill="none" stroke="#36c" stroke-width="2"/>{dots}{words}</svg>\n'
