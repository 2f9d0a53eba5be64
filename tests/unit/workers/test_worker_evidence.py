"""Ends as they really are: signals, codes, exceptions and kills for lack of memory, by the kernel itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from orch_policies.restart import Budgets
from orch_workers.process.evidence import KERNEL_LOG, Group, OomWatch, memory_group
from support.memory_groups import limited_group

AT_ONCE = {"budgets": Budgets(backoff_initial_s=0.0, max_failures=1).to_dict()}
ONCE = {"budgets": Budgets(max_failures=0).to_dict()}
LIMIT_BYTES = 64 << 20

ENDS = {
    "segfault": (
        "import ctypes; ctypes.string_at(0)",
        None,
        11,
        "killed by SIGSEGV (a crash in native code)",
    ),
    "killed": ("os.kill(os.getpid(), 9)", None, 9, "killed by SIGKILL"),
    "abort": ("os.abort()", None, 6, "killed by SIGABRT (aborted by native code)"),
    "terminated": (
        "os.kill(os.getpid(), 15)",
        None,
        15,
        "killed by SIGTERM (told to end by someone else than orch)",
    ),
    "exception": ("raise ValueError('bad batch')", 1, None, "exited with code 1 (ValueError: bad batch)"),
    "import_error": (
        "import no_such_module",
        1,
        None,
        "exited with code 1 (import error: ModuleNotFoundError: No module named 'no_such_module')",
    ),
    "exit": ("sys.exit(3)", 3, None, "exited with code 3"),
    "out_of_memory": (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 28, 1 << 28)); bytearray(1 << 30)",
        1,
        None,
        "exited with code 1 (out of memory: MemoryError)",
    ),
}


@pytest.mark.parametrize("cause", ENDS)
def test_a_real_end_is_told_with_its_cause(machine, cause):
    code, exit_code, signal, sentence = ENDS[cause]
    (machine.workdir / "end.py").write_text(f"import os, sys\n{code}\n")
    worker = machine.worker(run="python end.py", policy=ONCE)
    end, (exited,) = worker.end(), worker.told("ProcessExited")
    assert (exited["cause"], exited["code"], exited["signal"]) == (cause, exit_code, signal)
    assert exited["what"] == sentence
    assert exited["advice"]
    assert "reported by wait" in exited["evidence"]
    assert exited["detect_s"] >= 0
    assert end["outcome"] == "failed"
    assert end["reason"].startswith(sentence)


def test_the_whole_traceback_is_kept_with_those_it_arose_from(machine):
    script = "try:\n    {}['deep']\nexcept KeyError as error:\n    raise ValueError('shallow') from error\n"
    (machine.workdir / "end.py").write_text(script)
    worker = machine.worker(run="python end.py", policy=ONCE)
    for part in ("KeyError: 'deep'", "direct cause", "ValueError: shallow", "end.py"):
        assert part in worker.end()["traceback"]


def test_a_shell_passes_a_signal_on_as_a_code(machine):
    """As `python x | tee` with pipefail, or a script of a person, does."""
    worker = machine.worker(run="sh -c 'kill -SEGV $$' ; exit $?", policy=ONCE)
    worker.end()
    (exited,) = worker.told("ProcessExited")
    assert (exited["cause"], exited["code"]) == ("segfault", 139)
    assert "its shell says: killed by SIGSEGV" in exited["what"]


@pytest.fixture
def small_group():
    """Where the machine allows none, the tests cannot be tried."""
    with limited_group(LIMIT_BYTES) as group:
        yield group


EATER = """
import os, sys
open(sys.argv[1] + "/cgroup.procs", "w").write(str(os.getpid()))
print("in", flush=True)
sys.stdin.readline()
hoard = [bytearray(1 << 20) for _ in range(1000)]
"""


def eat(group: Path, watch: OomWatch, *, look: bool) -> subprocess.Popen[str]:
    """A process that the kernel kills for lack of memory; `look`: the watch sees it in its group before."""
    eater = subprocess.Popen(
        [sys.executable, "-c", EATER, str(group)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert eater.stdin is not None
    assert eater.stdout is not None
    with eater.stdin, eater.stdout:
        assert eater.stdout.readline() == "in\n"
        watch.begin(eater.pid if look else os.getpid())
        eater.stdin.write("go\n")
        eater.stdin.flush()
        assert eater.wait() == -9
    return eater


def test_the_kernels_own_record_of_a_kill_is_found(small_group):
    if small_group is None or not os.access(KERNEL_LOG, os.R_OK):
        assert OomWatch(Path("/nowhere")).found() == ""
        return
    watch = OomWatch()
    eater = eat(small_group, watch, look=True)
    assert f"Killed process {eater.pid} (" in watch.found()
    watch.begin(os.getpid())
    assert watch.found() == "", "what was before counts no more"
    other = OomWatch()
    eat(small_group, other, look=False)
    assert other.found() == "", "it was none of ours"
    watch.close()
    other.close()


def test_the_counter_of_its_memory_group_is_the_next_best(small_group, tmp_path):
    watch = OomWatch(tmp_path / "no kernel log")
    if small_group is not None:
        eat(small_group, watch, look=True)
        assert watch.found().startswith("the kernel counted 1 kill(s) for lack of memory in its memory group")
        assert "limit 64 MiB" in watch.found()


def test_a_training_process_that_the_kernel_killed_is_told_so(machine, small_group):
    if small_group is None:
        return
    (machine.workdir / "end.py").write_text(EATER.replace("sys.stdin.readline()", ""))
    worker = machine.worker(run=f"python end.py {small_group}", policy=ONCE)
    assert "killed by the kernel for lack of memory" in worker.end()["reason"]
    (exited,) = worker.told("ProcessExited")
    assert (exited["cause"], exited["signal"]) == ("oom_kill", 9)
    assert "Killed process" in exited["evidence"]
    assert "smaller batch" in exited["advice"]


def fake_machine(folder: Path, membership: str, counter: str, content: str) -> tuple[Path, Path]:
    """/proc and /sys/fs/cgroup as they look where one process is in one group."""
    processes, cgroups = folder / "proc", folder / "cgroup"
    (processes / "7").mkdir(parents=True)
    (processes / "7" / "cgroup").write_text(membership)
    (cgroups / counter).parent.mkdir(parents=True)
    (cgroups / counter).write_text(content)
    return processes, cgroups


@pytest.mark.parametrize(
    ("membership", "counter"),
    [
        ("0::/user.slice/job.scope\n", "user.slice/job.scope/memory.events"),
        ("4:memory:/docker/ab\n0::/\n", "memory/docker/ab/memory.oom_control"),
        ("9:name=systemd:/x\n4:memory:/x\n0::/x\n", "memory/x/memory.oom_control"),
        ("0::/kubepods/pod1/c1\n", "memory.events"),
        ("4:memory:/docker/ab\n", "memory/memory.oom_control"),
        ("0::/job\n4:cpu:/\n", "unified/job/memory.events"),
    ],
)
def test_the_counter_is_found_in_both_versions(tmp_path, membership, counter):
    """Files as recorded on Debian 12 (v2), Docker (v1 and v2), Kubernetes (v2, the group's own mount)."""
    content = "low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 0\n"
    if counter.endswith("oom_control"):
        content = "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"
    processes, cgroups = fake_machine(tmp_path, membership, counter, content)
    assert memory_group(7, processes, cgroups) == Group(cgroups / counter, 2)


def test_a_process_that_is_gone_has_no_group(tmp_path):
    assert memory_group(7, tmp_path, tmp_path) is None
    watch = OomWatch(tmp_path / "none")
    watch.begin(2**22 + 1)
    assert watch.found() == ""
