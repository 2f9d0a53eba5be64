"""`python -m tests.benchmarks [recovery|submit|status|detection] [-n N] [--sides …] [--json FILE]`; all by default.

Alone on the machine, please. Prints medians and ratios as tables, then everything as JSON.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console
from tests.benchmarks import commands, detection, recovery, report

from orch.model.units import parse_size_bytes
from support.server import leave_on_sigterm

REPETITIONS = 7
NAMES = ("recovery", "submit", "status", "detection")


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.benchmarks", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="|".join(NAMES), help="what to measure; all by default")
    parser.add_argument(
        "-n", type=int, default=REPETITIONS, help=f"repetitions of each (default {REPETITIONS})"
    )
    parser.add_argument("--sides", nargs="+", choices=list(recovery.SIDES), help="of recovery")
    parser.add_argument(
        "--state",
        type=parse_size_bytes,
        metavar="SIZE",
        help="of recovery: bytes of the state (100MiB), such as 1.5GB",
    )
    parser.add_argument(
        "--works", type=float, default=recovery.WORKS_S, metavar="S",
        help=f"of recovery: seconds that a process has worked when it is killed (default {recovery.WORKS_S:g})",
    )  # fmt: skip
    parser.add_argument(
        "--victim", choices=recovery.VICTIMS, default=recovery.VICTIMS[0],
        help="of recovery: whose SIGKILL; `agent` with orch's own sides alone, and `orch` by default",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the JSON there instead of to stdout")
    given = parser.parse_args()
    leave_on_sigterm()
    if unknown := set(given.names) - set(NAMES):
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    if given.n < 1:
        parser.error("-n: at least 1")
    sides = given.sides or (["orch"] if given.victim == "agent" else recovery.DEFAULT_SIDES)
    console = Console()
    progress = Console(stderr=True, highlight=False)
    measures = {
        "recovery": lambda: recovery.measure(
            given.n, sides, progress, state_bytes=given.state, works_s=given.works, victim=given.victim
        ),
        "submit": lambda: commands.measure_submit(given.n, progress),
        "status": lambda: commands.measure_status(given.n, progress),
        "detection": lambda: detection.measure(given.n, progress),
    }
    documents = []
    for name in given.names or NAMES:
        found = measures[name]()
        found.show(console)
        documents.append(found.document())
    report.write(documents, given.json, console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
