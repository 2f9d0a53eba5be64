"""The lowest priority for a process that only waits, and the usual one when it is needed."""

from __future__ import annotations

import contextlib
import os
import resource
from pathlib import Path

_CAP_SYS_NICE = 23
_ROUNDS = 2
"""A thread can start another one while the list is walked; that one inherits what its parent has by then."""


def can_be_restored() -> bool:
    """Whether this user may raise a process's priority again: capabilities(7), getrlimit(2) on RLIMIT_NICE."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:") and int(line.split()[1], 16) >> _CAP_SYS_NICE & 1:
            return True
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    return resource.getrlimit(resource.RLIMIT_NICE)[0] >= 20 - nice


def restore(pid: int) -> None:
    """Every thread of `pid` gets the priority that we have, and so what we start has. Nobody there is no error."""
    nice, policy = os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0)
    with contextlib.suppress(OSError):  # no such thing in this kernel, or nobody there
        Path(f"/proc/{pid}/autogroup").write_text("0")  # what a new session has
    for _ in range(_ROUNDS):
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{pid}/task").iterdir():
                with contextlib.suppress(OSError):
                    os.sched_setscheduler(int(task.name), policy, os.sched_param(0))
                    os.setpriority(os.PRIO_PROCESS, int(task.name), nice)
