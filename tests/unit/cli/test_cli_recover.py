"""`orch recover` and `orch secrets`, through the real API to a controller that places nothing."""

from __future__ import annotations

import pytest

from orch.control.jobrecord import end_path, end_record, job_record
from orch.model.errors import NoSuchJob, WrongUse
from orch.model.spec import JobSpec
from orch.model.states import JobState, State
from orch_workers.checkpoint import Catalog, open_storage


@pytest.fixture
def storage(tmp_path):
    return open_storage(str(tmp_path / "storage"))


def put(storage, job, **more):
    spec = {"name": job.rpartition("-")[0], "run": "true", "ship": "never", "workdir": "/"} | more
    spec = JobSpec.model_validate({**spec, "checkpoint": {"storage": "/somewhere/else"}})
    record = job_record(job, spec.model_dump(mode="json"), None, seed=3, unprotected=False)
    storage.create(f"{job}/job.json", record)


def outcomes(document):
    return {one["job"]: one["outcome"] for one in document["jobs"]}


@pytest.fixture
def three(storage):
    put(storage, "digits-aaaaa")
    put(storage, "hidden-bbbbb", secrets=["KEY"])
    put(storage, "over-ccccc")
    over = JobState(job="over-ccccc", state=State.FAILED, reason="crash loop", ended_us=7, exit_code=3)
    storage.create(end_path("over-ccccc", 0), end_record(over))
    storage.create("no-job-of-ours/readme", b"x")
    return {"digits-aaaaa": "resumed", "hidden-bbbbb": "blocked", "over-ccccc": "ended"}


def test_jobs_come_back_once(api, cli, storage, three):
    assert outcomes(cli.json("recover", storage.url)) == three
    found = {job["id"]: job for job in cli.json("status", "--all")["jobs"]}
    assert {job: one["state"] for job, one in found.items()} == {
        "digits-aaaaa": "QUEUED",
        "hidden-bbbbb": "BLOCKED",
        "over-ccccc": "FAILED",
    }
    assert outcomes(cli.json("recover", storage.url)) == dict.fromkeys(three, "known")
    detail = api.service.job("digits-aaaaa")
    assert detail["spec"]["checkpoint"]["storage"]["url"] == storage.url, (
        "where it was found, not where it was"
    )
    assert any("read back from" in note["text"] for note in detail["notes"])


def test_a_dry_run_needs_no_server_and_changes_nothing(home, cli, storage, three):
    document = cli.json("recover", storage.url, "--dry-run")
    assert outcomes(document) == three
    assert document["dry_run"] is True
    assert not home.server_json.exists()


def test_a_dry_run_knows_what_the_server_knows(api, cli, storage, three):
    cli.ok("recover", storage.url, "digits-aaaaa")
    assert outcomes(cli.json("recover", storage.url, "--dry-run")) == three | {"digits-aaaaa": "known"}
    assert len(api.service.store.jobs()) == 1


def test_what_people_read(api, cli, storage, three):
    Catalog(storage, "digits-aaaaa").begin_generation((2, 1))
    lines = cli.ok("recover", storage.url).splitlines()
    assert lines[0].startswith("digits-aaaaa  resumed  no step, attempt 102  read back from ")
    assert "orch secrets hidden-bbbbb" in lines[1]
    assert lines[2] == "over-ccccc  ended  crash loop"


def test_one_that_cannot_be_read_keeps_the_others_from_nothing(api, cli, storage, three):
    storage.create("broken-ddddd/job.json", b"[1]")
    result = cli("recover", storage.url, "-o", "json")
    assert result.exit_code == 1
    assert '"refused"' in result.stdout
    assert len(api.service.store.jobs()) == 3


def test_a_spec_that_this_version_refuses(api, cli, storage):
    record = job_record("odd-eeeee", {"run": "true", "no_such_key": 1}, None, seed=1, unprotected=False)
    storage.create("odd-eeeee/job.json", record)
    result = cli("recover", storage.url)
    assert result.exit_code == 1
    assert "no_such_key" in result.stdout


def test_places_without_jobs(api, cli, storage, tmp_path):
    assert "holds no jobs" in cli.refused(NoSuchJob, "recover", _empty(tmp_path))
    put(storage, "digits-aaaaa")
    assert "digits-zzzzz" in cli.refused(NoSuchJob, "recover", storage.url, "digits-zzzzz")
    cli.refused(WrongUse, "recover", storage.url, "--option", "endpoint")


def _empty(tmp_path):
    (tmp_path / "empty").mkdir()
    return str(tmp_path / "empty")


def test_secrets_are_set_again(api, cli, storage, three, monkeypatch):
    cli.ok("recover", storage.url)
    assert "KEY" in cli.refused(WrongUse, "secrets", "hidden-bbbbb")
    monkeypatch.setenv("KEY", "s3cr3t")
    out = cli.ok("secrets", "hidden-bbbbb")
    assert out.startswith("hidden-bbbbb is QUEUED")
    assert "s3cr3t" not in out
    sealed = api.service.store.sealed_secrets("hidden-bbbbb")
    assert api.service.secrets.unseal("hidden-bbbbb", sealed) == {"KEY": "s3cr3t"}
    assert "no secrets" in cli.refused(WrongUse, "secrets", "digits-aaaaa")
    cli.refused(NoSuchJob, "secrets", "nobody-00000")
