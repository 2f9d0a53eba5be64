"""One process in which every side saves the same state in turn; inside a worker of Ray Train when that is a side."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from tests.benchmarks.checkpoint import states
from tests.benchmarks.checkpoint.quiet import in_turn, settle
from tests.benchmarks.checkpoint.training_side import run_of
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType

from orch_workers.training.copying import thread_count

if TYPE_CHECKING:
    from collections.abc import Callable

OURS = "orch"
REFERENCES = ("np.copyto 1 thread", "np.copyto threads", "np.copyto 1 block")
PEERS = ("DCP async_save", "DCP process, shared", "torch.save", "Ray Train report")
PEERS_EVERY = 3
"""Peers are slow and far away: they take a turn in every third round."""


class References:
    """One pass of `np.copyto` over the state's tensors, into memory that was touched."""

    def __init__(self, state: dict[str, Any]) -> None:
        self._sources = [t.contiguous().reshape(-1).view(torch.uint8).numpy() for t in states.tensors(state)]
        self.size_bytes = sum(source.nbytes for source in self._sources)
        self._block = np.ones(self.size_bytes, np.uint8)
        ends = np.cumsum([source.nbytes for source in self._sources])
        self._targets = [
            self._block[end - s.nbytes : end] for end, s in zip(ends, self._sources, strict=True)
        ]
        self._other = np.ones(self.size_bytes, np.uint8)
        cut = int(np.searchsorted(ends, self.size_bytes // 2))
        self._halves = [slice(0, cut + 1), slice(cut + 1, None)]

    def _pass(self, part: slice) -> None:
        for target, source in zip(self._targets[part], self._sources[part], strict=True):
            np.copyto(target, source)

    def one(self) -> None:
        self._pass(slice(None))

    def threads(self) -> None:
        helper = threading.Thread(target=self._pass, args=(self._halves[1],))
        helper.start()
        self._pass(self._halves[0])
        helper.join()

    def block(self) -> None:
        np.copyto(self._other, self._block)


class Peers:
    """Each saves into a folder of its own in /dev/shm, so that no disk is measured; the time until a save is durable is
    theirs to spend while training goes on, and not counted.
    """

    def __init__(self, state: dict[str, Any], folder: Path) -> None:
        self._state = state
        self._folder = folder
        self._stager = DefaultStager(StagingOptions(False, True, False, False))
        self._after: Callable[[], Any] = lambda: None
        self._owns_group = not dist.is_initialized()  # Ray Train has one already
        if self._owns_group:
            dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)

    def asynchronous(self) -> None:
        future = dcp.async_save(states.plain(self._state), checkpoint_id=self._new())
        self._after = future.result

    def process(self) -> None:
        future = dcp.async_save(
            states.plain(self._state),
            checkpoint_id=self._new(),
            async_checkpointer_type=AsyncCheckpointerType.PROCESS,
            async_stager=self._stager,
        )
        self._after = future.result

    def save(self) -> None:
        torch.save(states.plain(self._state), self._new() / "state.pt")

    def report(self) -> None:
        from ray.train import Checkpoint, report

        folder = self._new()
        torch.save(states.plain(self._state), folder / "state.pt")
        report({"n": 1}, checkpoint=Checkpoint.from_directory(str(folder)))

    def settle(self) -> None:
        self._after()
        self._after = lambda: None
        shutil.rmtree(self._folder, ignore_errors=True)

    def _new(self) -> Path:
        folder = self._folder / "save"
        folder.mkdir(parents=True)
        return folder

    def close(self) -> None:
        self._stager.close()
        if self._owns_group:
            dist.destroy_process_group()


def measure(name: str, rounds: int, *, small: bool, peers: list[str]) -> dict[str, Any]:
    """{"samples": {side: [seconds]}, "facts": {…}}."""
    state = states.make(name, small=small)
    references = References(state)
    samples: dict[str, list[float]] = {}

    def timed(side: str, call: Callable[[], Any]) -> None:
        began = time.perf_counter()
        call()
        samples.setdefault(side, []).append(time.perf_counter() - began)

    folder = Path(tempfile.mkdtemp(prefix="orch-peers-", dir="/dev/shm"))
    others = Peers(state, folder / "saves") if peers else None
    try:
        with run_of(state) as run:
            for _ in range(3):  # both slots are made, and the plan
                run.step()
                run.save()
            passes = (references.one, references.threads, references.block)
            sides = {OURS: run.save, **dict(zip(REFERENCES, passes, strict=True))}
            for number in range(rounds):
                run.step()
                for side, call in in_turn(sides, number):
                    settle()  # the writing of the last snapshot, and what peers left behind
                    timed(side, call)
                if others is not None and number % PEERS_EVERY == 0:
                    calls = (others.asynchronous, others.process, others.save, others.report)
                    for side, call in zip(PEERS, calls, strict=True):
                        if side in peers:
                            timed(side, call)
                            others.settle()
            skipped, saved = run.skipped_saves, len(samples[OURS])
    finally:
        if others is not None:
            others.close()
        shutil.rmtree(folder, ignore_errors=True)
    if others is not None:  # the first save of a peer that keeps its buffers makes them
        samples = {
            side: found[1:] if side in PEERS and len(found) > 1 else found for side, found in samples.items()
        }
    count = len(states.tensors(state))
    return {"samples": samples, "facts": facts(samples, references.size_bytes, count, skipped, saved)}


def facts(
    samples: dict[str, list[float]], size_bytes: int, count: int, skipped: int, saved: int
) -> dict[str, Any]:
    ours = statistics.median(samples[OURS])
    best = min(statistics.median(samples[side]) for side in REFERENCES[:2])
    pairs = zip(samples[OURS], zip(*(samples[side] for side in REFERENCES[:2]), strict=True), strict=True)
    return {
        "size_bytes": size_bytes,
        "tensors": count,
        "threads": thread_count(),
        "tunables": os.environ.get("GLIBC_TUNABLES", ""),
        "times_the_pass": round(ours / best, 3),
        "times_the_pass_of_its_round": round(statistics.median(one / min(two) for one, two in pairs), 3),
        "over_the_pass_us_per_tensor": round((ours - best) / count * 1e6, 3),
        "over_one_block_us_per_tensor": round(
            (ours - statistics.median(samples[REFERENCES[2]])) / count * 1e6, 3
        ),
        "saves_skipped": skipped,
        "saves": saved,
    }


def main() -> None:
    """NAME ROUNDS SMALL RESULT [PEER…]: in a plain process, or in Ray Train's worker if its report is a peer."""
    name, rounds, small, result, *peers = sys.argv[1:]
    if PEERS[3] not in peers:
        found = measure(name, int(rounds), small=small == "1", peers=peers)
        Path(result).write_text(json.dumps(found))
        return
    in_ray(name, int(rounds), small == "1", result, peers)


def in_ray(name: str, rounds: int, small: bool, result: str, peers: list[str]) -> None:
    import ray
    from ray.train import CheckpointConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from tests.benchmarks.report import ROOT

    where = tempfile.mkdtemp(prefix="orch-ray-", dir="/dev/shm")
    paths = ":".join(str(ROOT / part) for part in (".", "orchestrator", "workers", "policies"))

    def loop(config: dict[str, Any]) -> None:
        from tests.benchmarks.checkpoint import blocked_body

        found = blocked_body.measure(name, rounds, small=small, peers=peers)
        Path(result).write_text(json.dumps(found))

    environment = {"GLIBC_TUNABLES": os.environ["GLIBC_TUNABLES"], "PYTHONPATH": paths}
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
        runtime_env={"env_vars": environment},
        object_store_memory=200 << 20,
    )
    try:
        TorchTrainer(
            loop,
            scaling_config=ScalingConfig(num_workers=1),
            run_config=RunConfig(storage_path=where, checkpoint_config=CheckpointConfig(num_to_keep=1)),
        ).fit()
    finally:
        ray.shutdown()
        shutil.rmtree(where, ignore_errors=True)


if __name__ == "__main__":
    main()
