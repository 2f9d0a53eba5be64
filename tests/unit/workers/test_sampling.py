from __future__ import annotations

import os
import subprocess
import sys

import pytest

from orch_workers.process.sampling import Sampler, select_gpus
from support.processes import Fifo

MIB = 1 << 20


class FakeClock:
    now_s = 100.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return FakeClock()


def test_memory_of_a_tree_counts_what_is_its_own(tmp_path):
    fifo = Fifo(tmp_path)
    code = "import sys; x = bytearray(64 << 20); open(sys.argv[1], 'w').write('1\\n'); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(fifo.path)]
    children = [subprocess.Popen(command, stdin=subprocess.PIPE) for _ in range(2)]
    fifo.lines(2)
    found = Sampler("").sample([child.pid for child in children])
    for child in children:
        child.communicate(b"")
    assert found["processes"] == 2
    assert 128 * MIB < found["memory_bytes"] < 256 * MIB


def test_cpu_is_told_from_the_second_sample_on(clock):
    sampler = Sampler("", clock=clock)
    assert sampler.sample([os.getpid()])["cpu_percent"] is None
    before = sum(os.times()[:2])
    while sum(os.times()[:2]) < before + 0.1:
        pass
    clock.now_s += 1
    found = sampler.sample([os.getpid()])["cpu_percent"]
    assert found is not None
    assert found >= 9
    clock.now_s += 1
    assert sampler.sample([])["cpu_percent"] == 0


def test_who_has_ended_is_left_out(clock):
    child = subprocess.Popen(["true"])
    child.wait()
    found = Sampler("", clock=clock).sample([child.pid, os.getpid()])
    assert found["processes"] == 1


def test_gpus_are_asked_for_only_where_some_are_visible():
    asked = []

    def gpus(visible):
        asked.append(visible)
        return [{"index": 0}]

    assert Sampler("", gpus=gpus).sample([])["gpus"] == []
    assert Sampler("0", gpus=gpus).sample([])["gpus"] == [{"index": 0}]
    assert Sampler(None, gpus=gpus).sample([])["gpus"] == [{"index": 0}]
    assert asked == ["0", None]


def test_the_machines_gpus_can_be_asked_for():
    """None on most machines that test this; what is there must be described whole."""
    for gpu in Sampler(None).sample([])["gpus"]:
        assert set(gpu) == {"index", "name", "busy_percent", "memory_used_bytes", "memory_total_bytes"}
        assert 0 < gpu["memory_used_bytes"] <= gpu["memory_total_bytes"]


@pytest.mark.parametrize(
    ("visible", "indices"),
    [
        ("0,2", [0, 2]),
        ("2, 0", [2, 0]),
        ("GPU-bb", [1]),
        ("GPU-cc11,GPU-aa", [2, 0]),
        ("0,7,1", [0]),
        ("0,-1,1", [0]),
        ("NoDevFiles", []),
        ("", []),
    ],
)
def test_visible_gpus_are_read_as_cuda_reads_them(visible, indices):
    assert select_gpus(visible, ["GPU-aa11", "GPU-bb11", "GPU-cc11"]) == indices
