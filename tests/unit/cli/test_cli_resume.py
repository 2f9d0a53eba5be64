"""`orch resume`: what it asks the server for, and what it refuses before that."""

from __future__ import annotations

from orch.model.errors import NoSuchJob, WrongUse
from orch.model.generation import Generation
from orch.model.problems import JobFileError


def test_what_is_to_change_goes_to_the_server_whole(cli, api, workdir, monkeypatch):
    monkeypatch.setenv("KEY", "value")
    job = api.job(secrets=["KEY"], env={"A": "1"})
    options = ("--at", "2.1:40", "--set", "restart.max_failures=9", "--env", "B=2", "--workdir", str(workdir))
    said = cli.ok("resume", job, *options, "--grace", "5s")
    assert said == f"{job} goes on from step 40\n"
    ((name, asked),) = api.service.resumed
    assert name == job
    assert (asked.at, asked.at_generation) == (40, Generation(2, 1))
    assert asked.spec.env == {"A": "1", "B": "2"}
    assert asked.spec.restart.max_failures == 9
    assert asked.secrets == {"KEY": "value"}
    assert asked.workdir == str(workdir)
    assert asked.code is not None
    assert (asked.resumes, asked.grace_s) == (0, 5.0)


def test_without_options_nothing_is_to_change(cli, api):
    job = api.job()
    assert cli.ok("resume", job) == f"{job} goes on from nothing: it has no checkpoint\n"
    ((_, asked),) = api.service.resumed
    assert (asked.spec, asked.at, asked.code, asked.workdir) == (None, None, None, None)


def test_what_cannot_be_is_said_before_anything_is_asked(cli, api, tmp_path):
    job = api.job()
    assert "--at: 'newest' is no step" in cli.refused(WrongUse, "resume", job, "--at", "newest")
    assert "is no folder" in cli.refused(WrongUse, "resume", job, "--workdir", str(tmp_path / "none"))
    assert "did you mean" in cli.refused(JobFileError, "resume", job, "--set", "restart.max_failure=1")
    cli.refused(NoSuchJob, "resume", "nobody-x1")
    assert not api.service.resumed
