"""The program as a process: what it loads, signals, pipes and terminals."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from orch.cli.main import app
from orch.model import errors

ORCH = [sys.executable, "-m", "orch.cli.main"]
LIMIT_S = 60
HEAVY = ("ray", "torch", "fastapi", "uvicorn", "sqlalchemy", "fsspec", "numpy", "cryptography", "psutil")


def verbs() -> list[list[str]]:
    """Every verb and group, as it is typed."""

    def below(command, path):
        yield path
        for name, inside in getattr(command, "commands", {}).items():
            yield from below(inside, [*path, name])

    return list(below(typer.main.get_command(app), []))


def start(*arguments: str, **options) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*ORCH, *arguments],
        stdin=subprocess.DEVNULL,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options,
    )


def test_all_verbs_of_the_issue_are_there():
    known = {" ".join(path) for path in verbs()}
    wanted = {"submit", "status", "logs", "events", "cancel", "wait", "fetch", "schema", "server", "version"}
    assert wanted | {"server start", "server stop", "server status"} <= known


@pytest.mark.parametrize("path", verbs(), ids=" ".join)
def test_the_help_of_every_verb_has_an_example(path):
    for option in ("-h", "--help"):
        result = CliRunner().invoke(app, [*path, option])
        assert result.exit_code == 0
        _, _, examples = result.stdout.partition("\n  Example")
        assert " ".join(["orch", *path]) in examples


def test_wrong_use_is_exit_code_2(cli):
    for arguments in (["statsu"], ["status", "--nope"], ["logs"], ["submit", "x", "-o", "xml"]):
        result = cli(*arguments)
        assert result.exit_code == 2
        assert "Traceback" not in result.output


def test_status_loads_nothing_heavy(api):
    api.job()
    program = (
        "import sys; from orch.cli.main import app\n"
        "try: app(['status'])\n"
        "finally: print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=LIMIT_S
    )
    assert "QUEUED" in done.stdout
    loaded = set(done.stderr.split())
    assert "urllib3" in loaded
    assert not loaded & set(HEAVY)


def test_a_pipe_gets_no_colours_and_whole_lines(api):
    job = api.job("a" * 57)
    env = os.environ | {"FORCE_COLOR": "1", "COLUMNS": "40", "TERM": "xterm-256color"}
    for arguments in (["status"], ["status", job], ["server", "status"], ["-h"]):
        done = start(*arguments, env=env)
        out, err = done.communicate(timeout=LIMIT_S)
        assert done.returncode == 0
        assert b"\x1b" not in out + err
    out, _ = start("status", env=env).communicate(timeout=LIMIT_S)
    assert len(out.splitlines()) == 2
    assert b"QUEUED" in out.splitlines()[1]


def test_a_terminal_gets_colours(api):
    api.job()
    leader, follower = pty.openpty()
    env = os.environ | {"TERM": "xterm-256color"}
    env.pop("NO_COLOR", None)
    process = start("status", stdout=follower, env=env)
    os.close(follower)
    shown = read_all(leader)
    process.communicate(timeout=LIMIT_S)
    assert b"\x1b[" in shown
    assert b"QUEUED" in shown


def read_all(descriptor: int) -> bytes:
    """A terminal's output until its last writer is gone, which is an error and no end of file."""
    data = b""
    while True:
        try:
            piece = os.read(descriptor, 65536)
        except OSError:
            piece = b""
        if not piece:
            os.close(descriptor)
            return data
        data += piece


def test_ctrl_c_while_following_leaves_the_job_running(api):
    job = api.job()
    api.service.write_log(job, b"step 1\n")
    process = start("logs", "-f", job)
    assert process.stdout.readline() == b"step 1\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 130
    assert f"{job} keeps running".encode() in err
    assert b"Traceback" not in err
    assert api.service.job(job)["state"] == "QUEUED"


def test_ctrl_c_while_waiting_leaves_the_job_running(api, monkeypatch):
    job = api.job()
    process = start("wait", job)
    api_events = api.service.events
    asked: list[bool] = []

    def events(*arguments):
        if not asked:
            asked.append(True)
            process.send_signal(signal.SIGINT)
        return api_events(*arguments)

    monkeypatch.setattr(api.service, "events", events)
    _, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 130
    assert f"{job} keeps running".encode() in err


def test_a_reader_that_leaves_early_is_no_traceback(api):
    job = api.job()
    api.service.write_log(job, b"x" * 999_999 + b"\n")
    process = start("logs", job)
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    process.wait(timeout=LIMIT_S)
    assert err == b""
    assert process.returncode == 1


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shell_completion(api, shell):
    job = api.job()
    # Without this typer looks for the shell among the processes above: below `just` that is a plain sh.
    named = os.environ | {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    done = start("--show-completion", shell, env=named)
    out, _ = done.communicate(timeout=LIMIT_S)
    assert b"_ORCH_COMPLETE" in out or b"orch" in out
    words = {"COMP_WORDS": f"orch status {job[:3]}", "COMP_CWORD": "2"}
    if shell == "bash":
        env = os.environ | words | {"_ORCH_COMPLETE": "complete_bash"}
        out, _ = start(env=env).communicate(timeout=LIMIT_S)
        assert job.encode() in out


def test_the_page_names_every_verb_and_every_exit_code():
    page = (Path(__file__).parents[3] / "docs" / "cli.md").read_text()
    for path in verbs():
        if path and path[0] != "server":
            assert f"`orch {path[0]}" in page
    for error in (errors.WrongUse, errors.NoSuchJob, errors.NoServer, errors.TimedOut, errors.Blocked):
        assert f"\n| {error.exit_code} | " in page
