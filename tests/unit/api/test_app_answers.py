"""The API: what goes out, at once or when there is news."""

import json
import re
import struct
import threading
from pathlib import Path
from typing import Any

import pytest
import urllib3

from orch.api.app import create_app
from orch.api.serve import ApiServer
from orch.control.views import format_time
from orch.model.states import State
from support.fake_control import FakeControlService
from support.live_api import TOKEN, Api, submit

# Lists


def test_jobs_in_pages_and_by_state(api: Api, control: FakeControlService) -> None:
    jobs = [submit(api) for _ in range(5)][::-1]
    control.end(jobs[0], State.SUCCEEDED)
    first = api("GET", "/jobs?limit=2").json()
    assert [job["id"] for job in first["jobs"]] == jobs[:2]
    second = api("GET", f"/jobs?limit=3&before={first['next']}").json()
    assert [job["id"] for job in second["jobs"]] == jobs[2:]
    assert api("GET", f"/jobs?before={second['next']}").json() == {"version": 1, "jobs": [], "next": None}
    assert [job["id"] for job in api("GET", "/jobs?state=SUCCEEDED").json()["jobs"]] == jobs[:1]
    assert len(api("GET", "/jobs?state=QUEUED&state=RUNNING").json()["jobs"]) == 4
    assert api.error("GET", "/jobs?state=SLEEPING")[0] == 400
    assert api.error("GET", "/jobs?before=yesterday")[0] == 400


def test_server_status_and_stop(api: Api, control: FakeControlService) -> None:
    submit(api)
    assert api("GET", "/server").json()["server"]["jobs"] == {"QUEUED": 1}
    assert api("POST", "/server/stop").status == 200
    assert control.stopped


def test_metrics_for_prometheus(server: ApiServer, api: Api) -> None:
    submit(api)
    root = Api(server.url)
    answer = root("GET", "/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain; version=")
    assert b'orch_jobs{state="QUEUED"} 1.0' in answer.data
    assert root.error("GET", "/metrics", Authorization="Bearer wrong")[0] == 401


# News


def test_events_are_waited_for(api: Api, control: FakeControlService) -> None:
    job = submit(api)
    page = api("GET", f"/jobs/{job}/events").json()
    assert [event["type"] for event in page["events"]] == ["Submitted"]
    assert not page["ended"]
    again = api("GET", f"/jobs/{job}/events?after={page['next_after']}").json()
    assert (again["events"], again["next_after"]) == ([], page["next_after"])

    answers: list[Any] = []
    path = f"/jobs/{job}/events?after={page['next_after']}&wait_s=30"
    waiting = threading.Thread(target=lambda: answers.append(api("GET", path).json()))
    waiting.start()
    control.tell(job, {"type": "AgentUp", "rank": 0}, decision="runs")
    waiting.join(20)
    [event] = answers[0]["events"]
    assert (event["type"], event["decision"], event["data"]) == ("AgentUp", "runs", {"rank": 0})

    control.end(job, State.SUCCEEDED)
    last = api("GET", f"/jobs/{job}/events?after={event['seq']}&wait_s=30").json()
    assert [event["type"] for event in last["events"]] == ["Closed"]
    assert last["ended"]


def test_the_last_page_is_told_from_a_full_one(api: Api, control: FakeControlService) -> None:
    job = submit(api)
    control.end(job, State.SUCCEEDED)
    first = api("GET", f"/jobs/{job}/events?limit=2").json()
    assert (len(first["events"]), first["ended"]) == (2, False)
    assert api("GET", f"/jobs/{job}/events?limit=2&after={first['next_after']}&wait_s=30").json()["ended"]


def test_waiting_for_the_end(api: Api, control: FakeControlService) -> None:
    job = submit(api)
    assert not api("GET", f"/jobs/{job}/wait").json()["ended"]
    answers: list[Any] = []
    waiting = threading.Thread(
        target=lambda: answers.append(api("GET", f"/jobs/{job}/wait?wait_s=30").json())
    )
    waiting.start()
    api("POST", f"/jobs/{job}/cancel", {"now": True})
    waiting.join(20)
    assert answers[0]["ended"]
    assert (answers[0]["jobs"][0]["state"], answers[0]["jobs"][0]["reason"]) == ("CANCELLED", "cancelled now")


def test_a_server_that_stops_keeps_nobody_waiting(api: Api, server: ApiServer) -> None:
    job = submit(api)
    answers: list[Any] = []
    waiting = threading.Thread(
        target=lambda: answers.append(api("GET", f"/jobs/{job}/wait?wait_s=50").json())
    )
    waiting.start()
    server.stop()
    waiting.join(20)
    # Whether the call had begun when the server stopped is a matter of luck; it has ended either way.
    assert not waiting.is_alive()


# Logs and outputs


def test_logs(api: Api, control: FakeControlService) -> None:
    job = submit(api)
    answer = api("GET", f"/jobs/{job}/logs")
    assert (answer.data, answer.headers["X-Attempt"], answer.headers["X-Ended"]) == (b"", "0", "0")
    control.write_log(job, b"one\ntwo\n\xff\n")
    answer = api("GET", f"/jobs/{job}/logs?offset=4")
    assert answer.data == b"two\n\xff\n"
    head = answer.headers
    assert (head["X-Attempt"], head["X-Next-Offset"], head["X-Ended"]) == ("1", "10", "0")
    assert "X-Next-Attempt" not in head
    control.end(job, State.SUCCEEDED)
    assert api("GET", f"/jobs/{job}/logs?offset=10").headers["X-Ended"] == "1"
    assert api("GET", f"/jobs/{job}/logs?tail=1").data == b"\xff\n"
    assert api.error("GET", f"/jobs/{job}/logs?attempt=9")[:2] == (400, "wrong_use")


def test_logs_are_waited_for(api: Api, control: FakeControlService) -> None:
    job = submit(api)
    answers: list[Any] = []
    waiting = threading.Thread(target=lambda: answers.append(api("GET", f"/jobs/{job}/logs?wait_s=30").data))
    waiting.start()
    control.write_log(job, b"hello")
    waiting.join(20)
    assert answers == [b"hello"]


def test_logs_with_times_come_in_whole_lines(api: Api, control: FakeControlService) -> None:
    job = submit(api)
    control.write_log(job, b"one\r\n\ntwo\nhal")
    seen_us = 1_700_000_000_000_000
    times = control.home.log_path(job, 1, 0).with_suffix(".log.times")
    times.write_bytes(struct.pack("<QQ", 6, seen_us))
    answer = api("GET", f"/jobs/{job}/logs?timestamps=1&wait_s=0.01")
    assert [json.loads(line)["text"] for line in answer.data.splitlines()] == ["one", "", "two"]
    assert [json.loads(line)["time"] for line in answer.data.splitlines()] == [
        None,
        None,
        format_time(seen_us),
    ]
    assert answer.headers["X-Next-Offset"] == "10"
    rest = api("GET", f"/jobs/{job}/logs?timestamps=1&offset=10")
    assert [json.loads(line)["text"] for line in rest.data.splitlines()] == ["hal"]


def test_outputs(api: Api, control: FakeControlService) -> None:
    job = submit(api)
    assert api.error("GET", f"/jobs/{job}/outputs")[:2] == (400, "wrong_use")
    control.outputs_of[job] = {"a.txt": b"x" * 5000}
    answer = api("GET", f"/jobs/{job}/outputs")
    assert answer.data.startswith(b"PK")
    assert f"{job}.zip" in answer.headers["Content-Disposition"]
    assert control.closed_downloads == 1


def test_outputs_that_break_off_are_no_whole_answer(api: Api, control: FakeControlService) -> None:
    job = submit(api)
    control.outputs_of[job] = {"a.txt": b"x" * 5000}
    control.broken_after = 3000
    with pytest.raises(urllib3.exceptions.ProtocolError):
        api("GET", f"/jobs/{job}/outputs")
    assert control.closed_downloads == 1


# The document


def test_every_route_is_documented_and_no_other(control: FakeControlService) -> None:
    routes = {
        f"{method.upper()} {path.removeprefix('/api/v1')}"
        for path, methods in create_app(control, TOKEN)._app.openapi()["paths"].items()
        for method in methods
    }
    document = (Path(__file__).parents[3] / "docs" / "api.md").read_text()
    documented = set(re.findall(r"^\| `([A-Z]+ /[^`]*)` \|", document, re.MULTILINE))
    assert routes == documented


def test_every_field_of_a_job_is_documented(api: Api, control: FakeControlService) -> None:
    job = submit(api)
    control.tell(job, {"type": "AgentUp"})
    with control.store.transaction() as transaction:
        transaction.put_attempt(job, 1)
        transaction.put_restart(job, 1, 1)
        transaction.put_checkpoint(job, "000001.000001", 1, committed_us=1)
        transaction.add_note(job, "n", t_us=1)
    detail = api("GET", f"/jobs/{job}").json()["jobs"][0]
    event = api("GET", f"/jobs/{job}/events").json()["events"][0]
    fields = {
        *detail,
        *detail["ledger"],
        *detail["attempts"][0],
        *detail["attempts"][0]["restarts"][0],
        *event,
    }
    fields |= {*detail["checkpoints"][0], *detail["last_checkpoint"], *detail["notes"][0]}
    document = (Path(__file__).parents[3] / "docs" / "api.md").read_text()
    missing = sorted(name for name in fields if f"`{name}`" not in document and f'"{name}"' not in document)
    assert missing == []
