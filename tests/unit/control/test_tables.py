"""The rows that status shows, as they follow from events."""

from __future__ import annotations

from orch.control.cluster import death_evidence
from orch.control.lifecycle import advance, begin
from orch.control.rows import NewJob
from orch.control.store import Store
from orch.control.tables import tabulate
from orch.control.views import job_detail
from orch.model import events as ev

S = 1_000_000


def live(store: Store, *events: ev.Event) -> None:
    submitted = ev.Submitted(job="a-1", budgets={"max_failures": 3})
    job, _ = begin(submitted, 0)
    with store.transaction() as transaction:
        transaction.insert_job(NewJob(name="a", spec={"run": "x"}, sealed_secrets={}), job)
        for second, event in enumerate(events):
            after, _ = advance(job, event, second * S)
            tabulate(transaction, job, after, event, second * S, {})
            transaction.save(after)
            job = after


PLACED = (ev.TurnCame(), ev.GangGranted(attempt=1))


def test_an_agent_that_died_before_it_started_anything(store: Store) -> None:
    """No start has been: none is listed for it, and none counted."""
    live(store, *PLACED, ev.AgentLost(attempt=1, rank=0, evidence="gone"), ev.GangGranted(attempt=2))
    assert [(row.attempt, row.restart) for row in store.restarts("a-1")] == [(2, 1)]
    assert store.start_counts(["a-1"]) == {}


def test_a_start_that_came_is_counted(store: Store) -> None:
    started = ev.ProcessStarted(generation=ev.Generation(1, 1), rank=0, pid=7)
    up = ev.AgentUp(attempt=1, rank=0, node="n", pid=6)
    live(store, *PLACED, up, started, ev.AgentLost(attempt=1, rank=0, evidence="gone"))
    first, second = store.restarts("a-1")
    assert (first.started_us, first.ended_us) == (3 * S, 4 * S)
    assert (second.attempt, second.started_us, second.cause) == (2, None, "agent lost")
    assert store.start_counts(["a-1"]) == {"a-1": 1}


UP = ev.AgentUp(attempt=1, rank=0, node="n", pid=6)
STARTED = ev.ProcessStarted(generation=ev.Generation(1, 1), rank=0, pid=7)
LEFT = ev.WorkerEnded(attempt=1, rank=0, outcome="left", reason="spot", exit_code=75, step=5)


def test_a_lost_agent_is_charged_in_the_row_of_the_start_that_it_made_necessary(store: Store) -> None:
    live(store, *PLACED, UP, STARTED, ev.AgentLost(attempt=1, rank=0, evidence="gone"))
    assert [row.charged_to for row in store.restarts("a-1")] == [None, "failures"]


def test_what_waits_for_its_next_attempt_does_not_show_it_yet(store: Store) -> None:
    live(store, *PLACED, UP, STARTED, LEFT)
    (only,) = job_detail(store, "a-1", now_us=60 * S)["attempts"]
    assert (only["attempt"], len(only["restarts"])) == (1, 1), "the next one is still to come"


def test_a_notice_that_was_followed_by_another_attempt(store: Store) -> None:
    live(store, *PLACED, UP, STARTED, LEFT, ev.GangRemoved(attempt=1), ev.TurnCame())
    first, second = (one["restarts"][0] for one in job_detail(store, "a-1", now_us=60 * S)["attempts"])
    assert first["evidence"] == second["seen"] == "its worker left with exit code 75: spot"
    assert (first["charged_to"], second["charged_to"]) == (None, "preemptions")
    assert "preempted at step 5: spot" in second["cause"]


def test_a_restart_in_place_is_charged_in_its_own_row_alone(store: Store) -> None:
    exited = ev.ProcessExited(generation=ev.Generation(1, 1), rank=0, signal=9, evidence="wait")
    decided = ev.RestartDecided(
        generation=ev.Generation(1, 2), reason="killed", charge_to="failures",
        failure={"kind": "process_exit", "signal": 9},
    )  # fmt: skip
    live(store, *PLACED, UP, STARTED, exited, decided)
    rows = {(row.attempt, row.restart): row.charged_to for row in store.restarts("a-1")}
    assert rows == {(1, 1): None, (1, 2): "failures"}


def test_evidence_of_an_agent_that_could_not_start() -> None:
    """Of Ray's coloured traceback with its addresses, what happened."""
    told = (
        "The actor died because of an error raised in its creation task, \x1b[36mray::agent/a-1/000001/0:Agent"
        ".__init__()\x1b[39m (pid=6, ip=127.0.0.1, actor_id=2b8e, repr=<orch_workers.agent.Agent object at 0x7f0a>)\n"
        '  File "agent.py", line 31, in __init__\n    paths.make()\n    ^^^^^^^^^^^^\n'
        "PermissionError: /dev/shm/orch-0 belongs to another user\n"
    )
    error = RuntimeError(told)
    assert (
        death_evidence(error)
        == "it could not start: PermissionError: /dev/shm/orch-0 belongs to another user"
    )


def test_evidence_of_a_death() -> None:
    told = (
        "The actor died unexpectedly before finishing this task.\n\tclass_name: Agent\n\tpid: 4711\n\tname: agent\n"
        "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail:"
        " Worker unexpectedly exits with a connection error code 2. End of file. Some common causes include: …"
    )
    found = death_evidence(RuntimeError(told))
    assert found.startswith("Ray saw its process die (pid 4711, SYSTEM_ERROR, Worker unexpectedly exits")
    assert "common causes" not in found
