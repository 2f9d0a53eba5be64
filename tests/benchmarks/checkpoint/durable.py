"""From a READY snapshot to a durable checkpoint: local disk beside a plain write, S3 beside the fastest clients.

The plain write is what a careful script does: one file, 16 MiB at a time, one fsync, from the same shared memory. It
has no digests, no manifest, and no name that is only there when everything is. SeaweedFS runs on the same cores and
takes most of them; a new one serves each repetition. How the clients are tuned: s3_clients.py. ORCH_BENCHMARK_STATES
and ORCH_BENCHMARK_STORAGE (local, s3) name what is measured if not all.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tests.benchmarks.checkpoint import s3_clients
from tests.benchmarks.checkpoint.choosing import chosen
from tests.benchmarks.checkpoint.quiet import in_turn, settle
from tests.benchmarks.checkpoint.slotfiles import GENERATION, Cost, SlotFile, slot_file
from tests.benchmarks.checkpoint.spread import SpreadReport
from tests.support.seaweed import SeaweedFS

from orch_workers.checkpoint import Catalog, Storage, commit, open_storage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import Console
    from tests.benchmarks.report import Report

WRITE_BYTES = 16 << 20
STORAGES = ("local", "s3")
FOLDER = os.environ.get("ORCH_BENCHMARK_FOLDER")
"""On the disk that is to be measured; the usual temporary folder if not given."""
OURS, PLAIN = "orch", "write and fsync"

Sides = dict[str, "Callable[[int], None]"]


def measure(count: int, *, small: bool, progress: Console) -> list[Report]:
    found: list[Report] = []
    for name, kind in chosen(STORAGES):
        report = SpreadReport(f"snapshot to durable, {kind}, {name}", by="seconds_s", ours=OURS)
        with slot_file(name, small=small) as slot:
            report.facts = {"data_bytes": slot.data_bytes, "tensors": len(slot.entries)}
            for number in range(count + 1):
                with (local_sides if kind == "local" else s3_sides)(slot) as sides:
                    _turns(report, slot, sides, number)
                progress.print(f"durable: {kind}, {name}: {number}/{count}")
        found.append(report)
    return found


def _turns(report: SpreadReport, slot: SlotFile, sides: Sides, number: int) -> None:
    """Each side once, in an order that changes; the first turns are not counted (imports, connections)."""
    for side, write in in_turn(sides, number):
        slot.snapshot(number + 1)
        os.sync()
        settle()
        try:
            with Cost(slot.data_bytes) as cost:
                write(number + 1)
        except Exception as error:
            # The CRT, for one, gives up where the server is slow: said, and no reason to lose the others' figures.
            if side == OURS:
                raise
            report.facts.setdefault("failed", []).append(f"{side}: {error}")
            continue
        if number:
            report.add(side, **cost.values())


@contextlib.contextmanager
def local_sides(slot: SlotFile) -> Iterator[Sides]:
    with tempfile.TemporaryDirectory(prefix="orch-benchmark-", dir=FOLDER) as folder:
        ours = _committing(open_storage(f"{folder}/orch"), slot)

        def plain(step: int) -> None:
            descriptor = os.open(Path(folder, str(step)), os.O_CREAT | os.O_WRONLY)
            try:
                for at in range(0, slot.data_bytes, WRITE_BYTES):
                    os.write(descriptor, slot.view[at : at + WRITE_BYTES])
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

        yield {OURS: ours, PLAIN: plain}


@contextlib.contextmanager
def s3_sides(slot: SlotFile) -> Iterator[Sides]:
    with (
        tempfile.TemporaryDirectory(prefix="orch-benchmark-", dir=FOLDER) as folder,
        SeaweedFS(Path(folder)) as server,
    ):
        sides = {OURS: _committing(open_storage(server.url("orch"), server.options, server.env), slot)}
        for name, client in s3_clients.all_of(server).items():
            sides[name] = lambda step, name=name, client=client: client.upload(f"{name}/{step}", slot.view)
        yield sides


def _committing(storage: Storage, slot: SlotFile) -> Callable[[int], None]:
    catalog = Catalog(storage, "benchmark")
    catalog.begin_generation(GENERATION)
    return lambda _: commit(catalog, slot.slot) and None
