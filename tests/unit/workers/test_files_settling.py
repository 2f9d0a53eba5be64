"""When a set of files may be copied, and who writes what: the clock is the test's, the processes are real."""

from __future__ import annotations

import mmap
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from orch_workers.files import matching
from orch_workers.files.looking import Looker
from orch_workers.files.matching import Signature, TooManyError, find
from orch_workers.files.settling import BUSY_AFTER_S, QUIET_SET_S, Settling
from orch_workers.files.writers import open_for_writing
from support.server import wait_for


def state(**files: int) -> dict[str, Signature]:
    return {name: Signature(size_bytes=size) for name, size in files.items()}


class Clock:
    """Looks at a script's files, as the watching thread does."""

    def __init__(self, files=None) -> None:
        self.now_s = 100.0
        self.settling = Settling()
        self.settling.began(files or {}, self.now_s)
        self.taken: list[dict[str, Signature]] = []

    def look(self, files, after_s: float, *, writing: bool = False) -> bool:
        self.now_s += after_s
        if not self.settling.look(files, writing=writing, now_s=self.now_s):
            return False
        self.settling.took(files)
        self.taken.append(files)
        return True


def test_a_single_file_is_taken_when_nobody_writes_it():
    clock = Clock()
    assert not clock.look(state(a=1), 0.25, writing=True)
    assert not clock.look(state(a=2), 0.25)
    assert not clock.look(state(a=2), 0.02)
    assert clock.look(state(a=2), 0.04)
    assert not clock.look(state(a=2), 5.0)


def test_a_single_file_that_was_changed_a_moment_ago_is_taken_at_once():
    clock = Clock()
    clock.now_s += 0.25
    look = clock.settling.look
    assert not look(state(a=1), writing=True, now_s=clock.now_s, age_s=5.0)
    assert not look(state(a=2), writing=False, now_s=clock.now_s, age_s=0.002)
    assert look(state(a=3), writing=False, now_s=clock.now_s, age_s=0.02)
    clock.settling.took(state(a=3))
    assert not look(state(a=3), writing=False, now_s=clock.now_s, age_s=9.0)
    assert not look(state(a=4, b=1), writing=False, now_s=clock.now_s, age_s=0.02)


def test_several_files_have_to_stand_still():
    clock = Clock(state(a=1, b=1))
    assert not clock.look(state(a=2, b=1), 0.1)
    assert not clock.look(state(a=2, b=2), 0.9)
    assert not clock.look(state(a=2, b=2), 0.9)
    assert clock.look(state(a=2, b=2), 0.2)


def test_what_was_there_before_the_start_is_no_new_version():
    clock = Clock(state(a=1))
    assert not clock.look(state(a=1), 10.0)
    assert not clock.look({}, 10.0)


def test_a_writer_that_never_lets_go_is_waited_for():
    clock = Clock(state(a=1, b=1))
    assert not any(clock.look(state(a=2, b=1), 0.5, writing=True) for _ in range(100))
    assert clock.settling.settled == state(a=1, b=1)


@pytest.mark.parametrize("trial", range(20))
def test_a_script_that_saves_all_the_time_is_learned_and_never_taken_in_the_middle(trial, seed):
    """Three files, milliseconds apart, again and again with short pauses: what is taken is always of one version."""
    chance = random.Random(seed + trial)
    gap_s, pause_s = chance.uniform(0.001, 0.12), chance.uniform(0.3, 0.8)
    clock = Clock(state(a=0, b=0, c=0))
    at_s, version = clock.now_s, 0
    events = []
    for version in range(1, 80):
        for name in "abc":
            at_s += gap_s
            events.append((at_s, name, version))
        at_s += pause_s * chance.uniform(0.8, 1.0)
    files = {"a": 0, "b": 0, "c": 0}
    while clock.now_s < at_s:
        pause = clock.settling.pause_s(0.0005)
        while events and events[0][0] <= clock.now_s + pause:
            _, name, number = events.pop(0)
            files[name] = number
        clock.look(state(**files), pause)
    assert clock.taken
    assert all(len({one.size_bytes for one in taken.values()}) == 1 for taken in clock.taken)
    assert pause_s < QUIET_SET_S < BUSY_AFTER_S


WRITER = """
import mmap, os, sys
path, how = sys.argv[1:]
if how == "mapped":
    file = open(path, "r+b")
    memory = mmap.mmap(file.fileno(), 0)
    file.close()
else:
    file = open(path, how)
print("open", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize(
    ("how", "writes", "appends"),
    [
        ("wb", True, False),
        ("r+b", True, False),
        ("ab", True, True),
        ("mapped", True, False),
        ("rb", False, False),
    ],
)
def test_who_has_a_file_open(how, writes, appends, tmp_path):
    path = tmp_path / "file with a space"
    path.write_bytes(b"content")
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), how], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        found = {one.inode: one for one in open_for_writing([process.pid, 2**22 + 1])}
        inode = path.stat().st_ino
        assert (inode in found) is writes
        assert not writes or (found[inode].path, found[inode].appends) == (str(path), appends)
    finally:
        process.communicate()
    assert path.stat().st_ino not in {one.inode for one in open_for_writing([process.pid])}


def test_a_private_mapping_is_no_writer(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"x" * 5000)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY):
        pass
    descriptor = os.open(path, os.O_RDONLY)
    with mmap.mmap(descriptor, 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE):
        os.close(descriptor)
        assert path.stat().st_ino not in {one.inode for one in open_for_writing([os.getpid()])}


def test_which_files_match(tmp_path):
    for name in (
        "a.pt",
        "b.txt",
        "runs/1/m.pt",
        "runs/1/deep/m.pt",
        "runs/x.pt",
        "models/i/ckpt",
        "models/i/s/x",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    (tmp_path / "loop").symlink_to(".")
    (tmp_path / "gone.pt").symlink_to("nowhere")
    cases = {
        "a.pt": ["a.pt"],
        "*.pt": ["a.pt"],
        "nothing.pt": [],
        "runs/**/*.pt": ["runs/1/deep/m.pt", "runs/1/m.pt", "runs/x.pt"],
        "runs/*/m.pt": ["runs/1/m.pt"],
        "models/i/**": ["models/i/ckpt", "models/i/s/x"],
        "models": ["models/i/ckpt", "models/i/s/x"],
        "**/m.pt": ["runs/1/deep/m.pt", "runs/1/m.pt"],
        "[ab].*": ["a.pt", "b.txt"],
    }
    assert {pattern: sorted(find(str(tmp_path), [pattern])) for pattern in cases} == cases


def test_a_set_has_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(matching, "FILES_MAX", 3)
    for number in range(4):
        (tmp_path / f"{number}.pt").write_bytes(b"")
    with pytest.raises(TooManyError, match="more than 3 files"):
        find(str(tmp_path), ["*.pt"])


def test_a_changed_file_has_another_signature(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"1")
    first = find(str(tmp_path), ["a"])
    assert find(str(tmp_path), ["a"]) == first

    def rewritten() -> bool:  # time stamps are as coarse as the kernel's tick
        path.write_bytes(b"2")
        return find(str(tmp_path), ["a"]) != first

    wait_for("its time stamp moves", rewritten, 5)


def test_what_python_compiles_is_no_hint(tmp_path):
    """A job in a fresh environment writes hundreds of compiled modules before its first checkpoint."""
    work, elsewhere = tmp_path / "work", tmp_path / "elsewhere"
    for folder in (work, elsewhere / "__pycache__"):
        folder.mkdir(parents=True)
    looker = Looker(work, ["*.pt"], lambda: [os.getpid()])
    with (
        (elsewhere / "__pycache__/big.pyc").open("wb") as compiled,
        (elsewhere / "model.ckpt").open("wb") as model,
    ):
        for file, size in ((compiled, 1 << 20), (model, 1 << 16)):
            file.write(bytes(size))
            file.flush()
        looker.look()
        found = [Path(path) for path, _ in looker.hints(tmp_path / "log")]
    assert [path.name for path in found if path.is_relative_to(elsewhere)] == ["model.ckpt"]
