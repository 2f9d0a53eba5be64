"""`orch preempt`, through the real API to a controller that places nothing."""

from __future__ import annotations

import json

import pytest

from orch.cli import preempt as verb
from orch.cli.story import told
from orch.model.errors import NoSuchJob, TimedOut, WrongUse
from orch.model.states import State


@pytest.fixture
def job(api):
    name = api.job()
    api.edit(name, state=State.RUNNING, attempt=1)
    return name


def leaves(api, monkeypatch, **after):
    """What the controller does about it, at once."""
    asked = []

    def preempt(name, *, grace_s, attempt):
        asked.append((name, grace_s))
        api.edit(name, **after)
        return api.service.job(name)

    monkeypatch.setattr(api.service, "preempt", preempt)
    return asked


def test_it_waits_until_the_place_is_given_back_and_says_why(api, cli, job, monkeypatch):
    asked = leaves(api, monkeypatch, state=State.QUEUED, reason="preempted at step 52")
    assert cli.ok("preempt", job, "--grace", "90s") == f"{job} is QUEUED: preempted at step 52\n"
    assert asked == [(job, 90.0)]


def test_a_job_that_has_its_next_place_already_has_left_the_former(api, cli, job, monkeypatch):
    asked = leaves(api, monkeypatch, state=State.STARTING, attempt=2, reason="")
    assert cli.ok("preempt", job) == f"{job} is STARTING\n"
    assert asked == [(job, 30.0)]


def test_without_waiting_the_answer_is_what_is_now(api, cli, job):
    found = json.loads(cli.ok("preempt", job, "--no-wait", "-o", "json"))
    assert (found["version"], found["jobs"][0]["state"]) == (1, "RUNNING")
    assert api.service.preempted == [(job, 30.0)]


def test_one_that_does_not_leave_is_a_time_out(api, cli, job, monkeypatch):
    monkeypatch.setattr(verb, "LEAVE_MARGIN_S", 0.0)
    assert "orch events" in cli.refused(TimedOut, "preempt", job, "--grace", "0")


@pytest.mark.parametrize("grace", ["soon", "-1s", "nan", "2h"])
def test_a_grace_period_that_cannot_be(cli, job, grace):
    cli.refused(WrongUse, "preempt", job, "--grace", grace)


def test_a_job_without_a_place_or_that_is_not_there(api, cli):
    assert "no place" in cli.refused(WrongUse, "preempt", api.job())
    cli.refused(NoSuchJob, "preempt", "nosuch-00000")


def test_the_story_tells_a_notice_in_one_sentence():
    notice = {"rank": 0, "source": "aws", "reason": "AWS takes this spot instance back", "leaves": True}
    event = {"type": "PreemptionNoticed", "data": notice, "decision": "saves and leaves"}
    assert told(event) == "notice to rank 0 by aws: AWS takes this spot instance back → saves and leaves"
    warned = {**event, "data": {**notice, "leaves": False}, "decision": "it saves its state and stays"}
    assert told(warned).startswith("notice to rank 0 by aws, a warning: ")
    request = {
        "type": "PreemptRequested",
        "data": {"grace_s": 30.0, "reason": "asked for"},
        "decision": "leaves",
    }
    assert told(request) == "asked to leave its place within 30s: asked for → leaves"
