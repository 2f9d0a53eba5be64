"""The HTTP API of a real server, as programs use it."""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from orch.api.client import Client
from orch.control.home import Home
from orch.model.errors import NeverPlaceable, NoSuchJob, WrongUse
from support.jobs import Gate, wait_state
from support.server import Server

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("own_jobs")]

LIGHT = {"cpus": 0.1}


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    found = Client.find(Home(server.home), {})
    yield found
    found.close()


def _spec(folder: Path, run: str = "true", **keys: object) -> dict[str, object]:
    return {"run": run, "ship": "never", "workdir": str(folder), "resources": LIGHT, **keys}


def test_submit_look_wait(client: Client, tmp_path: Path) -> None:
    job = client.submit(_spec(tmp_path, "echo from the API", name="by-api"))
    assert job["id"].startswith("by-api-")
    assert job["state"] in {"QUEUED", "STARTING", "RUNNING"}
    found = client.wait(job["id"], timeout_s=60)
    assert (found["state"], found["exit_code"]) == ("SUCCEEDED", 0)
    assert b"".join(part.data for part in client.follow_logs(job["id"])) == b"from the API\n"
    assert client.job(job["id"])["ended"] == found["ended"]
    assert job["id"] in [one["id"] for one in client.jobs(states=["SUCCEEDED"])]
    assert job["id"] not in [one["id"] for one in client.jobs(states=["FAILED"])]
    newest = client.jobs(limit=1)
    assert [one["id"] for one in newest] == [job["id"]]


def test_the_ledger_sums_up(client: Client, tmp_path: Path) -> None:
    from orch.control.views import parse_time_us

    job = client.submit(_spec(tmp_path))["id"]
    found = client.wait(job, timeout_s=60)
    span_us = parse_time_us(found["ended"]) - parse_time_us(found["submitted"])
    assert abs(sum(found["ledger"].values()) * 1e6 - span_us) < len(found["ledger"])


def test_a_waiting_call_is_answered_when_it_ends(client: Client, server: Server, tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    job = client.submit(_spec(tmp_path, gate.wait))["id"]
    wait_state(server, job, "RUNNING")
    found: list[str] = []
    waiter = threading.Thread(target=lambda: found.append(server.cli("wait", job, "-o", "json").stdout))
    events: list[str] = []

    def follow() -> None:
        with_own = Client.find(Home(server.home), {})
        events.extend(event["type"] for event in with_own.follow_events(job))
        with_own.close()

    follower = threading.Thread(target=follow)
    waiter.start()
    follower.start()
    gate.open()
    waiter.join(60)
    follower.join(60)
    assert json.loads(found[0])["jobs"][0]["state"] == "SUCCEEDED"
    assert events[0] == "Submitted"
    assert events[-1] == "Closed"


def test_refusals_have_their_own_errors(client: Client, tmp_path: Path) -> None:
    before = len(client.jobs(limit=1000))
    with pytest.raises(WrongUse, match="evry"):
        client.submit(_spec(tmp_path, checkpoint={"evry": {}}))
    with pytest.raises(WrongUse, match="NOT_GIVEN"):
        client.submit(_spec(tmp_path, secrets=["NOT_GIVEN"]))
    with pytest.raises(WrongUse, match="no folder"):
        client.submit(_spec(tmp_path / "gone"))
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(WrongUse, match=r"checkpoint\.storage: cannot write"):
        client.submit(_spec(tmp_path, checkpoint={"storage": str(tmp_path / "file" / "below")}))
    assert (tmp_path / "file").read_text() == "in the way"
    with pytest.raises(WrongUse, match="not been uploaded"):
        client.submit({"run": "true", "resources": LIGHT}, code={"digest": "0" * 64, "size_bytes": 1})
    with pytest.raises(NeverPlaceable, match="9999"):
        client.submit(_spec(tmp_path, resources={"cpus": 9999}))
    with pytest.raises(NoSuchJob):
        client.job("no-such-aaaaa")
    assert len(client.jobs(limit=1000)) == before


def test_the_same_request_twice_is_one_job(client: Client, server: Server, tmp_path: Path) -> None:
    """An answer that was lost is asked for again, by several at once."""
    import urllib.request

    home = Home(server.home)
    record = home.read_server()
    assert record is not None
    body = json.dumps({"spec": _spec(tmp_path), "request": secrets.token_hex(16)}).encode()
    headers = {"Authorization": f"Bearer {home.read_token()}", "Content-Type": "application/json"}
    found: list[str] = []

    def submit() -> None:
        request = urllib.request.Request(f"{record.url}/api/v1/jobs", body, headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            found.append(json.load(answer)["jobs"][0]["id"])

    threads = [threading.Thread(target=submit) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 4
    assert len(set(found)) == 1
    client.wait(found[0], timeout_s=60)


def test_check(client: Client, tmp_path: Path) -> None:
    fine = client.check(_spec(tmp_path))
    assert fine["placeable"] is True
    never = client.check(_spec(tmp_path, resources={"gpus": 64}))
    assert never["placeable"] is False
    assert "64" in never["reason"]


def test_server_status(client: Client, server: Server) -> None:
    found = client.server()
    assert found["nodes"]
    assert found["pid"] > 0
    assert "sqlite" in found["store"].lower()
    shown = server.cli("server", "status").stdout
    assert client.url in shown
    document = json.loads(server.cli("server", "status", "-o", "json").stdout)
    assert document["server"]["url"] == client.url
