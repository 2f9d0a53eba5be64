from __future__ import annotations

import importlib.util
import json
import os
import stat
import sys
from pathlib import Path

import pytest

from orch.cli import launch
from orch.cli.connect import find_target, known_jobs
from orch.control.home import ServerRecord
from orch.control.store import Store
from orch.model.errors import NoServer, WrongUse

HERE = Path(__file__).parent
RECORD = {"url": "http://127.0.0.1:1", "pid": 1, "version": "0.1.0", "ray_address": "127.0.0.1:6379"}


class FakeBootstrap:
    """What the process that starts a server is to say."""

    def __init__(self, script: Path) -> None:
        self._script = script

    def says(self, *lines: object) -> None:
        texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        self._script.write_text("\n".join(texts))

    @property
    def arguments(self) -> list[str]:
        return json.loads(self._script.with_suffix(".arguments").read_text())

    @property
    def was_started(self) -> bool:
        return self._script.with_suffix(".arguments").exists()


@pytest.fixture
def bootstrap(tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_BOOTSTRAP", str(tmp_path / "bootstrap"))
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    monkeypatch.setattr(launch, "PROGRAM", "fake_bootstrap")
    return FakeBootstrap(tmp_path / "bootstrap")


def test_the_program_that_starts_the_server_is_there():
    assert importlib.util.find_spec(launch.PROGRAM) is not None


def test_start_shows_its_progress_and_where_the_server_answers(home, cli, bootstrap):
    bootstrap.says({"progress": "starting Ray"}, "noise of a library", '["noise"]', {"ready": RECORD})
    result = cli("server", "start")
    assert result.exit_code == 0, result.output
    assert result.stdout == "the server answers at http://127.0.0.1:1\n"
    assert "starting Ray …" in result.stderr
    assert bootstrap.arguments == ["start", "--home", str(home.root)]
    assert stat.S_IMODE(home.root.stat().st_mode) == 0o700


def test_start_hands_on_what_ray_may_give_away(home, cli, bootstrap):
    home.config.write_text("cpus: 2\ngpus: 0\n")
    bootstrap.says({"ready": RECORD})
    assert cli.json("server", "start", "--cpus", "3")["server"] == RECORD
    assert bootstrap.arguments[3:] == ["--num-cpus", "3", "--num-gpus", "0"]


def test_start_on_a_cluster(home, cli, bootstrap):
    bootstrap.says({"ready": RECORD})
    cli.ok("server", "start", "--cluster", "10.0.0.5:6379")
    assert bootstrap.arguments[3:] == ["--cluster", "10.0.0.5:6379"]
    assert "--cpus" in cli.refused(WrongUse, "server", "start", "--cluster", "10.0.0.5:6379", "--cpus", "1")


@pytest.mark.parametrize(("code", "error"), [(2, WrongUse), (5, NoServer)])
def test_what_start_failed_with_is_said(cli, bootstrap, code, error):
    bootstrap.says({"error": {"message": "Ray and Python do not match", "exit_code": code}}, f"exit {code}")
    assert "Ray and Python do not match" in cli.refused(error, "server", "start")


def test_a_start_that_ends_without_a_word_shows_its_log(cli, bootstrap):
    bootstrap.says("exit 3")
    told = cli.refused(NoServer, "server", "start")
    assert "exit code 3" in told
    assert "the reason stands here" in told


def test_stop(cli, home, bootstrap):
    bootstrap.says({"progress": "saving"}, {"stopped": {"processes_ended": 2}})
    assert "stopped" in cli.ok("server", "stop")
    assert bootstrap.arguments == ["stop", "--home", str(home.root)]


def test_restart(cli, home, bootstrap):
    bootstrap.says({"progress": "ending the controller"}, {"ready": RECORD})
    assert cli.ok("server", "restart") == "the server answers at http://127.0.0.1:1\n"
    assert bootstrap.arguments == ["restart", "--home", str(home.root)]
    assert cli.json("server", "restart", "--new-token")["server"] == RECORD
    assert bootstrap.arguments[3:] == ["--new-token"]
    assert "on that machine" in cli.refused(WrongUse, "server", "restart", "--cluster", "ssh://host")
    bootstrap.says("exit 3")
    assert "restarted" in cli.refused(NoServer, "server", "restart")


def test_status_shows_where_the_server_is(api, cli):
    out = cli.ok("server", "status")
    assert api.url in out
    assert cli.json("server", "status")["server"]["pid"] == 1


def test_submit_starts_the_server_when_none_answers(api, home, cli, bootstrap, workdir):
    record = json.loads(home.server_json.read_text())
    home.server_json.unlink()
    bootstrap.says({"progress": "starting Ray"}, {"record": record}, {"ready": record})
    result = cli("submit", str(workdir / "job.yaml"))
    assert result.exit_code == 0, result.output
    assert "starting Ray" in result.stderr
    assert bootstrap.was_started


def test_submit_uses_the_server_that_answers(api, cli, bootstrap, workdir):
    cli.ok("submit", str(workdir / "job.yaml"))
    assert not bootstrap.was_started


def test_a_job_that_is_refused_starts_no_server(home, cli, bootstrap, workdir):
    (workdir / "job.yaml").write_text("rum: python train.py\n")
    cli.refused(WrongUse, "submit", str(workdir / "job.yaml"))
    assert not bootstrap.was_started
    assert list(home.root.iterdir()) == []


def test_the_option_goes_before_the_environment_and_that_before_the_file(home, monkeypatch):
    assert find_target(None).kind == "home"
    home.config.write_text("cluster: 10.0.0.1:6379\n")
    assert find_target(None).address == "10.0.0.1:6379"
    monkeypatch.setenv("ORCH_CLUSTER", "10.0.0.2:6379")
    assert find_target(None).address == "10.0.0.2:6379"
    assert find_target("ssh://user@host:22").kind == "ssh"
    monkeypatch.setenv("ORCH_URL", "http://127.0.0.1:9")
    assert find_target(None).kind == "api"
    assert find_target("10.0.0.3:6379").address == "10.0.0.3:6379"


def test_a_config_file_from_elsewhere(home, monkeypatch, tmp_path, cli):
    home.config.write_text("cluster: 10.0.0.1:6379\n")
    monkeypatch.setenv("ORCH_CONFIG", str(tmp_path / "orch.yaml"))
    (tmp_path / "orch.yaml").write_text("cluster: 10.0.0.9:6379\n")
    assert find_target(None).address == "10.0.0.9:6379"
    (tmp_path / "orch.yaml").unlink()
    assert "orch.yaml" in cli.refused(WrongUse, "status")


@pytest.mark.parametrize(
    "cluster", ["-oProxyCommand=x", "ray://h:1", "auto", "ssh://-oProxyCommand=x", "x y"]
)
def test_an_address_that_is_none_is_refused(cli, cluster):
    assert "--cluster" in cli.refused(WrongUse, "status", f"--cluster={cluster}")


def test_a_remote_server_by_url_asks_for_its_token(api, cli, monkeypatch, tmp_path):
    job = api.job()
    token = api.home.read_token()
    assert job in cli.ok("status", "--cluster", api.url)  # the home's own server, by its URL
    elsewhere = tmp_path / "home"
    monkeypatch.setenv("ORCH_HOME", str(elsewhere))
    assert "ORCH_TOKEN" in cli.refused(WrongUse, "status", "--cluster", api.url)
    monkeypatch.setenv("ORCH_TOKEN", token)
    assert job in cli.ok("status", "--cluster", api.url)
    monkeypatch.setenv("ORCH_URL", api.url)
    assert job in cli.ok("status")
    monkeypatch.setenv("ORCH_TOKEN", "wrong")
    assert "token" in cli.refused(NoServer, "status")
    assert not elsewhere.exists()


def test_a_server_elsewhere_is_not_started_from_here(cli):
    told = cli.refused(WrongUse, "server", "start", "--cluster", "ssh://user@host")
    assert "on that machine" in told


def test_the_server_of_another_cluster_is_not_taken_for_this_one(api, cli):
    api.record(ray_address="10.0.0.1:6379")
    assert cli.json("status", "--cluster", "10.0.0.1:6379")["jobs"] == []
    assert "10.0.0.1:6379" in cli.refused(WrongUse, "status", "--cluster", "10.0.0.2:6379")


FAKE_SSH = """#!{python}
# FakeSsh: the "other machine" is this one with another HOME. Runs the command, or forwards the port.
import os, socket, subprocess, sys, threading
arguments = sys.argv[1:]
with open({record!r}, "a") as record:
    record.write(" ".join(arguments) + chr(10))
if {fails}:
    sys.exit(255)
if "-L" not in arguments:
    env = {{"HOME": {home!r}, "PATH": os.environ["PATH"]}}
    sys.exit(subprocess.run(["sh", "-c", arguments[-1]], env=env).returncode)
_, port, host, far = arguments[arguments.index("-L") + 1].split(":")
def pump(source, target):
    while data := source.recv(65536):
        target.sendall(data)
    target.shutdown(socket.SHUT_WR)
with socket.create_server(("127.0.0.1", int(port))) as listening:
    while True:
        near = listening.accept()[0]
        other = socket.create_connection((host, int(far)))
        threading.Thread(target=pump, args=(near, other), daemon=True).start()
        threading.Thread(target=pump, args=(other, near), daemon=True).start()
"""


@pytest.fixture
def ssh(tmp_path, monkeypatch):
    """A program `ssh` on PATH that reaches a machine whose home is `tmp_path/far`."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def make(*, fails: bool = False) -> Path:
        text = FAKE_SSH.format(
            python=sys.executable, record=str(tmp_path / "ssh.log"), home=str(tmp_path / "far"), fails=fails
        )
        (folder / "ssh").write_text(text)
        (folder / "ssh").chmod(0o755)
        return tmp_path / "ssh.log"

    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return make


def test_a_server_behind_ssh(api, cli, ssh, tmp_path, monkeypatch):
    job = api.job()
    record = ssh()
    (tmp_path / "far" / ".local" / "share").mkdir(parents=True)
    (tmp_path / "far" / ".local" / "share" / "orch").symlink_to(api.home.root)
    monkeypatch.setenv("ORCH_HOME", str(tmp_path / "near"))
    assert job in cli.ok("status", "--cluster", "ssh://user@host:2222")
    asked, forwarded = record.read_text().splitlines()
    assert asked.startswith("-T -p 2222 user@host ")
    assert forwarded.endswith("-p 2222 user@host")
    assert not (tmp_path / "near").exists()


def test_ssh_to_a_machine_without_a_server(cli, ssh, tmp_path):
    ssh()
    (tmp_path / "far").mkdir()
    told = cli.refused(NoServer, "status", "--cluster", "ssh://host")
    assert "no server runs" in told


def test_ssh_that_fails(cli, ssh):
    ssh(fails=True)
    assert "ssh failed" in cli.refused(NoServer, "status", "--cluster", "ssh://host")


def test_without_the_program_ssh(cli, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "`ssh`" in cli.refused(WrongUse, "status", "--cluster", "ssh://host")


def test_completion_knows_the_jobs_and_is_silent_without_a_server(api, monkeypatch, tmp_path):
    job = api.job()
    assert known_jobs() == [job]
    monkeypatch.setenv("ORCH_HOME", str(tmp_path / "nothing"))
    assert known_jobs() == []


def test_start_for_other_machines_needs_tls_or_an_explicit_word(home, cli, bootstrap):
    assert "--insecure-listen" in cli.refused(WrongUse, "server", "start", "--listen", "0.0.0.0:8443")
    assert "--listen ADDRESS" in cli.refused(WrongUse, "server", "start", "--insecure-listen")
    assert "both" in cli.refused(WrongUse, "server", "start", "--listen", "0.0.0.0:8443", "--tls-cert", "a")
    assert not bootstrap.was_started
    bootstrap.says({"ready": RECORD | {"listens": "http://0.0.0.0:8443"}})
    result = cli(
        "server", "start", "--listen", "0.0.0.0:8443", "--insecure-listen", "--listen-name", "a.example"
    )
    assert "for other machines at http://0.0.0.0:8443" in result.stdout
    given = json.loads(bootstrap.arguments[4])
    assert (given["address"], given["insecure"], given["names"]) == ("0.0.0.0:8443", True, ["a.example"])


def test_a_server_that_runs_already_does_not_listen_elsewhere(cli, bootstrap):
    bootstrap.says({"ready": RECORD})
    result = cli("server", "start", "--listen", "127.0.0.1:8443")
    assert "stopping and starting" in result.stderr


def test_the_store_and_its_way_down(home, cli):
    assert "no store yet" in cli.refused(WrongUse, "server", "store")
    Store.open(home, {}).close()
    newest = cli.json("server", "store")["store"]["version"]
    assert f"version {newest}" in cli.ok("server", "store")
    assert f"version 1, before {newest}" in cli.ok("server", "store", "--to", "1")
    assert cli.json("server", "store")["store"]["version"] == 1
    assert "from 1 to 1" in cli.refused(WrongUse, "server", "store", "--to", "2")
    home.write_server(ServerRecord(**RECORD))
    assert "server stop" in cli.refused(WrongUse, "server", "store", "--to", "1")
