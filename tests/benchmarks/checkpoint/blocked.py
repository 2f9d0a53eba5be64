"""How long training waits for a save, steady state: from entering `run.save` to its return, everything included."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tests.benchmarks.checkpoint import states
from tests.benchmarks.checkpoint.blocked_body import OURS, PEERS
from tests.benchmarks.checkpoint.spread import SpreadReport
from tests.benchmarks.checkpoint.training_side import TUNABLES
from tests.benchmarks.report import ROOT

if TYPE_CHECKING:
    from rich.console import Console
    from tests.benchmarks.report import Report

BODY = "tests.benchmarks.checkpoint.blocked_body"
LIMIT_S = 280


def measure(count: int, *, small: bool, progress: Console) -> list[Report]:
    """Peers take part with the large state; ORCH_BENCHMARK_STATES names the states if not all."""
    names = os.environ.get("ORCH_BENCHMARK_STATES", ",".join(states.NAMES)).split(",")
    found: list[Report] = []
    for name in names:
        progress.print(f"blocked: {name}")
        peers = PEERS if name == "gpt2" else ()
        report = SpreadReport(f"blocked time of a save, {name}", by="blocked_s", ours=OURS)
        with tempfile.TemporaryDirectory() as folder:
            result = Path(folder) / "result"
            command = [sys.executable, "-m", BODY, name, str(count), str(int(small)), str(result), *peers]
            subprocess.run(command, cwd=ROOT, env={**os.environ, **TUNABLES}, timeout=LIMIT_S, check=True)
            document = json.loads(result.read_text())
        for side, values in document["samples"].items():
            for value in values:
                report.add(side, blocked_s=value)
        report.facts = document["facts"]
        progress.print(json.dumps(report.facts))
        found.append(report)
    return found
