"""The loss of one rank is no number: all of them go back to before it, and leave the same data out."""

from __future__ import annotations

import pytest

from orch_policies.restart import Budgets
from support.gangs import Gang
from support.server import wait_for
from support.workers import LIMIT_S

G1, G2 = "000001.000001", "000001.000002"

# Both save at 15; then rank 1 says that its loss at 15 was bad.
GOES_BAD = """
def bad(job):
    if os.environ["ORCH_GENERATION"] == "000001.000002" and HELD and job.step == 12:
        signal.pause()
    if os.environ["ORCH_GENERATION"] != "000001.000001":
        return
    if job.step < 15:
        job.tell("metrics", step=job.step, epoch=0, values={"loss": 0.5})
    if job.step == 16:
        wait(f"bad-{RANK}")
        if RANK == 1:
            job.tell("metrics", step=15, epoch=0, values={"loss": "nan"})
        signal.pause()

train(30, at=bad)
"""


def start(machine, on_nan, *, held=False):
    budgets = Budgets(backoff_initial_s=0.0, on_nan=on_nan)
    gang = Gang(machine, policy={"budgets": budgets.to_dict()}).start(f"HELD = {held}\n{GOES_BAD}")
    wait_for("step 15 is committed", lambda: (G1, 15) in machine.committed(), LIMIT_S)
    for rank in (0, 1):
        machine.go(f"bad-{rank}")
    return gang


def test_all_ranks_go_back_to_before_the_first_bad_value(machine):
    gang = start(machine, "rollback")
    assert gang.wait_over() == ["succeeded", "succeeded"]
    leader = gang.ranks[0]
    (decided,) = leader.told("RestartDecided")
    assert decided["reason"].startswith("rank 1: bad numbers at step 15: loss is nan")
    assert "rolling back (1 of 3)" in decided["reason"]
    (restored,) = leader.told("Restored")
    assert (restored["generation"], restored["step"]) == (G2, 10)
    assert machine.files("quarantine") == [f"{G1}/000000000015.json"]
    leader.wait_note("loss is nan at step 15; the checkpoints of steps 15 are marked poisoned")
    for member in gang.ranks.values():
        launcher = member.worker._launcher
        assert launcher is not None
        assert launcher.leave_out == ((1, 2), 15), "every rank leaves out the same"
    assert machine.committed()[-1] == (G2, 30)


def test_where_the_job_stops_what_is_bad_is_marked_too(machine):
    gang = start(machine, "stop")
    assert gang.ranks[0].end()["outcome"] == "failed"
    wait_for("the mark", lambda: machine.files("quarantine") == [f"{G1}/000000000015.json"], LIMIT_S)


@pytest.mark.parametrize("rank", [0, 1])
def test_memory_of_the_bad_stretch_is_gone_also_for_the_next_agent(machine, rank):
    gang = start(machine, "rollback", held=True)
    wait_for("they have begun again", lambda: all(m.step == 12 for m in gang.ranks.values()), LIMIT_S)
    gang.lose_agent(rank, attempt=2)
    assert gang.wait_over() == ["succeeded", "succeeded"]
    assert all(event["step"] != 15 or event["generation"] != G1 for event in gang.ranks[0].told("Restored"))
