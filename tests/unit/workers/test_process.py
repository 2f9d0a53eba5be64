from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from orch_workers import guard
from orch_workers.process import guarded as process
from orch_workers.process import leftovers
from orch_workers.process.guarded import split_command
from support.processes import TREE, TREE_SIZE, Command, Fifo, is_alive, wait_dead


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
def fifo(tmp_path):
    return Fifo(tmp_path)


def test_a_killed_guard_is_noticed_and_what_it_kept_is_swept(tmp_path, fifo):
    command = Command(tmp_path, [sys.executable, "-c", TREE, "stay"])
    pids = fifo.pids(TREE_SIZE)
    os.kill(command.process._guard[0], signal.SIGKILL)
    gone = command.gone()
    assert gone.exited is None
    assert set(pids) - {command.process.pid} <= set(gone.swept), (
        "the command itself may end with its guard before"
    )
    assert not any(is_alive(pid) for pid in pids)


def test_guard_and_agent_killed_at_once_leave_nothing_to_the_next_agent(tmp_path, fifo):
    """The guard is killed where no agent follows it: only record and mark are left."""
    state_dir = tmp_path / "state"
    state_dir.mkdir()
    # Without the guard these are simply processes with the mark, most of them nobody's children.
    env = {**os.environ, "FIFO": str(fifo.path), leftovers.MARK_ENV: leftovers.mark_of(state_dir)}
    child = subprocess.Popen([sys.executable, "-c", TREE, "leave"], env=env)
    pids = fifo.pids(TREE_SIZE)
    fifo.go()
    child.wait()
    swept = process.wait_predecessor(state_dir, 5)
    assert set(swept) == set(pids) - {child.pid}
    for pid in pids:
        wait_dead(pid)
    assert process.wait_predecessor(state_dir, 5) == []


def test_what_is_recorded_is_swept_even_without_its_mark(tmp_path):
    child = subprocess.Popen(["sleep", "1000"], env={})
    found = guard.look_up(child.pid)
    assert found is not None
    leftovers.record_tree(tmp_path, [(child.pid, found.start_ticks)])
    assert process.survivors(tmp_path) == [child.pid]
    assert process.sweep(tmp_path) == [child.pid]
    assert child.wait() == -signal.SIGKILL


@pytest.mark.parametrize("change", ["later start", "earlier boot", "torn"])
def test_a_stale_record_kills_nobody(tmp_path, change):
    child = subprocess.Popen(["sleep", "1000"])
    found = guard.look_up(child.pid)
    assert found is not None
    leftovers.record_tree(tmp_path, [(child.pid, found.start_ticks + (change == "later start"))])
    record = tmp_path / leftovers.TREE_NAME
    if change == "earlier boot":
        record.write_text(json.dumps({**json.loads(record.read_text()), "boot_id": "another"}))
    elif change == "torn":
        record.write_text(record.read_text()[:-5])
    try:
        assert process.sweep(tmp_path) == []
        assert is_alive(child.pid)
    finally:
        child.kill()
        child.wait()


def test_the_mark_of_another_worker_is_none_of_our_business(tmp_path):
    env = {leftovers.MARK_ENV: leftovers.mark_of(tmp_path / "other")}
    child = subprocess.Popen(["sleep", "1000"], env=env)
    try:
        assert process.survivors(tmp_path / "mine") == []
        assert process.survivors(tmp_path / "other") == [child.pid]
    finally:
        child.kill()
        child.wait()


def test_a_predecessor_that_is_still_at_work_is_waited_for_and_then_named(tmp_path):
    with (tmp_path / guard.LOCK_NAME).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(process.PredecessorAliveError, match=r"guard\.lock after 0\.05 s"):
            process.wait_predecessor(tmp_path, 0.05)


def test_the_next_command_starts_as_soon_as_the_last_is_gone(tmp_path):
    for number in range(5):
        command = Command(tmp_path, ["sh", "-c", f"echo {number}"])
        assert command.finish().code == 0
    assert command.log.split() == ["0", "1", "2", "3", "4"]
    assert sorted(path.name for path in command.state_dir.iterdir()) == ["guard.err", "guard.lock"]


def test_words_to_a_process_that_is_gone_are_no_error(tmp_path):
    command = Command(tmp_path, ["true"])
    command.finish()
    command.process.stop(1)
    command.process.kill()
    command.process.signal(signal.SIGUSR1)


def test_the_tree_can_be_listed(tmp_path, fifo):
    command = Command(tmp_path, [sys.executable, "-c", TREE, "stay"])
    pids = fifo.pids(TREE_SIZE)
    assert set(command.process.tree()) == set(pids)
    recorded = {pid for pid, _ in leftovers._read_record(command.state_dir)}
    assert {command.process.pid, command.process._guard[0]} <= recorded
    command.process.kill()
    command.finish()


def test_a_large_environment_passes_through(tmp_path):
    values = {f"LARGE_{number}": "ü" * 60_000 for number in range(10)}
    command = Command(tmp_path, ["sh", "-c", "printenv LARGE_9 | wc -c"], **values)
    assert command.finish().code == 0
    assert command.log.strip() == "120001"


def test_no_descriptor_of_ours_is_left_over(tmp_path):
    Command(tmp_path, ["true"]).finish()
    before = open_descriptors()
    Command(tmp_path, ["true"]).finish()
    with (tmp_path / "state" / guard.LOCK_NAME).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(process.GuardError):
            Command(tmp_path, ["true"])
    assert open_descriptors() == before


@pytest.mark.parametrize(
    ("run", "argv"),
    [
        ("python train.py --epochs 20", ["python", "train.py", "--epochs", "20"]),
        ("python 'my train.py' --lr=0.1", ["python", "my train.py", "--lr=0.1"]),
        ('torchrun --name "a b"', ["torchrun", "--name", "a b"]),
    ],
)
def test_plain_commands_need_no_shell(run, argv):
    assert split_command(run) == argv


@pytest.mark.parametrize(
    "run",
    [
        "cd src && python train.py",
        "python train.py | tee log",
        "python train.py > log",
        "python train.py --data $HOME/data",
        "LR=0.1 python train.py",
        "python train.py *.txt",
        "source env.sh",
        "cd src",
        "python a.py\npython b.py",
        "python 'unbalanced",
        "echo `date`",
        "ls ~",
        "",
        r"echo a\ b",
    ],
)
def test_what_needs_a_shell_gets_one(run):
    assert split_command(run) == ["/bin/sh", "-c", run]
