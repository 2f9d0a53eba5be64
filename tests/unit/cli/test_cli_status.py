from __future__ import annotations

import json

import pytest

from orch.cli import following, status
from orch.model.errors import NoServer, NoSuchJob
from orch.model.states import State


def test_no_jobs_yet_says_how_to_start_one(api, cli):
    result = cli("status")
    assert result.exit_code == 0
    assert result.stdout == ""
    assert "orch submit" in result.stderr
    assert cli.json("status") == {"version": 1, "jobs": []}


def test_the_list_shows_every_job_newest_first(api, cli):
    first, second = api.job("one"), api.job("two")
    api.service.end(first, State.FAILED, "crash loop: step 3, twice")
    lines = cli.ok("status").splitlines()
    assert lines[0].split()[:3] == ["JOB", "STATE", "STEP"]
    assert lines[1].startswith(second)
    assert "QUEUED" in lines[1]
    assert lines[2].startswith(first)
    assert "FAILED" in lines[2]
    assert "crash loop: step 3, twice" in lines[2]
    assert [job["id"] for job in cli.json("status")["jobs"]] == [second, first]


def test_a_long_list_is_cut_unless_all_is_asked_for(api, cli, monkeypatch):
    monkeypatch.setattr(status, "JOBS_SHOWN_MAX", 2)
    jobs = [api.job(f"job{number}") for number in range(4)]
    assert [job["id"] for job in cli.json("status")["jobs"]] == jobs[:1:-1]
    assert len(cli.json("status", "--all")["jobs"]) == 4


def test_one_job_as_json_is_the_detail_document(api, cli):
    job = api.job()
    found = cli.json("status", job)
    assert found["version"] == 1
    assert found["jobs"] == [found["jobs"][0]]
    assert {"id", "attempts", "checkpoints", "ledger", "spec"} <= found["jobs"][0].keys()


def test_an_unknown_job_is_exit_code_4(api, cli):
    assert "nosuch-00000" in cli.refused(NoSuchJob, "status", "nosuch-00000")
    cli.refused(NoSuchJob, "events", "../../etc/passwd")
    cli.refused(NoSuchJob, "logs", "")


def test_no_server_is_exit_code_5(home, cli):
    assert "orch server start" in cli.refused(NoServer, "status")


def test_a_server_that_is_gone_is_exit_code_5(api, cli):
    api.close()
    assert api.url in cli.refused(NoServer, "status")


def test_a_damaged_server_record_is_no_server(home, cli):
    home.ensure().ensure_token()
    home.server_json.write_text("{")
    home.server_json.chmod(0o600)
    cli.refused(NoServer, "status")


def test_control_characters_of_a_job_do_not_reach_the_terminal(api, cli):
    job = api.job()
    api.service.end(job, State.FAILED, "\x1b[2Jgone \x07")
    for arguments in (("status",), ("status", job), ("wait", job)):
        result = cli(*arguments)
        assert "\x1b" not in result.output
        assert "\x07" not in result.output
        assert "[2Jgone" in result.output


def test_brackets_are_text_and_no_markup(api, cli):
    job = api.job()
    api.service.end(job, State.FAILED, "[red]not red[/red] :smile:")
    assert "[red]not red[/red] :smile:" in cli.ok("status")


def test_watch_of_one_job_ends_with_it(api, cli, monkeypatch):
    monkeypatch.setattr(status, "WATCH_EVERY_S", 0)
    job = api.job()
    looks = iter(range(10))

    def end_at_the_second_look(*_):
        if next(looks) == 1:
            api.service.end(job, State.SUCCEEDED)

    monkeypatch.setattr(status.time, "sleep", end_at_the_second_look)
    lines = cli.ok("status", job, "--watch").splitlines()
    assert "QUEUED" in lines[0]
    assert "SUCCEEDED" in lines[-1]
    assert len(lines) == 2  # a line for each change, none for a look without one


def test_watch_as_json_is_a_document_per_line(api, cli):
    job = api.job()
    api.service.end(job, State.CANCELLED)
    (line,) = cli.ok("status", job, "-w", "-o", "json").splitlines()
    assert json.loads(line)["jobs"][0]["state"] == "CANCELLED"


def test_events_tell_what_happened_and_what_was_decided(api, cli):
    job = api.job()
    api.service.tell(
        job,
        {"type": "ProcessExited", "generation": "000001.000001", "rank": 0, "signal": 9, "step": 45},
        evidence="the guard saw it",
        decision="restart in place",
    )
    lines = cli.ok("events", job).splitlines()
    assert lines[0].endswith("submitted")
    assert lines[1].endswith(
        "training process of rank 0 ended with SIGKILL at step 45: the guard saw it → restart in place"
    )
    found = cli.json("events", job)
    assert found["job"] == job
    assert [event["type"] for event in found["events"]] == ["Submitted", "ProcessExited"]
    assert found["events"][1]["data"]["signal"] == 9


def test_events_of_many_pages_are_all_shown(api, cli):
    job = api.job()
    with api.service.store.transaction() as transaction:
        for step in range(1, 1200):
            transaction.append_event(job, {"type": "CheckpointCommitted", "step": step}, t_us=step)
    lines = cli.ok("events", job).splitlines()
    assert len(lines) == 1200
    assert lines[-1].endswith("checkpoint of step 1199")


def test_following_events_ends_with_the_job(api, cli):
    job = api.job()
    api.service.end(job, State.SUCCEEDED)
    lines = cli.ok("events", job, "--follow", "-o", "json").splitlines()
    assert [json.loads(line)["type"] for line in lines] == ["Submitted", "Closed"]


@pytest.mark.parametrize(
    ("state", "code"), [(State.SUCCEEDED, 0), (State.FAILED, 1), (State.CANCELLED, 3), (State.BLOCKED, 7)]
)
def test_wait_ends_with_the_exit_code_of_the_state(api, cli, state, code):
    job = api.job()
    api.edit(job, state=state, reason="because")
    result = cli("wait", job)
    assert result.exit_code == code
    assert result.stdout.startswith(f"{job} {state.value}")
    assert json.loads(cli("wait", job, "-o", "json").stdout)["jobs"][0]["state"] == state.value


def test_wait_has_a_limit(api, cli):
    job = api.job()
    result = cli("wait", job, "--timeout", "50ms")
    assert result.exit_code == 6
    assert "it goes on" in result.stderr


def test_wait_names_what_a_duration_is(api, cli):
    result = cli("wait", api.job(), "--timeout", "soon")
    assert result.exit_code == 2
    assert "1h30m" in result.stderr


def test_cancel_returns_when_the_job_is_over(api, cli):
    job = api.job()
    assert cli.ok("cancel", job).startswith(f"{job} CANCELLED")
    assert api.service.ended(job)
    assert cli.json("cancel", job, "--now")["jobs"][0]["state"] == "CANCELLED"
    cli.refused(NoSuchJob, "cancel", "nosuch-00000")


def test_cancel_waits_for_the_end_of_a_job_that_is_stopping(api, cli, monkeypatch):
    job = api.job()
    asked = []

    def cancel(name, *, now):
        asked.append(now)
        api.edit(job, state=State.STOPPING)
        return api.service.job(job)

    monkeypatch.setattr(api.service, "cancel", cancel)
    looked = following.wait_over

    def end_then_look(client, *arguments, **options):
        api.service.end(job, State.CANCELLED)
        return looked(client, *arguments, **options)

    monkeypatch.setattr(following, "wait_over", end_then_look)
    assert "STOPPING" in cli.ok("cancel", job, "--no-wait")
    assert "CANCELLED" in cli.ok("cancel", job, "--now")
    assert asked == [False, True]


def test_waiting_outlives_a_server_that_is_restarted(api, cli, monkeypatch):
    job = api.job()
    asked = following.job_as_it_stands

    def restart_first(client, *arguments):
        api.restart()
        api.service.end(job, State.SUCCEEDED)
        return asked(client, *arguments)

    monkeypatch.setattr(following, "job_as_it_stands", restart_first)
    assert cli.ok("wait", job).startswith(f"{job} SUCCEEDED")


def test_watching_outlives_a_server_that_is_restarted(api, cli, monkeypatch):
    job = api.job()
    looks = iter(range(10))

    def act(_):
        match next(looks):
            case 0:
                api.close()
            case 1:
                api.restart()
                api.service.end(job, State.SUCCEEDED)

    monkeypatch.setattr(status.time, "sleep", act)
    result = cli("status", job, "--watch")
    assert result.exit_code == 0
    assert "SUCCEEDED" in result.stdout
    assert "waiting for it" in result.stderr
