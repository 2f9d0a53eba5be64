"""Jobs that are killed on purpose, and what must hold of them afterwards; for tests/chaos and the soak."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orch.control.home import Home
from support.accounts import assert_accounts
from support.jobs import held
from support.leftovers import of_jobs
from support.server import Server, wait_for

JOB_FOLDER = Path(__file__).parent.parent / "chaos" / "jobs"
STEPS = 600
"""Of the job in JOB_FOLDER."""
IN_MEMORY_OR_STORAGE = {"memory", "storage"}


class Victim:
    """One run of the job, and the hands that kill parts of it."""

    def __init__(
        self, server: Server, *options: str, folder: Path = JOB_FOLDER, job: str | None = None
    ) -> None:
        """`job`: one that is there, or will be, without being submitted."""
        self.server = server
        self.id = server.submit(folder, *options) if job is None else job

    # looking

    def detail(self) -> dict[str, Any]:
        return self.server.client().job(self.id)

    def events(self, kind: str) -> list[dict[str, Any]]:
        found = self.server.client().events(self.id).events
        return [event["data"] for event in found if event["type"] == kind]

    def wait_step(self, step: int) -> None:
        """Until the step is reached in any generation, or the job is over."""
        wait_for(f"{self.id} reaches step {step}", lambda: self._reached(step))

    def _reached(self, step: int) -> bool:
        detail = self.detail()
        return (detail["step"] or 0) >= step or detail["ended"] is not None

    def wait_event(
        self, kind: str, check: Callable[[dict[str, Any]], bool] = lambda data: True
    ) -> dict[str, Any]:
        found: list[dict[str, Any]] = wait_for(
            f"{self.id}: {kind}", lambda: [data for data in self.events(kind) if check(data)]
        )
        return found[-1]

    def wait_training(self) -> dict[str, Any]:
        """Until the newest training process has made a new step; its ProcessStarted."""
        started = self.wait_event("ProcessStarted")
        self.wait_event(
            "Recovered", lambda data: data["generation"] == self.events("ProcessStarted")[-1]["generation"]
        )
        return started

    @property
    def over(self) -> bool:
        return self.detail()["ended"] is not None

    # killing: the pid is None when there was nothing left to kill

    def kill_training(self) -> int | None:
        return kill(self.events("ProcessStarted")[-1]["pid"])

    def kill_agent(self) -> int | None:
        return kill(self.events("AgentUp")[-1]["pid"])

    def kill_controller(self) -> int | None:
        record = Home(self.server.home).read_server()
        return None if record is None else kill(record.pid)

    # afterwards

    def finish(self) -> dict[str, Any]:
        """Waits for success; the detail document. Its accounts are looked at."""
        self.server.cli("wait", self.id)
        return assert_accounts(self.server, self.id)

    def final_bytes(self) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            self.server.cli("fetch", self.id, "--to", folder)
            return (Path(folder) / "final.pt").read_bytes()

    def longest_pause_s(self) -> float:
        log = self.server.cli("logs", self.id).stdout
        return float(re.findall(r"longest pause between two steps: ([0-9.]+) s", log)[-1])

    def assert_nothing_left(self) -> None:
        """On this machine; what Ray still holds is asked once for many jobs (`placement_groups`): it takes seconds."""
        wait_for(f"nothing of {self.id} is left", lambda: not of_jobs(self.server.home, [self.id]), 20.0)


class Held(Victim):
    """Does no step from `hold` (with `at`: from that step on) to `let_go`, whoever is killed in between."""

    def __init__(self, server: Server, *options: str, at: int | None = None) -> None:
        self._file = server.home / f"hold-{secrets.token_hex(4)}"
        self._held = contextlib.ExitStack()
        if at is not None:
            self.hold()
        super().__init__(server, f"--set=env.HOLD={self._file}", f"--set=env.HOLD_FROM={at or 0}", *options)

    def hold(self) -> None:
        self._held.enter_context(held(self._file))

    def let_go(self) -> None:
        self._held.close()


def kill(pid: int) -> int | None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
        return pid
    return None


def starts(detail: dict[str, Any]) -> list[dict[str, Any]]:
    """Every start of a training process, oldest first."""
    return [restart for attempt in detail["attempts"] for restart in attempt["restarts"]]


def assert_recovered(detail: dict[str, Any], kills: int) -> None:
    """The job went on from a state of its own after every kill: said where from, and what it cost."""
    assert detail["state"] == "SUCCEEDED"
    recoveries = starts(detail)[1:]
    assert len(recoveries) >= kills, f"{kills} kills, but {len(recoveries)} recoveries: {recoveries}"
    for recovery in recoveries:
        assert (recovery["restored_step"] or 0) > 0, f"started over: {recovery}"
        assert recovery["restored_from"] in IN_MEMORY_OR_STORAGE, recovery
        assert recovery["cause"], recovery
    finished = [recovery for recovery in recoveries if recovery["recovery_s"] is not None]
    assert finished, recoveries
    assert all(recovery["lost_steps"] is not None for recovery in finished), finished


def assert_chain_kept(victim: Victim, steps: int = STEPS, *, told_of_all: bool = True) -> None:
    """No checkpoint on the chain was lost: the newest five are there, whole, and the newest is the last step's.
    `told_of_all`: no agent was lost or cut off between its writing or deleting one and its telling so.
    """
    from orch_workers.checkpoint import Catalog, open_storage

    catalog = Catalog(open_storage(str(victim.server.home / "storage")), victim.id)
    points = catalog.restore_points()
    told = [point for point in victim.detail()["checkpoints"] if point["state"] == "committed"]
    assert points, "no checkpoint is left"
    assert points[0].step == steps
    kept = {point.step for point in points}
    if told_of_all:
        assert kept == {point["step"] for point in told}, f"kept {sorted(kept)}, told {told}"
    for point in points:
        catalog.manifest(point)


def placement_groups(server: Server, *jobs: str) -> list[str]:
    """Names of Ray's placement groups of these jobs that still exist, asked of Ray itself."""
    listing = server.python(
        "import json, sys, ray; ray.init(address=sys.argv[1], namespace='orch', _node_ip_address='127.0.0.1',"
        " log_to_driver=False, configure_logging=False);"
        "from ray.util.placement_group import placement_group_table as table;"
        "print(json.dumps([g['name'] for g in table().values() if g['state'] != 'REMOVED']))"
    )
    return [name for name in listing if any(f"/{job}/" in name for job in jobs)]
