"""Documents of the API as tables."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Literal

from orch.cli.humans import ABSENT, between_s, clock, number, one_line, percent, span
from orch.cli.output import is_terminal
from orch.cli.story import start_story
from orch.model.units import describe_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

Document = dict[str, Any]

UNPROTECTED = (
    "none: nothing keeps this job's state, so it starts over when it dies;"
    " `import orch` in the script keeps it, or `checkpoint.files` in the job file what the script writes itself"
)
INEXACT = "rolled back for a loss that was no number: no longer the run it would have been; `orch events` has the steps"
STATE_STYLES = {
    "QUEUED": "cyan",
    "STARTING": "cyan",
    "RUNNING": "green",
    "RECOVERING": "yellow",
    "STOPPING": "yellow",
    "BLOCKED": "bold red",
    "SUCCEEDED": "bold green",
    "FAILED": "bold red",
    "CANCELLED": "magenta",
}
CHECKPOINTS_SHOWN = 5
METRICS_SHOWN = 3
METRIC_FIRST = "loss"
FLAG_STYLE = "bold yellow"
GAP = 2
"""Columns of a terminal between two of a table."""
REASON_COLUMNS_MIN = 24
DROPPED_FIRST = ("STEPS/S", "EPOCH", "METRICS", "TIME", "RESTARTS", "CHECKPOINT")
"""What a narrow terminal does without."""


def jobs_table(jobs: Sequence[Document], width: int) -> Table:
    """`width`: of the terminal. Columns that leave no room for the reasons go, the least needed first."""
    rows = [_job_cells(job) for job in jobs]
    columns = [name for name in _job_cells({}) if name != "FLAGS" or any(job.get("flags") for job in jobs)]
    widths = {name: GAP + max(len(name), *(len(row[name]) for row in rows)) for name in columns}
    reason_columns = min(widths.pop("REASON"), REASON_COLUMNS_MIN)
    for name in DROPPED_FIRST:
        if sum(widths.values()) + reason_columns > width:
            widths.pop(name)
    reason_columns = max(width - sum(widths.values()), reason_columns)
    table = plain_table([*widths, "REASON"], right={"STEP", "EPOCH", "STEPS/S", "RESTARTS", "TIME"})
    for row in rows:
        reason = _styled("REASON", row["REASON"])
        reason.truncate(reason_columns, overflow="ellipsis")  # one job, one line; `status JOB` has it whole
        table.add_row(*(_styled(name, row[name]) for name in widths), reason)
    return table


def _job_cells(job: Document) -> dict[str, str]:
    return {
        "JOB": job.get("id", ""),
        "STATE": job.get("state", ""),
        "FLAGS": " ".join(job.get("flags") or []),
        "STEP": number(job.get("step")),
        "EPOCH": number(job.get("epoch")),
        "STEPS/S": number(job.get("steps_per_s")),
        "METRICS": metrics_text(job.get("metrics")),
        "CHECKPOINT": checkpoint_text(job.get("last_checkpoint")),
        "RESTARTS": number(job.get("restarts")),
        "TIME": span(between_s(job.get("submitted"), job.get("ended"))),
        "REASON": one_line(job.get("reason")),
    }


def _styled(column: str, text: str) -> Text:
    from rich.text import Text

    styles = {"STATE": STATE_STYLES.get(text, ""), "FLAGS": FLAG_STYLE}
    return Text(text, style=styles.get(column, ""))


def job_view(job: Document) -> Group:
    """One job: how it stands, then its story."""
    from rich.console import Group
    from rich.text import Text

    parts: list[Any] = [_facts(job)]
    starts = _starts_table(job)
    if starts.row_count:
        parts += [Text(), Text("Attempts and restarts", style="bold"), starts]
    if checkpoints := job.get("checkpoints"):
        newest = sorted(checkpoints, key=lambda one: one.get("time") or "", reverse=True)
        more = len(newest) - CHECKPOINTS_SHOWN
        title = "Checkpoints" + (f" (the newest {CHECKPOINTS_SHOWN} of {len(newest)})" if more > 0 else "")
        parts += [Text(), Text(title, style="bold"), _checkpoints_table(newest[:CHECKPOINTS_SHOWN])]
    if notes := job.get("notes"):
        parts += [Text(), Text("Notes", style="bold"), _notes_table(notes)]
    if error := job.get("error"):
        from orch.cli.humans import clean

        parts += [Text(), Text("Error", style="bold"), Text(clean(error).rstrip())]
    return Group(*parts)


def state_text(job: Document) -> Text:
    from rich.text import Text

    text = Text(job["state"], style=STATE_STYLES.get(job["state"], ""))
    for flag in job.get("flags") or []:
        text.append(f" {flag}", style=FLAG_STYLE)
    return text


def metrics_text(metrics: Document | None, shown_max: int = METRICS_SHOWN) -> str:
    names = sorted(metrics or {}, key=lambda name: name != METRIC_FIRST)
    text = " ".join(f"{one_line(name)}={number((metrics or {})[name])}" for name in names[:shown_max])
    return text + (" …" if len(names) > shown_max else "") if text else ABSENT


def checkpoint_text(checkpoint: Document | None, word: str = "step") -> str:
    if not checkpoint:
        return ABSENT
    return f"{word} {checkpoint['step']}, {span(checkpoint.get('age_s'))} ago"


def step_word(job: Document) -> str:
    """What is counted: of a job whose script writes its own files their versions."""
    checkpoint = (job.get("spec") or {}).get("checkpoint") or {}
    return "version" if checkpoint.get("files") else "step"


def _facts(job: Document) -> Table:
    grid = _grid()
    state = state_text(job)
    if job.get("reason"):
        state.append(f"  {one_line(job['reason'])}")
    took = span(between_s(job.get("submitted"), job.get("ended")))
    times = f"{clock(job.get('submitted'))}, {took}" + ("" if job.get("ended") else " ago")
    rows: list[tuple[str, Any]] = [
        ("Job", job["id"]),
        ("State", state),
        ("Submitted", times),
        ("Progress", _progress(job)),
        ("Metrics", metrics_text(job.get("metrics"), shown_max=20)),
        ("Checkpoint", checkpoint_text(job.get("last_checkpoint"), step_word(job))),
        ("Interval", one_line((job.get("checkpointing") or {}).get("sentence")) or ABSENT),
        ("Goodput", _goodput(job)),
        ("Budgets", _budgets(job)),
        ("Usage", _usage(job.get("usage") or {})),
        ("Ranks", _ranks((job.get("usage") or {}).get("ranks") or [])),
        ("Code", _code(job.get("code"))),
        ("Exit code", number(job.get("exit_code"))),
    ]
    if "INEXACT" in (job.get("flags") or []):
        rows.insert(2, ("Exactness", INEXACT))
    if "UNPROTECTED" in (job.get("flags") or []):
        rows.insert(2, ("Protection", UNPROTECTED))
    for name, value in rows:
        if value != ABSENT:
            grid.add_row(name, value)
    return grid


def _progress(job: Document) -> str:
    word = step_word(job)
    parts = [] if job.get("step") is None else [f"{word} {job['step']}"]
    epoch = job.get("epoch")
    # Where versions are counted, 0 is what is said of an epoch that the script's files do not tell.
    parts += [] if epoch is None or (epoch == 0 and word != "step") else [f"epoch {epoch}"]
    parts += [] if job.get("steps_per_s") is None else [f"{number(job['steps_per_s'])} {word}s/s"]
    return ", ".join(parts) or ABSENT


def _goodput(job: Document) -> str:
    share = job.get("goodput")
    if share is None:
        return ABSENT
    ledger = job.get("ledger") or {}
    spent = [f"{name.removesuffix('_s')} {span(value)}" for name, value in ledger.items() if value]
    return percent(share) + (f"  ({', '.join(spent)})" if spent else "")


def _budgets(job: Document) -> str:
    budgets, charges = job.get("budgets") or {}, job.get("charges") or {}
    parts = []
    for name in ("failures", "hangs", "preemptions"):
        if f"max_{name}" in budgets:
            limit = budgets[f"max_{name}"]
            parts.append(f"{name} {charges.get(name, 0)} of {'unlimited' if limit is None else limit}")
    return ", ".join(parts) or ABSENT


def _usage(usage: Document) -> str:
    parts = []
    for name, value in usage.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            measured = describe_size(int(value)) if name.endswith("_bytes") else number(value)
            parts.append(f"{name.removesuffix('_bytes')} {measured}")
    return ", ".join(parts) or ABSENT


def _ranks(ranks: list[Document]) -> str:
    """A line for each rank of a gang; one that is slower than the others is named with its host."""
    lines = []
    for one in ranks:
        at = "" if one.get("step") is None else f", step {one['step']}"
        pace = "" if one.get("step_s") is None else f", {number(one['step_s'])} s a step"
        slow = "" if one.get("slower") is None else f": {number(one['slower'])} times as long as the others"
        lines.append(f"rank {one['rank']} on {one_line(one['host'])}{at}{pace}{slow}")
    return "\n".join(lines) or ABSENT


def _code(code: Document | None) -> str:
    if not code:
        return ABSENT
    text = str(code.get("digest", ""))[:12]
    if code.get("git_commit"):
        text += f", git {str(code['git_commit'])[:12]}" + (" with changes" if code.get("git_dirty") else "")
    if code.get("version", 1) > 1:
        text += f", version {code['version']}"
    return text or ABSENT


def _starts_table(job: Document) -> Table:
    """One row per start of the training processes, oldest first; its story takes what width there is."""
    table = plain_table(["GENERATION", "STARTED", "TOOK", "NODE", "STORY"], right={"TOOK"})
    for attempt in job.get("attempts") or []:
        for restart in attempt.get("restarts") or [{}]:
            row = restart or attempt
            # What is not over yet ends with the job at the latest.
            took_s = between_s(row.get("started"), row.get("ended") or job.get("ended"))
            table.add_row(
                f"{attempt['attempt']}.{restart.get('restart', 0)}",
                clock(row.get("started")),
                span(took_s),
                one_line(attempt.get("node")) or ABSENT,
                start_story(attempt, restart),
            )
    return table


def _checkpoints_table(checkpoints: Iterable[Document]) -> Table:
    columns = ["STEP", "GENERATION", "WRITTEN", "SIZE", "TOOK", "STATE", "REASON"]
    table = plain_table(columns, right={"STEP", "SIZE", "TOOK"})
    for one in checkpoints:
        table.add_row(
            number(one.get("step")),
            str(one.get("generation") or ABSENT),
            clock(one.get("time")),
            ABSENT if one.get("size_bytes") is None else describe_size(one["size_bytes"]),
            span(one.get("duration_s")),
            one_line(one.get("state")) or ABSENT,
            one_line(one.get("reason")),
        )
    return table


def _notes_table(notes: Iterable[Document]) -> Table:
    grid = _grid()
    for note in notes:
        grid.add_row(clock(note.get("time")), one_line(note.get("text")))
    return grid


def plain_table(columns: Sequence[str], right: set[str]) -> Table:
    """With a row for each thing, and no lines between them. `right`: columns of numbers."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, GAP, 0, 0))
    wide = not is_terminal(sys.stdout)
    for column in columns:
        # An id that is cut is of no use, and a reader that is no terminal gets everything on one line.
        whole = wide or column not in {"STORY", "REASON"}
        justify: Literal["left", "right"] = "right" if column in right else "left"
        table.add_column(column, justify=justify, no_wrap=whole, overflow="fold")
    return table


def _grid() -> Table:
    from rich.table import Table

    grid = Table.grid(padding=(0, GAP, 0, 0))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    return grid


def server_view(server: Document) -> Table:
    """Addresses first, then every other plain value the server told, its nodes and its jobs."""
    grid = _grid()
    for key in ("url", "version", "ray_address", "store", "store_trouble", "pid", "started"):
        if server.get(key) is not None:
            value = clock(server[key]) if key == "started" else one_line(str(server[key]))
            grid.add_row(key.replace("_", " ").capitalize(), value)
    for node in server.get("nodes") or []:
        grid.add_row("Node", _node(node))
    if jobs := server.get("jobs"):
        grid.add_row("Jobs", ", ".join(f"{amount} {state}" for state, amount in sorted(jobs.items())))
    return grid


def _node(node: Any) -> str:
    if not isinstance(node, dict):
        return one_line(str(node))
    parts = []
    for key, value in node.items():
        shown = (
            describe_size(value)
            if key.endswith("_bytes") and isinstance(value, int)
            else one_line(str(value))
        )
        parts.append(shown if key in {"node", "name"} else f"{key.removesuffix('_bytes')} {shown}")
    return ", ".join(parts)
