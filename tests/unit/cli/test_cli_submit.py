from __future__ import annotations

import json
import os
import socket
import zipfile

import pytest

from orch.cli import following
from orch.model import jobfile
from orch.model.errors import Blocked, JobCancelled, JobFailed, NeverPlaceable, WrongUse
from orch.model.problems import Problem
from orch.model.states import State


def submitted(api) -> dict:
    (summary,) = api.service.jobs(_all())
    return api.service.job(summary["id"])


def _all():
    from orch.control.service import JobQuery

    return JobQuery()


def test_submit_ships_the_workdir_and_prints_the_id(api, cli, workdir):
    result = cli("submit", str(workdir / "job.yaml"))
    assert result.exit_code == 0, result.output
    job = submitted(api)
    assert result.stdout == f"{job['id']} submitted\n"
    assert job["id"].startswith("digits-")
    assert job["spec"]["run"] == "python train.py"
    shipped = api.home.uploads / f"{job['code']['digest']}.zip"
    assert zipfile.ZipFile(shipped).namelist() == ["job.yaml", "train.py"]
    assert f"orch logs -f {job['id']}" in result.stderr


def test_quiet_prints_the_id_alone(api, cli, workdir):
    result = cli("submit", str(workdir / "job.yaml"), "--quiet")
    assert result.stdout == f"{submitted(api)['id']}\n"
    assert result.stderr == ""


def test_submit_as_json_is_the_detail_document(api, cli, workdir):
    found = cli.json("submit", str(workdir / "job.yaml"))
    assert found["jobs"] == [submitted(api) | {"ledger": found["jobs"][0]["ledger"]}]


def test_what_the_server_has_is_not_sent_again(api, cli, workdir, monkeypatch):
    cli.ok("submit", str(workdir / "job.yaml"))
    monkeypatch.setattr(api.service, "upload_code", None)
    cli.ok("submit", str(workdir / "job.yaml"))


def test_standard_input_and_the_options_that_change_a_job(api, cli, workdir, monkeypatch):
    monkeypatch.chdir(workdir)
    monkeypatch.setenv("SEED", "7")
    text = b"run: python train.py\nname: of-the-file\n"
    options = ["--name", "trial", "--set", "resources.cpus=2", "--env", "SEED", "--env", "A=b=c"]
    cli.ok("submit", "-", *options, stdin=text)
    spec = submitted(api)["spec"]
    assert spec["name"] == "trial"
    assert spec["resources"]["cpus"] == 2
    assert spec["env"] == {"SEED": "7", "A": "b=c"}
    assert spec["workdir"] == str(workdir)


def test_secrets_are_sent_and_never_shown(api, cli, workdir, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "very-secret-value")
    job_file = workdir / "job.yaml"
    job_file.write_text("run: python train.py\nsecrets: [WANDB_API_KEY]\n")
    result = cli("submit", str(job_file), "-o", "json")
    assert result.exit_code == 0, result.output
    assert "very-secret-value" not in result.output
    assert "very-secret-value" not in cli("submit", str(job_file), "--dry-run", "-o", "json").output


def test_a_job_in_place_ships_nothing(api, cli, workdir, monkeypatch):
    monkeypatch.setattr(api.service, "upload_code", None)
    cli.ok("submit", str(workdir / "job.yaml"), "--set", "ship=never")
    assert submitted(api)["code"] is None


def test_an_unprotected_job_is_announced_so(api, cli, workdir, monkeypatch):
    submit = api.service.submit
    monkeypatch.setattr(
        api.service, "submit", lambda submission: submit(submission) | {"flags": ["UNPROTECTED"]}
    )
    result = cli("submit", str(workdir / "job.yaml"))
    assert result.stdout.rstrip().endswith("submitted, UNPROTECTED")
    assert "import orch" in result.stderr


def test_everything_wrong_is_said_at_once_and_nothing_is_started(api, cli, workdir):
    (workdir / "job.yaml").write_text("run: 5\ncheckpoint: {evry: 3}\npriority: high\n")
    told = cli.refused(WrongUse, "submit", str(workdir / "job.yaml"))
    assert len(told.splitlines()) == 3
    assert f"{workdir / 'job.yaml'}:2: checkpoint.evry" in told
    assert "'every'" in told
    assert api.service.jobs(_all()) == []


def test_requirements_that_would_not_be_shipped_are_refused_here(api, cli, workdir):
    (workdir / "job.yaml").write_text("run: python train.py\npython: {requirements: needs.txt}\n")
    said = cli.refused(WrongUse, "submit", str(workdir / "job.yaml"))
    assert "python.requirements: needs.txt is not in the workdir" in said
    (workdir / "needs.txt").write_text("numpy\n")
    (workdir / ".orchignore").write_text("needs.txt\n")
    said = cli.refused(WrongUse, "submit", str(workdir / "job.yaml"))
    assert "needs.txt is left out by .gitignore or .orchignore" in said
    (workdir / ".orchignore").unlink()
    cli.ok("submit", str(workdir / "job.yaml"))
    assert submitted(api)["spec"]["python"] == {"version": None, "requirements": "needs.txt"}


def test_problems_of_the_workdir_and_secrets_are_told_together(api, cli, workdir, monkeypatch):
    monkeypatch.chdir(workdir)  # a socket's path is short
    monkeypatch.delenv("NO_SUCH_SECRET", raising=False)
    (workdir / "job.yaml").write_text("run: python train.py\nsecrets: [NO_SUCH_SECRET]\n")
    (workdir / "loop").symlink_to("loop")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("agent.sock")
        told = cli.refused(WrongUse, "submit", "job.yaml")
    for word in ("agent.sock", "loop", "NO_SUCH_SECRET", ".orchignore"):
        assert word in told
    assert list(api.home.uploads.iterdir()) == []


def test_a_job_that_can_never_be_placed_is_exit_code_2(api, cli, workdir):
    told = cli.refused(
        NeverPlaceable, "submit", str(workdir / "job.yaml"), "--set", "resources.cpus=64", "-q"
    )
    assert "64" in told
    assert "4" in told


@pytest.mark.parametrize("file", ["nosuch.yaml", "/dev/null"])
def test_a_file_that_is_none_is_one_sentence(api, cli, file):
    assert len(cli.refused(WrongUse, "submit", file).splitlines()) == 1


@pytest.mark.parametrize("state", [State.SUCCEEDED, State.FAILED, State.CANCELLED, State.BLOCKED], ids=str)
def test_follow_shows_the_log_and_ends_as_the_job(api, cli, workdir, monkeypatch, state):
    codes = {
        State.FAILED: JobFailed.exit_code,
        State.CANCELLED: JobCancelled.exit_code,
        State.BLOCKED: Blocked.exit_code,
    }
    monkeypatch.setattr(following, "POLL_S", 0.01)
    submit = api.service.submit

    def submit_and_run(submission):
        job = submit(submission)["id"]
        api.service.write_log(job, b"epoch 1\n")
        if state is State.BLOCKED:
            api.edit(job, state=state, reason="act")
        else:
            api.service.end(job, state, "said so")
        return api.service.job(job)

    monkeypatch.setattr(api.service, "submit", submit_and_run)
    result = cli("submit", str(workdir / "job.yaml"), "--follow")
    assert result.exit_code == codes.get(state, 0)
    assert result.stdout.splitlines()[1:] == ["epoch 1"]
    assert state.value in result.stderr


def test_leaving_while_following_a_submitted_job_leaves_it_running(api, cli, workdir, monkeypatch):
    def leave(follower):
        raise KeyboardInterrupt

    monkeypatch.setattr(following.LogFollower, "run", leave)
    result = cli("submit", str(workdir / "job.yaml"), "-f")
    assert result.exit_code == 130
    assert "keeps running" in result.stderr
    assert submitted(api)["state"] == "QUEUED"


def test_dry_run_shows_values_with_their_origin_and_starts_nothing(api, cli, workdir):
    (workdir / ".gitignore").write_text("data\n")
    (workdir / "data").mkdir()
    out = cli.ok("submit", str(workdir / "job.yaml"), "--dry-run", "--set", "resources.cpus=2")
    rows = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    assert "python train.py" in rows["run"]
    assert "line 1" in rows["run"]
    assert rows["resources.cpus"].split() == ["resources.cpus", "2", "--set", "resources.cpus"]
    assert rows["checkpoint.every.seconds"].split() == ["checkpoint.every.seconds", "600", "default"]
    assert "ships 3 files" in out
    assert "1 left out" in out
    assert "train.py" in out
    assert "can be placed: asked for 2 CPUs" in out
    assert api.service.jobs(_all()) == []
    assert list(api.home.uploads.iterdir()) == []


def test_dry_run_as_json(api, cli, workdir):
    found = json.loads(cli("submit", str(workdir / "job.yaml"), "-n", "-o", "json").stdout)
    assert found["job"]["outputs"] == ["model.ckpt"]
    assert found["origins"]["priority"] == "default"
    assert [file["path"] for file in found["code"]["files"]] == ["job.yaml", "train.py"]
    assert found["placement"]["placeable"] is True


def test_dry_run_of_what_never_fits_is_exit_code_2_and_shows_the_job_all_the_same(api, cli, workdir):
    result = cli("submit", str(workdir / "job.yaml"), "-n", "--set", "resources.cpus=64")
    assert result.exit_code == NeverPlaceable.exit_code
    assert "can never be placed" in result.stdout
    assert "can never be placed" in result.stderr


def test_dry_run_without_a_server_judges_by_this_machine_and_starts_none(home, cli, workdir):
    out = cli.ok("submit", str(workdir / "job.yaml"), "--dry-run")
    assert "no server runs" in out
    assert str(home.storage) in out
    result = cli("submit", str(workdir / "job.yaml"), "-n", "--set", f"resources.cpus={os.cpu_count() + 1}")
    assert result.exit_code == NeverPlaceable.exit_code
    assert list(home.root.iterdir()) == []


def test_dry_run_names_what_cannot_be_shipped(api, cli, workdir):
    (workdir / "loop").symlink_to("loop")
    result = cli("submit", str(workdir / "job.yaml"), "-n")
    assert result.exit_code == WrongUse.exit_code
    assert "loop" in result.stderr


@pytest.mark.parametrize("option", ["--quiet", "--dry-run"])
def test_a_storage_that_this_installation_cannot_reach_starts_nothing(
    home, cli, workdir, monkeypatch, option
):
    missing = Problem("s3:// needs the package s3fs: pip install 'orch[s3]'", path="checkpoint.storage")
    monkeypatch.setattr(jobfile, "missing_extra", lambda url: missing)
    result = cli("submit", str(workdir / "job.yaml"), "--set", "checkpoint.storage=s3://bucket", option)
    assert result.exit_code == WrongUse.exit_code
    assert "orch[s3]" in result.stderr
    assert list(home.root.iterdir()) == []


@pytest.mark.parametrize("option", ["--quiet", "--dry-run"])
@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_storage_that_cannot_be_made_on_this_disk_starts_nothing(home, cli, workdir, scheme, option):
    (workdir / "file").write_text("in the way")
    storage = f"checkpoint.storage={scheme}{workdir / 'file' / 'below'}"
    result = cli("submit", str(workdir / "job.yaml"), "--set", storage, option)
    assert result.exit_code == WrongUse.exit_code
    assert "checkpoint.storage: cannot write to" in result.stderr
    assert f"no folder can be made in {workdir / 'file'}: Not a directory" in result.stderr
    assert list(home.root.iterdir()) == []


def test_looking_whether_a_storage_can_be_made_leaves_nothing(home, cli, workdir):
    (workdir / "made").mkdir()
    for place in ("made", "not/there/yet"):
        storage = f"checkpoint.storage={workdir / place}"
        cli.ok("submit", str(workdir / "job.yaml"), "-n", "--set", storage)
    assert list((workdir / "made").iterdir()) == []
    assert not (workdir / "not").exists()


def test_dry_run_against_a_cluster_without_a_server_says_that_it_was_not_checked(home, cli, workdir):
    out = cli.ok("submit", str(workdir / "job.yaml"), "-n", "--cluster", "10.255.0.1:6379")
    assert "not checked" in out


def test_the_schema_is_one_for_editors(cli):
    schema = json.loads(cli.ok("schema"))
    assert schema["properties"]["run"]
    assert schema["required"] == ["run"]
    assert schema["additionalProperties"] is False
