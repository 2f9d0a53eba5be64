"""What a benchmark hands back: its figures, what they were taken with, a table for people and JSON for the rest."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[2]
VERSIONS = ("torch", "ray", "orch")


@dataclass
class Report:
    """`samples`: side → measure → one number per repetition. Ratios are to `ours`, in the measure `by`."""

    name: str
    by: str
    ours: str
    samples: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def add(self, side: str, **values: float) -> None:
        measures = self.samples.setdefault(side, {})
        for measure, value in values.items():
            measures.setdefault(measure, []).append(round(value, 4))

    def medians(self) -> dict[str, dict[str, float]]:
        return {
            side: {measure: round(statistics.median(values), 4) for measure, values in measures.items()}
            for side, measures in self.samples.items()
        }

    def ratios(self) -> dict[str, float]:
        """How many times as long as ours each other side takes."""
        medians = self.medians()
        ours = medians.get(self.ours, {}).get(self.by)
        if not ours:
            return {}
        return {side: round(found[self.by] / ours, 2) for side, found in medians.items() if side != self.ours}

    def document(self) -> dict[str, Any]:
        return {
            "version": 1,
            "benchmark": self.name,
            "date": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
            "commit": commit(),
            "command": shlex.join(["python", "-m", "tests.benchmarks", *sys.argv[1:]]),
            "machine": machine(),
            "facts": self.facts,
            "medians": self.medians(),
            "ratio_by": self.by,
            "ratios": self.ratios(),
            "samples": self.samples,
        }

    def show(self, console: Console) -> None:
        medians, ratios = self.medians(), self.ratios()
        measures = dict.fromkeys(measure for found in medians.values() for measure in found)
        count = max(len(values) for found in self.samples.values() for values in found.values())
        table = Table("", *medians, title=f"{self.name}: medians of {count}")
        for measure in measures:
            numbers = [f"{found[measure]:.3f}" if measure in found else "-" for found in medians.values()]
            table.add_row(measure, *numbers)
        table.add_section()
        table.add_row(f"{self.by}, times ours", *(f"{ratios.get(side, 1.0):.2f}" for side in medians))
        console.print(table)


def commit() -> str:
    """Short hash of the checkout, with `+` if it has changes."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty=+", "--exclude=*"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or "unknown"


def machine() -> dict[str, Any]:
    return {
        "cpus": len(os.sched_getaffinity(0)),
        "load_1m": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in VERSIONS},
    }


def write(documents: list[dict[str, Any]], path: Path | None, console: Console) -> None:
    text = json.dumps(documents if len(documents) != 1 else documents[0])
    if path is None:
        console.print(text, soft_wrap=True, highlight=False, markup=False)
    else:
        path.write_text(text + "\n", encoding="utf-8")
