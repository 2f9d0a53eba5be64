"""Scripts that overwrite their only file again and again, killed at any moment of it."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from support.files import kill, log_of, newest, run_script
from support.server import wait_for

if TYPE_CHECKING:
    import random

    from support.workers import Machine

LIMIT_S = 120.0
AGAIN_AND_AGAIN = """
    open(f"up-{os.getpid()}", "w").close()
    while not os.path.exists("enough"):
        at += 1
        sum(range(1_000_000))
        write(at)
"""
"""Behind a script's own beginning, which sets `at` and `write`."""


def kill_again_and_again(
    machine: Machine, rng: random.Random, beginning: str, kills: int, *files: str
) -> list[int]:
    """The steps with which its starts went on; each found a whole file, and none died of itself."""
    script = textwrap.dedent(beginning) + textwrap.dedent(AGAIN_AND_AGAIN)
    budgets = {"max_failures": None, "backoff_initial_s": 0.001, "backoff_max_s": 0.001}
    one = run_script(machine, script, policy={"budgets": budgets}, standby=False, files=files)

    def started(number: int) -> int:
        wait_for("a start", lambda: len(one.told("ProcessStarted")) >= number, LIMIT_S)
        pid: int = one.told("ProcessStarted")[number - 1]["pid"]
        wait_for("it writes", (machine.workdir / f"up-{pid}").exists, LIMIT_S)
        return pid

    for number in range(1, kills + 1):
        started(number)
        before, wanted = newest(one), rng.randrange(1, 3)
        wait_for("some versions more", lambda a=before, b=wanted: newest(one) >= a + b, LIMIT_S)
        kill(one)
    started(kills + 1)
    (machine.workdir / "enough").write_text("")
    end = wait_for("its end", lambda: one.told("WorkerEnded"), LIMIT_S)[0]
    assert end["outcome"] == "succeeded", log_of(one)
    assert [event["signal"] for event in one.told("ProcessExited")] == [9] * kills
    return [int(line.rsplit(" ", 1)[1]) for line in log_of(one).splitlines() if "goes on" in line]
