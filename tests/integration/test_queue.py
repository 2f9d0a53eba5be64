"""Jobs that wait for room: who is next, and what is told meanwhile."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.jobs import Gate, wait_state, write_job
from support.leftovers import of_jobs
from support.server import Server, wait_for

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("own_jobs")]


@pytest.fixture
def most(server: Server) -> dict[str, float]:
    """Resources of which no two jobs fit at once, and which leave a little for others' jobs."""
    return {"cpus": max(node["cpus"] for node in server.client().server()["nodes"]) - 0.5}


def test_priority_then_age(server: Server, most: dict[str, float], tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    first = server.submit(write_job(tmp_path / "first", gate.wait, resources=most))
    wait_state(server, first, "RUNNING")
    waiting = [
        server.submit(write_job(tmp_path / name, "true", resources=most, priority=priority))
        for name, priority in (("old", 0), ("young", 0), ("high", 7))
    ]
    old, young, high = waiting
    for job in waiting:
        found = server.job(job)
        assert found["state"] == "QUEUED"
        assert found["started"] is None
    told = "waits for its turn; behind 1 of higher priority, 1 of the same that came earlier"
    wait_for("it is told where it stands", lambda: server.job(young)["reason"] == told, 10.0)
    listed = {job["id"]: job["reason"] for job in server.client().jobs()}
    assert "behind 1 of higher priority" in listed[old]
    assert "next: of the highest priority (7)" in listed[high]
    gate.open()
    for job in waiting:
        server.wait(job)
    started = {job: server.job(job)["started"] for job in waiting}
    assert sorted(waiting, key=lambda job: started[job]) == [high, old, young]
    ends = {job: server.job(job)["ended"] for job in [first, *waiting]}
    assert ends[first] <= started[high], "granted all or none, and only when there is room"
    assert server.job(young)["ledger"]["queued_s"] > 0


def test_cancelled_while_it_waits(server: Server, most: dict[str, float], tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    first = server.submit(write_job(tmp_path / "first", gate.wait, resources=most))
    wait_state(server, first, "RUNNING")
    waits = server.submit(write_job(tmp_path / "waits", "true", resources=most))
    behind = server.submit(write_job(tmp_path / "behind", "true", resources=most))
    server.cli("cancel", waits)
    assert server.job(waits)["state"] == "CANCELLED"
    assert server.job(waits)["started"] is None
    assert not of_jobs(server.home, [waits])
    gate.open()
    server.wait(behind)
    server.wait(first)
