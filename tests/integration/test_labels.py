"""Machines with labels: a job goes where the labels are that it asks for, spread if it wants that, or is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.jobs import write_job
from support.nodes import Node
from support.server import Server

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("own_jobs")]

SMALL = {"cpus": 0.2}


def nodes_of(server: Server, job: str) -> list[str]:
    server.wait(job)
    return [event["data"]["node_id"] for event in server.events(job) if event["type"] == "AgentUp"]


def test_a_job_goes_to_the_machines_it_asks_for(server: Server, tmp_path: Path) -> None:
    with (
        Node(server, cpus=1, apart=True, labels="market-type=spot,zone=a") as first,
        Node(server, cpus=1, apart=True, labels="market-type=spot,zone=b") as second,
    ):

        def submit(name: str, ranks: int = 1, **placement: object) -> str:
            resources = {**SMALL, "workers": ranks}
            return server.submit(write_job(tmp_path / name, "true", resources=resources, placement=placement))

        one = submit("one", labels={"market-type": "spot", "zone": "!a"})
        spread = submit("spread", 2, labels={"market-type": "in(spot,cheap)"}, workers="spread")
        elsewhere = submit("elsewhere", labels={"market-type": "!spot"})
        assert nodes_of(server, one) == [second.id]
        assert set(nodes_of(server, spread)) == {first.id, second.id}
        assert not {first.id, second.id} & set(nodes_of(server, elsewhere))
        reserved = write_job(tmp_path / "none", "true", placement={"labels": {"market-type": "reserved"}})
        refused = server.cli("submit", str(reserved / "job.yaml"), check=2)
        assert "no node is labelled market-type: reserved" in refused.stderr
