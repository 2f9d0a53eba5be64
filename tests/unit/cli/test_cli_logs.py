from __future__ import annotations

import io
import json
import zipfile

import pytest

from orch.cli import following
from orch.model.errors import OrchError, WrongUse
from orch.model.states import State


def test_the_log_is_shown_as_it_was_written(api, cli):
    job = api.job()
    data = bytes(range(256)) + "naïve\n".encode()
    api.service.write_log(job, data)
    result = cli("logs", job)
    assert result.exit_code == 0
    assert result.stdout_bytes == data


def test_the_logs_of_all_attempts_follow_each_other(api, cli):
    job = api.job()
    api.service.write_log(job, b"first\n", attempt=1)
    api.service.write_log(job, b"second\n", attempt=2)
    assert cli.ok("logs", job) == "first\nsecond\n"
    assert cli.ok("logs", job, "--attempt", "1") == "first\n"
    api.edit(job, attempt=2)
    assert "attempt 3" in cli.refused(WrongUse, "logs", job, "--attempt", "3")


def test_a_job_without_output_has_an_empty_log(api, cli):
    assert cli.ok("logs", api.job()) == ""


def test_tail_shows_the_last_lines(api, cli):
    job = api.job()
    api.service.write_log(job, b"".join(b"line %d\n" % number for number in range(100)))
    assert cli.ok("logs", job, "--tail", "2") == "line 98\nline 99\n"
    assert cli.ok("logs", job, "--tail", "0") == ""


def test_lines_as_json_and_with_times(api, cli):
    job = api.job()
    api.service.write_log(job, b"one\ntwo\n")
    lines = [json.loads(line) for line in cli.ok("logs", job, "-o", "json").splitlines()]
    assert [(line["attempt"], line["rank"], line["text"]) for line in lines] == [(1, 0, "one"), (1, 0, "two")]
    assert all(set(line) == {"attempt", "rank", "time", "text"} for line in lines)
    assert [line.split()[-1] for line in cli.ok("logs", job, "--timestamps").splitlines()] == ["one", "two"]


def test_following_shows_the_log_until_the_job_is_over(api, cli, monkeypatch):
    monkeypatch.setattr(following, "POLL_S", 0.01)
    monkeypatch.setattr(following, "NEWS_EVERY_S", 0.0)
    job = api.job()
    api.service.write_log(job, b"one\n")
    shown = following.LogView.show
    acts = iter(
        [
            lambda: api.service.tell(job, {"type": "ProcessExited", "rank": 0, "signal": 9, "step": 7}),
            lambda: api.service.write_log(job, b"two\n", attempt=2),
            lambda: api.service.end(job, State.SUCCEEDED),
        ]
    )

    def show_then_act(view, part):
        shown(view, part)
        next(acts, lambda: None)()

    monkeypatch.setattr(following.LogView, "show", show_then_act)
    result = cli("logs", "-f", job)
    assert result.exit_code == 0
    assert result.stdout == "one\ntwo\n"
    assert "orch: training process of rank 0 ended with SIGKILL at step 7" in result.stderr


def test_following_ends_when_a_person_must_act(api, cli, monkeypatch):
    monkeypatch.setattr(following, "POLL_S", 0.01)
    job = api.job()
    api.edit(job, state=State.BLOCKED, reason="no checkpoint can be restored")
    assert cli("logs", "-f", job).exit_code == 0


def test_leaving_while_following_says_that_the_job_goes_on(api, cli, monkeypatch):
    job = api.job()
    api.service.write_log(job, b"one\n")

    def leave(view, part):
        raise KeyboardInterrupt

    monkeypatch.setattr(following.LogView, "show", leave)
    result = cli("logs", "-f", job)
    assert result.exit_code == 130
    assert f"{job} keeps running" in result.stderr


def test_fetch_brings_the_outputs_into_a_folder_of_the_jobs_name(api, cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    job = api.job()
    api.service.outputs_of[job] = {"model.ckpt": b"weights", "plots/loss.png": b"png"}
    result = cli("fetch", job)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [f"{job}/model.ckpt", f"{job}/plots/loss.png"]
    assert (tmp_path / job / "plots" / "loss.png").read_bytes() == b"png"
    assert "2 files" in result.stderr


def test_fetch_into_a_folder_replaces_what_is_there(api, cli, tmp_path):
    job = api.job()
    api.service.outputs_of[job] = {"model.ckpt": b"new"}
    (tmp_path / "model.ckpt").write_bytes(b"old")
    found = cli.json("fetch", job, "--to", str(tmp_path))
    assert found["files"] == [{"path": "model.ckpt", "size_bytes": 3}]
    assert found["folder"] == str(tmp_path)
    assert (tmp_path / "model.ckpt").read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["model.ckpt"]


def test_fetch_without_outputs_says_so(api, cli, tmp_path):
    assert "outputs" in cli.refused(WrongUse, "fetch", api.job(), "--to", str(tmp_path / "to"))
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize("name", ["/etc/passwd", "../up", "a/../../up", "a\\..\\up", "C:/up"])
def test_fetch_writes_nothing_outside_its_folder(api, cli, tmp_path, name):
    job = api.job()
    api.service.outputs_of[job] = {"good": b"1", name: b"2"}
    assert "refused" in cli.refused(OrchError, "fetch", job, "--to", str(tmp_path / "to"))
    assert list(tmp_path.iterdir()) == []


def test_fetch_refuses_links(api, cli, tmp_path, monkeypatch):
    job = api.job()
    link = zipfile.ZipInfo("link")
    link.external_attr = 0o120777 << 16
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(link, "/etc/passwd")
    from orch.control.service import Download

    monkeypatch.setattr(
        api.service, "outputs", lambda job: Download(name="x.zip", chunks=iter([buffer.getvalue()]))
    )
    assert "refused" in cli.refused(OrchError, "fetch", job, "--to", str(tmp_path / "to"))
    assert list(tmp_path.iterdir()) == []


def test_fetch_does_not_follow_a_link_out_of_the_folder(api, cli, tmp_path):
    job = api.job()
    api.service.outputs_of[job] = {"plots/loss.png": b"png"}
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "to").mkdir()
    (tmp_path / "to" / "plots").symlink_to(tmp_path / "elsewhere")
    assert "leads out" in cli.refused(WrongUse, "fetch", job, "--to", str(tmp_path / "to"))
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_damaged_answer_is_no_traceback(api, cli, tmp_path, monkeypatch):
    from orch.control.service import Download

    monkeypatch.setattr(
        api.service, "outputs", lambda job: Download(name="x.zip", chunks=iter([b"not a zip"]))
    )
    assert "damaged" in cli.refused(OrchError, "fetch", api.job(), "--to", str(tmp_path / "to"))


def test_following_outlives_a_server_that_is_restarted(api, cli, monkeypatch):
    monkeypatch.setattr(following, "POLL_S", 0.01)
    job = api.job()
    api.service.write_log(job, b"one\n")
    shown = following.LogView.show
    seen = []

    def show_then_restart(view, part):
        shown(view, part)
        if not seen:
            seen.append(api.url)
            api.restart()
            api.service.write_log(job, b"two\n")
            api.service.end(job, State.SUCCEEDED)

    monkeypatch.setattr(following.LogView, "show", show_then_restart)
    result = cli("logs", "-f", job)
    assert result.exit_code == 0, result.output
    assert result.stdout == "one\ntwo\n"
    assert seen != [api.url]
    assert "waiting for it" in result.stderr
