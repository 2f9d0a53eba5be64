"""`orch submit`: what it takes, what it shows without doing it, and everything it refuses."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.jobs import log_of, write_job
from support.server import Server

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("own_jobs")]

BOMB = "a: &a [x]\n" + "".join(
    f"b{i}: &b{i} [{', '.join([f'*b{i - 1}' if i else '*a'] * 9)}]\n" for i in range(9)
)
REFUSED: dict[str, tuple[str | bytes, int, str]] = {
    "empty file": ("", 1, "empty"),
    "a list": ("- run: x\n", 1, "holds a list"),
    "duplicate keys": ("run: x\nrun: y\n", 2, "stands here twice"),
    "tabs": ("run: x\nresources:\n\tcpus: 1\n", 3, "a tab stands here"),
    "anchor": ("run: &r x\nname: *r\n", 1, "anchor"),
    "merge key": ("run: x\nenv:\n  <<: {A: b}\n", 3, "merge keys"),
    "10 MB": (b"run: x\n" + b"#" * (10 << 20), 0, "larger than 1 MiB"),
    "5,000 brackets": ("run: " + "[" * 5000, 1, "32 levels"),
    "alias bomb": (BOMB, 1, "anchor"),
    "wrong type": ("run: x\nresources: {cpus: many}\n", 2, "'many'"),
    "negative": ("run: x\nresources: {gpus: -1}\n", 2, "-1 is not possible"),
    "NaN": ("run: x\nresources: {cpus: .nan}\n", 2, "nan is not possible"),
    "unknown key": ("run: x\ncheckpoint:\n  evry: {steps: 5}\n", 3, "did you mean 'every'?"),
    "not UTF-8": (b"run: x\nname: caf\xe9\n", 2, "not UTF-8"),
    "missing workdir": ("run: x\nworkdir: nowhere\n", 2, "nowhere"),
    "chained storage": ("run: x\ncheckpoint:\n  storage: simplecache::http://h/\n", 3, "chained"),
    "http storage": ("run: x\ncheckpoint: {storage: 'http://h/x'}\n", 2, "checkpoint.storage"),
    "name with ../": ("run: x\nname: ../up\n", 2, "'../up'"),
    "name with spaces": ("run: x\nname: my job\n", 2, "'my job'"),
    "name with emoji": ("run: x\nname: 🚀\n", 2, "name"),
    "name of 300 characters": (f"run: x\nname: {'n' * 300}\n", 2, "57"),
    "missing requirements": ("run: x\npython: {requirements: r.txt}\n", 0, "r.txt is not in the workdir"),
    "secret without a value": ("run: x\nsecrets: [ORCH_TEST_UNSET]\n", 0, "ORCH_TEST_UNSET"),
}


@pytest.fixture
def nobody(tmp_path: Path) -> Server:
    """A home where no server runs, and that must not come to be; /tmp is its own, to see what is left in it."""
    (tmp_path / "tmp").mkdir()
    return Server(tmp_path / "home", {"TMPDIR": str(tmp_path / "tmp"), "LC_ALL": "C.UTF-8"})


def _assert_untouched(nobody: Server) -> None:
    assert not nobody.home.exists()
    assert not list(Path(nobody.env["TMPDIR"]).iterdir())


@pytest.mark.parametrize("case", REFUSED)
def test_refused_job_files(case: str, nobody: Server, tmp_path: Path) -> None:
    text, line, part = REFUSED[case]
    file = tmp_path / "work" / "job.yaml"
    file.parent.mkdir()
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    done = nobody.cli("submit", str(file), check=2)
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert part in done.stderr
    assert len(done.stderr) < 10_000, "the first problems, and how many more"
    if line:
        assert f"job.yaml:{line}: " in done.stderr
    _assert_untouched(nobody)


def test_all_problems_at_once(nobody: Server, tmp_path: Path) -> None:
    write_job(tmp_path / "work", "x", name="Bad Name", checkpoint={"evry": 1}, priority="high")
    said = nobody.cli("submit", str(tmp_path / "work" / "job.yaml"), check=2).stderr
    assert len(said.splitlines()) == 3
    for part in ("'Bad Name'", "'evry'", "'high'"):
        assert part in said
    _assert_untouched(nobody)


def _with_socket(work: Path) -> Callable[[], object]:
    listener = socket.socket(socket.AF_UNIX)
    before = Path.cwd()
    os.chdir(work)  # its path may be longer than a socket's may
    listener.bind("here.sock")
    os.chdir(before)
    return listener.close


def _with_cycle(work: Path) -> None:
    (work / "below").mkdir()
    (work / "below" / "up").symlink_to("..")


def _with_2_gb(work: Path) -> None:
    with (work / "data.bin").open("wb") as file:
        file.truncate(2 << 30)


@pytest.mark.parametrize(
    ("make", "named"), [(_with_socket, "here.sock"), (_with_cycle, "below/up"), (_with_2_gb, "data.bin")]
)
def test_refused_workdirs(
    make: Callable[[Path], Any], named: str, nobody: Server, server: Server, tmp_path: Path
) -> None:
    folder = write_job(tmp_path / "work", "true")
    close = make(folder)
    said = nobody.cli("submit", str(folder / "job.yaml"), check=2).stderr
    assert named in said
    assert ".orchignore" in said
    assert "Traceback" not in said
    _assert_untouched(nobody)
    (folder / ".orchignore").write_text(f"{named}\n")
    assert server.submit(folder), "excluded as it says, it is taken"
    if close is not None:
        close()


def _traces(server: Server) -> tuple[set[str], set[str]]:
    jobs = {job["id"] for job in server.client().jobs(limit=1000)}
    return jobs, {path.name for path in (server.home / "storage").iterdir()}


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_unwritable_storage(dry: list[str], nobody: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    folder = write_job(tmp_path / "work", "true", checkpoint={"storage": str(tmp_path / "file" / "below")})
    said = nobody.cli("submit", str(folder / "job.yaml"), *dry, check=2).stderr
    assert "checkpoint.storage" in said
    assert "Traceback" not in said
    _assert_untouched(nobody)
    assert (tmp_path / "file").read_text() == "in the way"


def test_s3_that_is_not_there(server: Server, nobody: Server, tmp_path: Path) -> None:
    """Refused by a server that is there; where none is, none is started to find it out."""
    storage = {"url": "s3://nowhere/x", "options": {"endpoint_url": "http://127.0.0.1:9"}}
    env = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "us-east-1"}
    folder = write_job(tmp_path / "work", "true", checkpoint={"storage": storage}, env=env)
    before = _traces(server)
    for asked in (server, nobody):
        said = asked.cli("submit", str(folder / "job.yaml"), check=2).stderr
        assert "checkpoint.storage" in said
        assert "Traceback" not in said
    assert _traces(server) == before
    _assert_untouched(nobody)


def test_s3_without_the_extra(nobody: Server, tmp_path: Path) -> None:
    """An environment without s3fs, as `pip install orch` alone makes it."""
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "sitecustomize.py").write_text(
        "from importlib.machinery import PathFinder\n"
        "found = PathFinder.find_spec\n"
        "PathFinder.find_spec = lambda name, *more: None if name == 's3fs' else found(name, *more)\n"
    )
    before = nobody.env.get("PYTHONPATH")
    nobody.env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(hidden), before]))
    folder = write_job(tmp_path / "work", "true", checkpoint={"storage": "s3://bucket/prefix"})
    said = nobody.cli("submit", str(folder / "job.yaml"), check=2).stderr
    assert "orch[s3]" in said
    assert "Traceback" not in said
    _assert_untouched(nobody)
    assert importlib.util.find_spec("s3fs"), "here it is installed"


def test_never_placeable(server: Server, nobody: Server, tmp_path: Path) -> None:
    folder = write_job(tmp_path / "work", "true", resources={"cpus": 4096, "gpus": 3, "memory": "2GiB"})
    most = max(node["cpus"] for node in server.client().server()["nodes"])
    before = _traces(server)
    said = server.cli("submit", str(folder / "job.yaml"), check=2).stderr
    for number in ("4096", f"{most:g}", "3 GPU"):
        assert number in said, said
    assert _traces(server) == before
    for one in (server, nobody):
        dry = one.cli("submit", str(folder / "job.yaml"), "--dry-run", check=2)
        assert "4096" in dry.stderr
        assert "can never be placed" in dry.stdout
    _assert_untouched(nobody)


def test_dry_run(server: Server, nobody: Server, tmp_path: Path) -> None:
    folder = write_job(
        tmp_path / "work",
        "python train.py",
        {"train.py": "import orch\n", "notes.txt": "n" * 5000, ".orchignore": "*.txt\n"},
        name="dry",
    )
    options = (
        "submit",
        str(folder / "job.yaml"),
        "--dry-run",
        "--set",
        "checkpoint.keep.last=2",
        "-e",
        "A=b",
    )
    before = _traces(server)
    for one in (server, nobody):
        shown = one.cli(*options).stdout
        for part in ("train.py", "job.yaml line 1", "default", "--set", "can be placed", "left out"):
            assert part in shown, part
        assert "notes.txt" not in shown
    document = json.loads(server.cli(*options, "-o", "json").stdout)
    assert document["job"]["run"] == "python train.py"
    assert document["job"]["checkpoint"]["keep"]["last"] == 2
    assert document["job"]["checkpoint"]["every"]["seconds"] == 600
    assert document["job"]["env"] == {"A": "b"}
    assert document["origins"]["checkpoint.keep.last"].startswith("--set")
    assert document["placement"]["placeable"] is True
    assert {file["path"] for file in document["code"]["files"]} == {"train.py", "job.yaml", ".orchignore"}
    assert document["code"]["left_out"] == 1
    assert _traces(server) == before
    _assert_untouched(nobody)


def test_options_change_the_job(server: Server, tmp_path: Path) -> None:
    folder = write_job(tmp_path / "work", "echo $A $B $C", env={"A": "1", "B": "1"})
    one = Server(server.home, {"C": "from the shell"})
    options = ("--set", "env.B='2 of set'", "--env", "C", "--name", "renamed", "--set", "priority=-4")
    job = one.submit(folder, *options)
    assert job.startswith("renamed-")
    found = server.wait(job)
    assert (found["name"], found["priority"]) == ("renamed", -4)
    assert log_of(server, job) == "1 2 of set from the shell\n"
    for wrong in (
        ["--set", "checkpoint.evry=1"],
        ["--set", "nonsense"],
        ["--env", "NOT_SET_ANYWHERE"],
        ["--name", "A B"],
    ):
        said = server.cli("submit", str(folder / "job.yaml"), *wrong, check=2).stderr
        assert wrong[1].partition("=")[0] in said
        assert "Traceback" not in said


def test_standard_input(server: Server, tmp_path: Path) -> None:
    folder = write_job(tmp_path / "work", "", {"said.txt": "by a file of the current folder\n"})
    (folder / "job.yaml").unlink()
    done = subprocess.run(
        [sys.executable, "-m", "orch.cli.main", "submit", "-", "--quiet", "--follow"],
        input="run: cat said.txt\n", env=server.env, cwd=folder, text=True, capture_output=True, check=True, timeout=60,
    )  # fmt: skip
    job, *log = done.stdout.splitlines()
    assert job.startswith("work-")
    assert log == ["by a file of the current folder"]
    empty = subprocess.run(
        [sys.executable, "-m", "orch.cli.main", "submit", "-"],
        input="", env=server.env, cwd=folder, text=True, capture_output=True, check=False, timeout=60,
    )  # fmt: skip
    assert empty.returncode == 2
    assert "empty" in empty.stderr


def test_what_is_shipped(server: Server, tmp_path: Path) -> None:
    """All but what .gitignore and .orchignore name; modes and links kept; what the job writes is not written back."""
    folder = write_job(
        tmp_path / "work",
        "find . -type f -o -type l | sort; ./tool.sh; cat link; echo more >> data.txt; pwd",
        {
            "tool.sh": "#!/bin/sh\necho a tool\n",
            "data.txt": "data\n",
            "big/weights.bin": "w",
            "scratch.tmp": "t",
            "sub/kept.py": "",
            ".gitignore": "*.tmp\n",
            ".orchignore": "big/\n",
            ".venv/lib.py": "",
            "__pycache__/x.pyc": "",
        },
    )
    (folder / "tool.sh").chmod(0o755)
    (folder / "link").symlink_to("data.txt")
    job = server.submit(folder)
    server.wait(job)
    *lines, place = log_of(server, job).splitlines()
    shipped = [
        "./.gitignore",
        "./.orchignore",
        "./data.txt",
        "./job.yaml",
        "./link",
        "./sub/kept.py",
        "./tool.sh",
    ]
    assert lines == [*shipped, "a tool", "data"]
    assert not Path(place).is_relative_to(folder)
    assert not Path(place).exists(), "its working copy is gone with it"
    assert (folder / "data.txt").read_text() == "data\n"
    again = server.submit(folder)
    assert server.wait(again)["code"]["digest"] == server.job(job)["code"]["digest"]
    assert log_of(server, again).splitlines()[:-1] == lines, "a fresh copy for each job"


def test_git_commit_is_recorded(server: Server, tmp_path: Path) -> None:
    folder = write_job(tmp_path / "work", "true")
    git = ["git", "-C", str(folder), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    for step in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"]):
        subprocess.run([*git, *step], check=True)
    commit = subprocess.run(
        [*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True
    ).stdout.strip()
    code = server.wait(server.submit(folder))["code"]
    assert (code["git_commit"], code["git_dirty"]) == (commit, False)
    (folder / "more.py").write_text("")
    code = server.wait(server.submit(folder))["code"]
    assert (code["git_commit"], code["git_dirty"]) == (commit, True)


def test_ship_never(server: Server, tmp_path: Path) -> None:
    folder = write_job(tmp_path / "work", "pwd; echo in place > made.txt", ship="never")
    job = server.submit(folder)
    assert server.wait(job)["code"] is None
    assert log_of(server, job).strip() == str(folder)
    assert (folder / "made.txt").read_text() == "in place\n"
    elsewhere = write_job(tmp_path / "other", "true", ship="never", workdir=str(tmp_path / "gone"))
    assert "gone" in server.cli("submit", str(elsewhere / "job.yaml"), check=2).stderr


UNPROTECTED = {
    "a plain command": ("true", {}, True),
    "import orch": ("python train.py", {"train.py": "import orch\n"}, False),
    "from a module of its own": ("python -m pkg", {"pkg/__main__.py": "import os, orch\n"}, False),
    "in the command": ("python -c 'import orch'", {}, False),
}


@pytest.mark.parametrize("case", UNPROTECTED)
def test_unprotected_is_said(case: str, server: Server, tmp_path: Path) -> None:
    run, files, expected = UNPROTECTED[case]
    folder = write_job(tmp_path / "work", run, files)
    done = server.cli("submit", str(folder / "job.yaml"))
    job = done.stdout.split()[0]
    assert ("UNPROTECTED" in done.stdout) is expected
    assert ("starts over" in done.stderr) is expected
    assert (server.job(job)["flags"] == ["UNPROTECTED"]) is expected
    assert ("UNPROTECTED" in server.cli("status", job).stdout) is expected


def test_unprotected_is_corrected(server: Server, tmp_path: Path) -> None:
    """What a look at the code could not tell shows as soon as the script speaks."""
    script = "import importlib\norch = importlib.import_module('or' + 'ch')\nrun = orch.training(n=1)\nrun.step()\n"
    folder = write_job(tmp_path / "work", "python train.py", {"train.py": script})
    done = server.cli("submit", str(folder / "job.yaml"))
    assert "UNPROTECTED" in done.stdout
    job = done.stdout.split()[0].rstrip(",")
    assert server.wait(job)["flags"] == []


@pytest.fixture(autouse=True)
def _no_large_files(tmp_path: Path) -> Iterator[None]:
    yield
    shutil.rmtree(tmp_path / "work", ignore_errors=True)
