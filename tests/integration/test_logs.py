"""`orch logs`: every byte that a command wrote, in every form one may ask for it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from support.jobs import Following, Gate, wait_output, write_job
from support.server import Server, wait_for

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("own_jobs")]

STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z  ")


def shown(server: Server, job: str, *options: str) -> str:
    return server.cli("logs", job, *options).stdout


@pytest.fixture(scope="module")
def twice(server: Server, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A job that wrote, was killed, wrote again and ended."""
    run = (
        "echo start $ORCH_GENERATION; for i in 1 2 3 4 5; do echo line $i; done;"
        " test $ORCH_GENERATION = 000001.000002 || kill -9 $$"
    )
    folder = write_job(tmp_path_factory.mktemp("twice"), run, restart={"backoff": {"initial": 0, "max": 0}})
    job = server.submit(folder)
    server.wait(job)
    return job


LINES = [f"line {number}" for number in range(1, 6)]
WHOLE = ["start 000001.000001", *LINES, "start 000001.000002", *LINES]


def test_whole_and_tail(server: Server, twice: str) -> None:
    assert shown(server, twice).splitlines() == WHOLE
    assert shown(server, twice, "--attempt", "1").splitlines() == WHOLE
    assert shown(server, twice, "--tail", "2").splitlines() == LINES[-2:]
    assert shown(server, twice, "--tail", "0") == ""
    assert shown(server, twice, "--tail", "1000").splitlines() == WHOLE
    assert shown(server, twice, "-f").splitlines() == WHOLE, "following what is over shows it and ends"


def test_timestamps_and_json(server: Server, twice: str) -> None:
    stamped = shown(server, twice, "--timestamps").splitlines()
    assert [STAMP.sub("", line) for line in stamped] == WHOLE
    assert all(STAMP.match(line) for line in stamped)
    times = [line[:27] for line in stamped]
    assert times == sorted(times)
    documents = [json.loads(line) for line in shown(server, twice, "-o", "json").splitlines()]
    assert [one["text"] for one in documents] == WHOLE
    assert {(one["attempt"], one["rank"]) for one in documents} == {(1, 0)}


def test_what_there_is_not(server: Server, twice: str) -> None:
    assert "no attempt 9" in server.cli("logs", twice, "--attempt", "9", check=2).stderr
    assert "no rank 3" in server.cli("logs", twice, "--rank", "3", check=2).stderr
    server.cli("logs", twice, "--tail", "-1", check=2)


def test_follow(server: Server, tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    job = server.submit(write_job(tmp_path / "work", f"echo first; {gate.wait}; echo last"))
    wait_output(server, job, "first")
    plain = Following(server, "logs", "-f", job)
    stamped = Following(server, "logs", "-f", job, "--tail", "1", "--timestamps")
    assert plain.line() == "first"
    assert STAMP.sub("", stamped.line()) == "first"
    gate.open()
    assert plain.line() == "last"
    assert STAMP.sub("", stamped.line()) == "last"
    assert plain.end()[0] == stamped.end()[0] == 0


def test_bytes_are_passed_on(server: Server, tmp_path: Path) -> None:
    """No encoding is assumed, no line end is needed, nothing is too much."""
    script = (
        "import sys\n"
        "out = sys.stdout.buffer\n"
        "out.write(b'\\xff\\x00\\x1b[31m\\r\\n' + b'x' * 3_000_000 + b'\\n' + '\\N{SNOWMAN}'.encode() + b'no end')\n"
    )
    job = server.submit(write_job(tmp_path / "work", "python say.py", {"say.py": script}))
    server.wait(job)
    expected = b"\xff\x00\x1b[31m\r\n" + b"x" * 3_000_000 + b"\n" + "\N{SNOWMAN}".encode() + b"no end"
    assert b"".join(part.data for part in server.client().follow_logs(job, follow=False)) == expected
    last = json.loads(shown(server, job, "-o", "json").splitlines()[-1])
    assert last["text"] == "\N{SNOWMAN}no end"


def test_copied_to_storage(server: Server, twice: str) -> None:
    def copied() -> bool:
        parts = sorted((server.home / "storage" / twice / "logs").rglob("*"))
        return b"".join(part.read_bytes() for part in parts if part.is_file()).decode().splitlines() == WHOLE

    wait_for("the log is in storage", copied, 10.0)


def test_pipe_that_is_closed(server: Server, tmp_path: Path) -> None:
    """`orch logs JOB | head -1`: no traceback."""
    job = server.submit(write_job(tmp_path / "work", "seq 1 200000"))
    server.wait(job)
    reader = Following(server, "logs", job)
    assert reader.line() == "1"
    assert reader.process.stdout is not None
    reader.process.stdout.close()
    assert reader.process.stderr is not None
    said = reader.process.stderr.read().decode()
    assert reader.process.wait(30) == 1
    reader.process.stderr.close()
    assert said == ""
