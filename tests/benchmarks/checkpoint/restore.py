"""From a checkpoint in storage to a READY slot, digests checked: local disk beside reading the file, S3 beside clients.

Peers read the same bytes into memory that has been touched and check nothing; orch makes a new slot in shared memory,
whose pages the kernel has yet to find and clear, and hashes every byte. From S3 each client also reads into such
memory ("new memory"): on two cores, which the server shares, clearing it is a third of the work. "cold": the files
were dropped from the page cache before each turn, as on a machine that has just come; "warm": they were read once
before. How the S3 clients are tuned: s3_clients.py. ORCH_BENCHMARK_STATES and ORCH_BENCHMARK_STORAGE (cold, warm, s3)
name what is measured if not all.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tests.benchmarks.checkpoint import s3_clients
from tests.benchmarks.checkpoint.choosing import chosen
from tests.benchmarks.checkpoint.quiet import in_turn, settle
from tests.benchmarks.checkpoint.slotfiles import GENERATION, Cost, SlotFile, slot_file
from tests.benchmarks.checkpoint.spread import SpreadReport
from tests.support.seaweed import SeaweedFS

from orch_workers.checkpoint import Catalog, Storage, commit, open_storage, restore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import Console
    from tests.benchmarks.report import Report

READ_BYTES = 16 << 20
STORAGES = ("cold", "warm", "s3")
FOLDER = os.environ.get("ORCH_BENCHMARK_FOLDER")
"""On the disk that is to be measured; the usual temporary folder if not given."""
OURS, PLAIN = "orch", "read the file"
ANEW = ", new memory"

Sides = dict[str, "Callable[[], None]"]


def measure(count: int, *, small: bool, progress: Console) -> list[Report]:
    found: list[Report] = []
    for name, kind in chosen(STORAGES):
        report = SpreadReport(f"restore, {kind}, {name}", by="seconds_s", ours=OURS)
        with slot_file(name, small=small) as slot, _sides(kind, slot) as (sides, prepare):
            report.facts = {"data_bytes": slot.data_bytes, "tensors": len(slot.entries)}
            for number in range(count + 1):  # the first is not counted: imports, connections
                for side, read in in_turn(sides, number):
                    prepare()
                    settle()
                    with Cost(slot.data_bytes) as cost:
                        read()
                    if number:
                        report.add(side, **cost.values())
                progress.print(f"restore: {kind}, {name}: {number}/{count}")
        found.append(report)
    return found


@contextlib.contextmanager
def _sides(kind: str, slot: SlotFile) -> Iterator[tuple[Sides, Callable[[], None]]]:
    slot.snapshot(1)
    touched = memoryview(np.ones(slot.data_bytes, dtype=np.uint8))
    target = slot.path.with_name("restored")
    with contextlib.ExitStack() as opened:
        folder = opened.enter_context(tempfile.TemporaryDirectory(prefix="orch-benchmark-", dir=FOLDER))
        if kind == "s3":
            server = opened.enter_context(SeaweedFS(Path(folder)))
            storage = open_storage(server.url("orch"), server.options, server.env)
            sides: Sides = {OURS: _restoring(storage, slot, target)}
            for name, client in s3_clients.all_of(server).items():
                client.upload(name, slot.view)
                sides[name] = lambda name=name, client=client: client.download(name, touched)
                sides[f"{name}{ANEW}"] = lambda name=name, client=client: _into_new(
                    client, name, slot, target
                )
            yield sides, lambda: target.unlink(missing_ok=True)
            return
        file = Path(folder, "plain")
        file.write_bytes(slot.view)
        sides = {
            OURS: _restoring(open_storage(f"{folder}/orch"), slot, target),
            PLAIN: lambda: _read(file, touched),
        }

        def prepare() -> None:
            target.unlink(missing_ok=True)
            for stored in Path(folder).rglob("*"):
                if stored.is_file():
                    _cache(stored, touched, warm=kind == "warm")

        yield sides, prepare


def _into_new(client: s3_clients.Client, name: str, slot: SlotFile, target: Path) -> None:
    """The download, into memory of the kind that orch restores into: shared, and never touched before."""
    with target.open("w+b") as file:
        file.truncate(slot.data_bytes)
        mapped = mmap.mmap(file.fileno(), slot.data_bytes)
    client.download(name, memoryview(mapped))


def _restoring(storage: Storage, slot: SlotFile, target: Path) -> Callable[[], None]:
    catalog = Catalog(storage, "benchmark")
    catalog.begin_generation(GENERATION)
    commit(catalog, slot.slot)
    [point] = catalog.restore_points()
    return lambda: restore(catalog, point, 0, target) and None


def _read(file: Path, into: memoryview) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        for at in range(0, len(into), READ_BYTES):
            os.preadv(descriptor, [into[at : at + READ_BYTES]], at)
    finally:
        os.close(descriptor)


def _cache(file: Path, scratch: memoryview, *, warm: bool) -> None:
    with file.open("rb", buffering=0) as opened:
        if warm:
            while opened.readinto(scratch[:READ_BYTES]):
                pass
        else:
            os.fsync(opened.fileno())  # what is dirty is not dropped
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
