"""A report that also says how far its samples lie apart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.table import Table
from tests.benchmarks.report import Report

if TYPE_CHECKING:
    from rich.console import Console


class SpreadReport(Report):
    def document(self) -> dict[str, Any]:
        found = super().document()
        found["command"] = found["command"].replace("tests.benchmarks", "tests.benchmarks.checkpoint", 1)
        return {**found, "spread": self.spread()}

    def spread(self) -> dict[str, list[float]]:
        return {side: [min(found[self.by]), max(found[self.by])] for side, found in self.samples.items()}

    def show(self, console: Console) -> None:
        medians, ratios, spread = self.medians(), self.ratios(), self.spread()
        count = max(len(found[self.by]) for found in self.samples.values())
        others = [name for name in next(iter(medians.values())) if name != self.by]
        table = Table(
            "", self.by, "least to most", "times ours", *others, title=f"{self.name}: medians of {count}"
        )
        for side, found in medians.items():
            least, most = spread[side]
            ratio = "1.00" if side == self.ours else f"{ratios.get(side, float('nan')):.2f}"
            rest = [f"{found[name]:.3f}" if name in found else "-" for name in others]
            table.add_row(side, f"{found[self.by]:.4f}", f"{least:.4f} to {most:.4f}", ratio, *rest)
        console.print(table)
