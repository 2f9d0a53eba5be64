"""The rows of docs/failures.md on one machine, one after the other, many times over: for `python -m tests.soak rows`.

Each makes a job, does to it what the row says, and looks at what a user looks at: state, charge, sentences, books. The
rows about nodes, notices and the lease are in repeating_nodes.py, those about the controller in transitions.py.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orch.cli.story import told
from orch.control.home import Home
from orch_workers.config import WorkerPaths
from support.accounts import assert_accounts, keep_timeline
from support.jobs import held, log_of, wait_state, write_job
from support.leftovers import of_jobs
from support.memory_groups import limited_group
from support.recovery import kill, starts
from support.server import Server, wait_for
from support.some import only

if TYPE_CHECKING:
    import random

STEPS, EPOCH = 200, 50
TOTAL = sum(step % EPOCH * step for step in range(STEPS))
"""What an undisturbed run ends with."""
TRAIN = f"""
import hashlib, os, sys, threading
import orch

generation = os.environ["ORCH_GENERATION"]
if generation == os.environ.get("UNIMPORTABLE"):
    import a_package_that_is_nowhere


def out_of_memory():
    with open(os.environ["GROUP"] + "/cgroup.procs", "w") as group:
        group.write(str(os.getpid()))
    return [bytearray(1 << 20) for _ in range(4096)]


def hang():
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


do, at = os.environ.get("DO", "pass"), int(os.environ.get("AT", "-1"))
again = "ALWAYS" in os.environ or generation == "000001.000001"
run = orch.training(total=[0])
for _ in run.epochs({STEPS // EPOCH}):
    for value in run.batches(range({EPOCH})):
        hashlib.pbkdf2_hmac("sha256", b"work", b"of a step", 20_000)
        if os.path.exists(os.environ["HOLD"]):
            open(os.environ["HOLD"]).read()
        if again and run.step_count + 1 == at:
            exec(do)
        run.values["total"][0] += value * run.step_count
        run.step(loss=float("nan") if again and run.step_count + 1 == at and do == "pass" else 1.0)
print("total", run.values["total"][0])
"""
NO_WAIT = {"backoff": {"initial": 0, "max": 0}}
AWAY_S = 1.5
MEMORY_BYTES = 192 << 20


class Ill:
    """One job, and the hands that a row needs."""

    def __init__(self, rows: Rows, env: dict[str, str], run: str, keys: dict[str, Any]) -> None:
        self.server, self.rng = rows.server, rows.rng
        rows.number += 1
        folder = rows.folder / f"{rows.number}"
        self.hold = rows.folder / f"hold-{rows.number}"
        keys = {"checkpoint": {"every": {"seconds": 0.3}}, "restart": NO_WAIT, "name": "row", **keys}
        env = {"HOLD": str(self.hold), **env}
        self.id = self.server.submit(write_job(folder, run, {"train.py": TRAIN}, env=env, **keys))

    def at_work(self) -> None:
        """Until it has a checkpoint beside the first step's, and stands somewhere in the middle."""
        wait_for("a checkpoint", lambda: len(self.told("CheckpointCommitted")) > 1)
        step = self.rng.randrange(STEPS // 8, STEPS // 3)
        wait_for("the step", lambda: (self.server.job(self.id)["step"] or 0) >= step)

    def told(self, kind: str) -> list[dict[str, Any]]:
        return [event["data"] for event in self.server.events(self.id) if event["type"] == kind]

    @contextlib.contextmanager
    def standing_still(self) -> Iterator[None]:
        """No step is done, and all that was saved is in storage."""
        seen: list[list[str]] = [[]]

        def still() -> bool:
            before, seen[0] = seen[0], self.shards()
            return bool(before) and before == seen[0]

        with held(self.hold):
            wait_for("nothing new in storage", still, poll_s=1.0)
            yield

    def shards(self) -> list[str]:
        folder = self.server.home / "storage" / self.id / "shards"
        return sorted(str(path) for path in folder.rglob("*.safetensors"))

    def slots(self) -> list[Path]:
        paths = WorkerPaths(self.id, 0, self.server.home / "node", self.server.home / "jobs")
        return [*paths.snapshots.glob("slot-*"), *paths.snapshots.glob("restore*")]

    def ends(
        self, state: str = "SUCCEEDED", *said: str, charged: dict[str, int] | None = None
    ) -> dict[str, Any]:
        """Checks what is common to all; the detail document. `charged`: all that was, given back or not."""
        found = self.server.wait(self.id, check=None)
        assert found["state"] == state, f"{self.id} is {found['state']}: {found['reason']}"
        if state == "SUCCEEDED" and "INEXACT" not in found["flags"]:
            assert log_of(self.server, self.id).splitlines()[-1] == f"total {TOTAL}"
        sentences = [told(event) for event in self.server.client().follow_events(self.id)]
        for words in said:
            assert any(words in sentence for sentence in sentences), f"{words!r} is not in {sentences}"
        decided = Counter(one["charge_to"] for one in self.told("RestartDecided"))
        if charged is not None:
            assert decided == charged, f"{decided} instead of {charged}"
        wait_for("nothing is left", lambda: not of_jobs(self.server.home, [self.id]), 20.0)
        return assert_accounts(self.server, self.id)


Row = Callable[["Rows"], Ill]


class Rows:
    def __init__(self, server: Server, rng: random.Random, folder: Path) -> None:
        self.server, self.rng, self.folder = server, rng, folder
        self.number = 0

    def job(self, run: str = "python train.py", *, env: dict[str, str] | None = None, **keys: Any) -> Ill:
        return Ill(self, env or {}, run, keys)

    def trouble(self, do: str, *, always: bool = False, **keys: Any) -> Ill:
        """Does it to itself at some step of its first start, or of each."""
        at = self.rng.randrange(STEPS // 4, STEPS // 2)
        env = {"DO": do, "AT": str(at), **({"ALWAYS": "1"} if always else {}), **keys.pop("env", {})}
        return self.job(env=env, **keys)


def process_killed(rows: Rows) -> Ill:
    """The training process is SIGKILLed."""
    ill = rows.job()
    ill.at_work()
    rows.server.kill_training(ill.id)
    detail = ill.ends(
        "SUCCEEDED",
        "killed by SIGKILL",
        "reported by wait",
        "failures 1 of 3",
        "it cost",
        charged={"failures": 1},
    )
    assert starts(detail)[1]["restored_from"] == "memory"
    return ill


def oom_killed(rows: Rows) -> Ill:
    """The kernel kills it for lack of memory. Where this machine allows no memory group, it raises MemoryError."""
    with limited_group(MEMORY_BYTES) as group:
        if group is None:
            ill = rows.trouble("raise MemoryError('no memory group can be made here')")
            ill.ends("SUCCEEDED", "out of memory", charged={"failures": 1})
            return ill
        ill = rows.trouble("out_of_memory()", env={"GROUP": str(group)})
        ill.ends(
            "SUCCEEDED", "killed by the kernel for lack of memory", "smaller batch", charged={"failures": 1}
        )
    return ill


def own_exit(rows: Rows) -> Ill:
    """It ends itself with an error, once."""
    ill = rows.trouble("raise ValueError('a bad batch')")
    ill.ends("SUCCEEDED", "ValueError: a bad batch", "failures 1 of 3", charged={"failures": 1})
    return ill


def crash_loop(rows: Rows) -> Ill:
    """It ends itself with an error at the same step, twice."""
    ill = rows.trouble("raise ValueError('cursed')", always=True)
    found = ill.ends("FAILED", "ValueError: cursed", charged={"failures": 1})
    assert "ValueError: cursed" in found["error"]
    return ill


def exit_code_stop(rows: Rows) -> Ill:
    """Its exit code stands under `restart.on_exit_codes: stop`."""
    ill = rows.trouble("os._exit(7)", restart={"on_exit_codes": {"stop": [7]}, **NO_WAIT})
    found = ill.ends("FAILED", "stopped, as `restart.on_exit_codes` says", charged={})
    assert found["exit_code"] == 7
    return ill


def exit_code_restart(rows: Rows) -> Ill:
    """Its exit code asks for a restart."""
    ill = rows.trouble("os._exit(42)", restart={"on_exit_codes": {"restart": [42]}, **NO_WAIT})
    ill.ends("SUCCEEDED", "asks for a restart; restarting, charged to nothing")
    return ill


def import_error(rows: Rows) -> Ill:
    """It cannot even begin."""
    ill = rows.job("python -c 'import a_package_that_is_nowhere'")
    found = ill.ends("FAILED", "import error", charged={})
    assert found["restarts"] == 0
    return ill


def import_error_later(rows: Rows) -> Ill:
    """It was killed, and its second start cannot import what the first one could."""
    ill = rows.job(env={"UNIMPORTABLE": "000001.000002"})
    ill.at_work()
    rows.server.kill_training(ill.id)
    ill.ends("SUCCEEDED", "import error", "failures 2 of 3", charged={"failures": 2})
    return ill


def hang(rows: Rows) -> Ill:
    """No step for longer than the limit."""
    ill = rows.trouble("hang()", restart={"hang": "2s", "standby": False, **NO_WAIT})
    ill.ends("SUCCEEDED", "no progress", "hangs 1 of 3", charged={"hangs": 1})
    assert "What its processes were doing" in log_of(rows.server, ill.id)
    return ill


def agent_killed(rows: Rows) -> Ill:
    """The agent is SIGKILLed."""
    ill = rows.job()
    ill.at_work()
    rows.server.kill_agent(ill.id)
    detail = ill.ends("SUCCEEDED", "agent of rank 0 is dead", "failures 1 of 3")
    assert starts(detail)[-1]["restored_from"] == "memory"
    return ill


def preempted_on_request(rows: Rows) -> Ill:
    """`orch preempt`."""
    ill = rows.job()
    ill.at_work()
    rows.server.client().preempt(ill.id, grace_s=20.0)
    detail = ill.ends("SUCCEEDED", "asked to leave its place", "notice to rank 0 by orch", "preemptions 1")
    assert not starts(detail)[-1]["lost_steps"]
    return ill


def controller_killed(rows: Rows) -> Ill:
    """The controller is SIGKILLed."""
    ill = rows.job()
    ill.at_work()
    record = Home(rows.server.home).read_server()
    assert record is not None
    assert kill(record.pid)
    detail = ill.ends("SUCCEEDED", "found as it should be", charged={})
    assert len(starts(detail)) == 1
    return ill


def storage_away(rows: Rows) -> Ill:
    """Its storage is not there for a while."""
    storage, elsewhere = rows.folder / f"storage-{rows.number}", rows.folder / f"away-{rows.number}"
    ill = rows.job(checkpoint={"every": {"seconds": 0.3}, "storage": str(storage)})
    wait_for("a checkpoint", lambda: len(ill.told("CheckpointCommitted")) > 1)
    storage.rename(elsewhere)
    storage.write_text("no folder")  # else it would be made anew
    try:
        wait_for(
            "it is said", lambda: any("storage" in note["text"] for note in rows.server.job(ill.id)["notes"])
        )
        committed = len(ill.told("CheckpointCommitted"))
    finally:
        storage.unlink()
        elsewhere.rename(storage)
    detail = ill.ends("SUCCEEDED", charged={})
    assert len(ill.told("CheckpointCommitted")) > committed
    assert len(starts(detail)) == 1
    return ill


def checkpoint_damaged(rows: Rows) -> Ill:
    """Its memory is lost with its agent, and the newest checkpoint has a wrong byte."""
    ill = rows.job()
    ill.at_work()
    with ill.standing_still():
        for slot in ill.slots():
            slot.unlink()
        rows.server.kill_agent(ill.id)
        newest = ill.shards()[-1]
        _spoil(newest)
    detail = ill.ends("SUCCEEDED", "restored step", "from storage")
    assert starts(detail)[-1]["restored_step"] < int(Path(newest).parent.name)
    assert any("quarantine" in note["text"] for note in detail["notes"])
    return ill


def nothing_restorable(rows: Rows) -> Ill:
    """Every copy of its state is damaged."""
    ill = rows.job()
    ill.at_work()
    with ill.standing_still():
        for path in [*ill.slots(), *map(Path, ill.shards())]:
            with path.open("r+b") as file:  # in place: the agent has them mapped
                file.write(b"\xff" * path.stat().st_size)
        rows.server.kill_training(ill.id)
        found = wait_state(rows.server, ill.id, "BLOCKED")
    assert "nothing was started" in found["reason"]
    rows.server.client().cancel(ill.id, now=False)
    ill.ends("CANCELLED", "does not match its digest")
    return ill


def _spoil(path: str) -> None:
    content = bytearray(Path(path).read_bytes())
    content[-1] ^= 1
    Path(path).write_bytes(content)


def loss_is_nan_stop(rows: Rows) -> Ill:
    """Its loss is no number, and the job file says nothing about that."""
    ill = rows.trouble("pass")
    ill.ends("FAILED", "loss is nan", "stopped, as `restart.on_nan` says", charged={})
    return ill


def loss_is_nan_rollback(rows: Rows) -> Ill:
    """The same with `restart.on_nan: rollback`."""
    ill = rows.trouble("pass", restart={"on_nan": "rollback", **NO_WAIT})
    found = ill.ends("SUCCEEDED", "loss is nan", charged={"failures": 1})
    assert "INEXACT" in found["flags"]
    return ill


def budget_used_up(rows: Rows) -> Ill:
    """Killed more often than it may be, with no checkpoint in between."""
    often = {"max_failures": 1, **NO_WAIT}
    ill = rows.trouble(
        "os.kill(os.getpid(), 9)", always=True, restart=often, checkpoint={"every": {"steps": 10 * STEPS}}
    )
    ill.ends("FAILED", "the budget for failures is used up (1 of 1)", charged={"failures": 1})
    return ill


ROWS: dict[str, Row] = {
    row.__name__: row
    for row in (
        process_killed,
        oom_killed,
        own_exit,
        crash_loop,
        exit_code_stop,
        exit_code_restart,
        import_error,
        import_error_later,
        hang,
        agent_killed,
        preempted_on_request,
        controller_killed,
        storage_away,
        checkpoint_damaged,
        nothing_restorable,
        loss_is_nan_stop,
        loss_is_nan_rollback,
        budget_used_up,
    )
}
"""By the name of their timeline in tests/scenarios/."""


def rows(server: Server, rng: random.Random, count: int) -> dict[str, Any]:
    """Every row `count` times in a row."""
    done: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="orch-rows-") as name:
        at_work = Rows(server, rng, Path(name))
        for row in only(ROWS):
            act = ROWS[row]
            for number in range(count):
                try:
                    ill = act(at_work)
                except AssertionError as error:
                    raise AssertionError(f"{row}, time {number + 1}: {error}") from error
                keep_timeline(server, ill.id, row, act.__doc__ or "")
                done[row] += 1
    return {"times": dict(done)}
