"""`python -m tests.benchmarks.checkpoint [blocked|step|durable|restore|memory …] [-n N] [--small] [--json FILE]`.

Alone on the machine, please. All sides of a benchmark take turns in one run; medians, spread and ratios are printed
as tables, then everything as JSON. `--small`: a hundredth of the state, to see that it runs.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from rich.console import Console
from tests.benchmarks import report

REPETITIONS = 7
NAMES = ("blocked", "step", "durable", "restore", "memory")
"""Each is a module beside this one with `measure(count, small, progress)`, a list of reports."""


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="tests.benchmarks.checkpoint", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("names", nargs="*", metavar="|".join(NAMES), help="what to measure; all by default")
    parser.add_argument(
        "-n", type=int, default=REPETITIONS, help=f"repetitions of each (default {REPETITIONS})"
    )
    parser.add_argument("--small", action="store_true", help="a hundredth of the state")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the JSON there instead of to stdout")
    given = parser.parse_args()
    if unknown := set(given.names) - set(NAMES):
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    if given.n < 1:
        parser.error("-n: at least 1")
    console = Console()
    progress = Console(stderr=True, highlight=False)
    documents = []
    for name in given.names or NAMES:
        module = importlib.import_module(f"tests.benchmarks.checkpoint.{name}")
        for found in module.measure(given.n, small=given.small, progress=progress):
            found.show(console)
            documents.append(found.document())
    report.write(documents, given.json, console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
