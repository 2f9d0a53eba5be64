"""Keeping one standby, and doing without: it dies, is not ready, is not wanted, or there can be none."""

from __future__ import annotations

import os
import signal
import stat
import sys
import threading
from pathlib import Path

import pytest

from orch_workers import guard
from orch_workers.process import leftovers, priority
from orch_workers.process.sampling import Sampler
from orch_workers.standby import process as standby_process
from orch_workers.standby import standby
from orch_workers.standby.command import UnsupportedError, python_command
from orch_workers.standby.record import read_record
from support.processes import Fifo, is_alive, wait_dead
from support.server import wait_for
from support.standby import LIMIT_S, Stage

SCRIPT = "import plain\nopen('out', 'w').write('done')\n"
SLOW = "import os, plain\nopen(os.environ['FIFO'] + '.go').read()\n"


@pytest.fixture
def stage(tmp_path):
    one = Stage(tmp_path, train=SCRIPT, slow=SLOW)
    yield one
    one.close()


def waiting(stage):
    one = stage.standby._waiting
    assert one is not None
    return one


def test_a_standby_takes_over_and_the_next_one_stands_by_in_its_place(stage):
    first = stage.fresh("python", "train.py")
    places = []
    for _ in range(3):
        stage.warm()
        places.append(waiting(stage).place.name)
        assert stage.taken("python", "train.py") == first
    assert places == ["standby", "state", "standby"]


def test_it_waits_at_the_lowest_priority(stage):
    stage.fresh("python", "train.py")
    stage.warm()
    pid = waiting(stage).process.pid
    assert os.getpriority(os.PRIO_PROCESS, pid) == guard.IDLE_NICE
    assert os.sched_getscheduler(pid) == os.SCHED_IDLE
    session = Path(f"/proc/{pid}/autogroup")  # not in every kernel
    assert not session.exists() or session.read_text().split()[-1] == str(guard.IDLE_NICE)


def test_a_user_who_cannot_raise_priorities_again_gets_one_that_is_warmed_bit_by_bit(stage, monkeypatch):
    monkeypatch.setattr(priority, "can_be_restored", lambda: False)
    fresh = stage.fresh("python", "train.py")
    stage.warm()
    pid = waiting(stage).process.pid
    assert os.getpriority(os.PRIO_PROCESS, pid) == os.getpriority(os.PRIO_PROCESS, 0)
    assert stage.taken("python", "train.py") == fresh


def test_a_standby_that_is_killed_is_replaced(stage, monkeypatch):
    monkeypatch.setattr(standby, "PAUSE_S", 0.01)
    fresh = stage.fresh("python", "train.py")
    stage.warm()
    first = waiting(stage).process.pid
    os.kill(first, signal.SIGKILL)
    wait_for("another one", lambda: stage.standby._waiting and waiting(stage).process.pid != first, LIMIT_S)
    stage.warm()
    assert stage.taken("python", "train.py") == fresh


def test_after_many_deaths_no_more_are_made(stage, monkeypatch):
    monkeypatch.setattr(standby, "PAUSE_S", 0.0)
    monkeypatch.setattr(standby, "LOST_MAX", 1)
    stage.fresh("python", "train.py")
    for _ in range(2):
        stage.warm()
        dead = waiting(stage)
        os.kill(dead.process.pid, signal.SIGKILL)
        wait_for("it is gone", lambda dead=dead: stage.standby._waiting is not dead, LIMIT_S)
    wait_for("it is said", lambda: "died unasked" in stage.standby.status().get("why", ""), LIMIT_S)


@pytest.mark.parametrize("moment", ["before", "at once"])
def test_one_that_is_dead_when_it_is_called_is_no_loss(stage, moment):
    fresh = stage.fresh("python", "train.py")
    stage.warm()
    one = waiting(stage)
    os.kill(one.process.pid, signal.SIGKILL)
    if moment == "before":
        wait_dead(one.process.pid)
    assert stage.take_over("python", "train.py") is None
    assert stage.fresh("python", "train.py") == fresh


def test_one_that_does_not_answer_is_killed_and_no_loss(stage, monkeypatch):
    monkeypatch.setattr(standby_process, "TAKE_OVER_LIMIT_S", 0.2)
    stage.fresh("python", "train.py")
    stage.warm()
    pid = waiting(stage).process.pid
    os.kill(pid, signal.SIGSTOP)
    assert stage.take_over("python", "train.py") is None
    assert not is_alive(pid)


def test_one_that_is_called_while_it_warms_finishes_its_import_and_takes_over(stage):
    fifo = Fifo(stage.folder)
    stage.env["FIFO"] = str(fifo.path)
    waits = "import os\nif 'ORCH_NOW' not in os.environ:\n    pass\n"
    (stage.libraries / "first.py").write_text(waits)
    (stage.libraries / "second.py").write_text("")
    (stage.work / "train.py").write_text("import first, second\nopen('out', 'w').write(second.__name__)\n")
    fresh = stage.fresh("python", "train.py")
    # From here on the first import waits for the test.
    (stage.libraries / "first.py").write_text("import os\nopen(os.environ['FIFO'] + '.go').read()\n")
    stage.standby.began(stage._over, lambda: True)
    wait_for("one is warming", lambda: stage.standby.status()["state"] == "warming", LIMIT_S)
    done = []
    caller = threading.Thread(target=lambda: done.append(stage.take_over("python", "train.py")))
    stage._clear()
    caller.start()
    fifo.go()
    caller.join(LIMIT_S)
    assert done != [None]
    assert stage.finish().files == fresh.files


@pytest.mark.parametrize("change", [{"EXTRA": "1"}, {"LANG": "C"}])
def test_one_with_another_environment_is_not_used(stage, change):
    stage.fresh("python", "train.py")
    stage.warm()
    pid = waiting(stage).process.pid
    stage.env |= change
    assert stage.take_over("python", "train.py") is None
    wait_dead(pid)


def test_a_changed_command_is_not_taken_over(stage):
    stage.fresh("python", "train.py")
    stage.warm()
    assert stage.take_over("python", "train.py", "more") is None


def test_nothing_of_it_is_left_at_the_end(stage):
    stage.fresh("python", "train.py")
    stage.warm()
    pid = waiting(stage).process.pid
    stage.standby.end()
    assert not is_alive(pid)
    assert leftovers.survivors(stage.folder / "state" / "standby") == []
    pipes = stage.folder / "state" / "standby" / standby_process.FOLDER
    wait_for("its pipes are gone", lambda: not list(pipes.iterdir()), LIMIT_S)


def test_its_memory_is_told_and_a_limit_that_it_would_exceed_ends_it(stage, monkeypatch):
    monkeypatch.setattr(standby_process, "POLL_S", 0.02)
    stage.fresh("python", "train.py")
    stage.warm()
    wait_for("its memory is told", lambda: stage.standby.status().get("pss_bytes", 0) > 1 << 20, LIMIT_S)
    assert Sampler("").sample([waiting(stage).process.pid])["memory_bytes"] > 0
    pid = waiting(stage).process.pid
    stage.standby._memory_bytes = 1 << 20
    wait_dead(pid)
    wait_for("it is said", lambda: "memory" in stage.standby.status().get("why", ""), LIMIT_S)


def test_none_is_made_where_it_would_not_fit(stage):
    stage.standby = stage.new_standby(memory_bytes=100 << 20, used=lambda: 90 << 20)
    stage.fresh("python", "train.py")
    told = stage.warm()
    assert told["state"] == "none"
    assert told["why"].startswith("the job's memory would not hold it: 90 MiB are used")


def test_off_means_off(stage):
    off = standby.Standby((stage.folder / "a", stage.folder / "b"), enabled=False, on_event=print)
    env, place = off.start(["python", "train.py"], stage.env, stage.work, stage.bundle)
    assert (env, place) == (stage.env, stage.folder / "a")
    off.began(stage._over, lambda: True)
    assert off.status() == {"state": "none", "why": "off: restart.standby is false"}


def test_an_interpreter_that_does_not_read_our_file_is_never_started_with_the_script(stage):
    """A wrapper that hides PYTHONPATH: the script would run twice."""
    (stage.work / "train.py").write_text("open('out', 'a').write('run ')")
    wrapped = stage.folder / "python3"
    wrapped.write_bytes(b"\x7fELF")  # looks like one, and cannot even run
    wrapped.chmod(0o755)
    stage.env["PATH"] = f"{stage.folder}:{stage.env['PATH']}"
    argv = ["python3", "train.py"]
    env, _ = stage.standby.start(argv, stage.env, stage.work, stage.bundle)
    assert env == stage.env, "not even recorded before it was asked"
    told = stage.warm()
    assert "does not say what it is" in told["why"]
    assert not (stage.work / "out").exists()


def test_a_standby_without_its_files_never_runs_the_script(stage):
    stage.fresh("python", "train.py")
    (stage.work / "out").unlink()
    (stage.bundle / "~start" / "orch_standby" / "warm.py").write_text("raise RuntimeError('damaged')")
    for compiled in (stage.bundle / "~start").rglob("warm*.pyc"):
        compiled.unlink()
    stage.standby._probed = True  # the damage came after that
    stage.standby.began(stage._over, lambda: True)
    wait_for("it has ended", lambda: stage.standby._lost >= 1, LIMIT_S)
    assert not (stage.work / "out").exists()


def command(tmp_path, *argv, **programs):
    env = {"PATH": f"{tmp_path}:{Path(sys.executable).parent}:/usr/bin:/bin"}
    (tmp_path / "train.py").write_text("")
    (tmp_path / "folder").mkdir()
    for name, text in programs.items():
        path = tmp_path / name
        path.write_text(text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return python_command(argv, env, tmp_path)


@pytest.mark.parametrize(
    ("words", "prefix"),
    [
        ("python train.py -E -c x", "python"),
        ("python3 -uO -W ignore -Xdev train.py", "python3 -uO -W ignore -Xdev"),
        ("python -m train -I", "python"),
        ("python -Bmtrain", "python -B"),
        ("env A=1 B=2 python -u train.py", "env A=1 B=2 python -u"),
    ],
)
def test_commands_that_a_standby_can_be_made_for(tmp_path, words, prefix):
    assert command(tmp_path, *words.split()).prefix == tuple(prefix.split())


@pytest.mark.parametrize(
    "words",
    [
        "python -E train.py", "python -I train.py", "python -S train.py", "python -i train.py", "python -c pass",
        "python -", "python", "python folder", "python missing.py", "env -i python train.py",
        "env PYTHONPATH=x python train.py", "env A=1", "/bin/sh -c x", "sleep 1", "no-such-program", "wrapper train.py",
        "isolated",
    ],
)  # fmt: skip
def test_commands_without_a_standby(tmp_path, words):
    programs = {"wrapper": '#!/bin/sh\nexec python "$@"\n', "isolated": f"#!{sys.executable} -I\n"}
    with pytest.raises(UnsupportedError):
        command(tmp_path, *words.split(), **programs)


def test_console_scripts_are_read_as_the_kernel_reads_them(tmp_path):
    found = command(tmp_path, "tool", "run", tool=f"#!{sys.executable} -u\n")
    assert found.prefix == (sys.executable, "-u")
    long = f"#!/bin/sh\n'''exec' {sys.executable} \"$0\" \"$@\"\n' '''\n"
    (tmp_path / "folder").rmdir()
    assert command(tmp_path, "tool", tool=long).prefix == (sys.executable,)
    (tmp_path / "folder").rmdir()
    assert command(tmp_path, "tool", tool="#!/usr/bin/env python3\n").prefix == ("python3",)


@pytest.mark.parametrize("rest", ["", "('import', 'b', {", "nonsense\n", "('from', 'b', 3)\n", "[1]\n"])
def test_half_a_record_is_read_as_far_as_it_goes(tmp_path, rest):
    path = tmp_path / "imports"
    path.write_text(
        f"('import', 'a', {{}})\n('from', 'a', '/x/site-packages/a.py')\n('import', 'b', {{}})\n{rest}"
    )
    assert [step.name for step in read_record(path).plan({})] == ["a"]
    assert read_record(path).plan({"a": "no"}) == []
    assert read_record(tmp_path / "none").steps == []
