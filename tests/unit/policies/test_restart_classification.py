"""The cause from the evidence. The texts are those that the programs really write."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orch_policies.classification import (
    CAUSES,
    Failure,
    classified,
    classify,
    describe,
    error_line,
    is_own_exit,
    lost_worker,
    startup_error,
)

HEADING = 'Traceback (most recent call last):\n  File "train.py", line 3, in <module>\n    step()\n'
KERNEL = "Memory cgroup out of memory: Killed process 24104 (python) anon-rss:68224kB"


def raised(error: str, prefix: str = "") -> Failure:
    text = "epoch 1\n" + "".join(prefix + line + "\n" for line in (HEADING + error).splitlines())
    return Failure("process_exit", exit_code=1, step=3, output_tail=text)


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        ("ValueError: bad batch", "exception"),
        ("MemoryError", "out_of_memory"),
        ("MemoryError: out of it", "out_of_memory"),
        (
            "numpy.core._exceptions._ArrayMemoryError: Unable to allocate 7.45 GiB for an array with shape (10,)",
            "out_of_memory",
        ),
        (
            "RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory: you tried",
            "out_of_memory",
        ),
        ("OSError: [Errno 12] Cannot allocate memory", "out_of_memory"),
        (
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0",
            "gpu_out_of_memory",
        ),
        ("torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate", "gpu_out_of_memory"),
        ("RuntimeError: CUDA error: out of memory", "gpu_out_of_memory"),
        ("RuntimeError: CUDA error: uncorrectable ECC error encountered", "gpu_ecc"),
        ("RuntimeError: CUDA error: device-side assert triggered", "gpu_assert"),
        ("RuntimeError: CUDA error: an illegal memory access was encountered", "gpu_fault"),
        ("RuntimeError: CUDA error: unspecified launch failure", "gpu_fault"),
        ("RuntimeError: cuDNN error: CUDNN_STATUS_EXECUTION_FAILED", "gpu_fault"),
        ("RuntimeError: CUDA error: no CUDA-capable device is detected", "gpu_lost"),
        ("RuntimeError: CUDA error: all CUDA-capable devices are busy or unavailable", "gpu_lost"),
        ("RuntimeError: CUDA error: no kernel image is available for execution on the device", "gpu_driver"),
        ("RuntimeError: Found no NVIDIA driver on your system.", "gpu_driver"),
        (
            "torch.distributed.DistBackendError: NCCL error in: x.cpp:1, remote process exited",
            "communication",
        ),
        ("RuntimeError: [gloo/transport/tcp/pair.cc:553] Connection closed by peer [::1]:1", "communication"),
        ("OSError: [Errno 28] No space left on device: 'out'", "disk_full"),
        ("OSError: [Errno 24] Too many open files: 'a'", "open_files"),
        ("RuntimeError: DataLoader worker (pid 12) is killed by signal: Killed. ", "loader_worker"),
        ("KeyboardInterrupt", "interrupted"),
        ("ModuleNotFoundError: No module named 'tocrh'", "import_error"),
    ],
)
def test_an_error_has_a_cause(error, cause):
    for failure in (raised(error), raised(error, prefix="[rank0]: ")):
        assert classify(failure) == cause
        assert error.split(":", maxsplit=1)[0] in describe(failure)


@pytest.mark.parametrize(
    ("failure", "cause", "sentence"),
    [
        (Failure("process_exit", signal=9, step=52), "killed", "killed by SIGKILL at step 52"),
        (
            Failure("process_exit", signal=9, step=52, oom=KERNEL),
            "oom_kill",
            f"killed by SIGKILL at step 52 (killed by the kernel for lack of memory: {KERNEL})",
        ),
        (Failure("process_exit", signal=11), "segfault", "killed by SIGSEGV (a crash in native code)"),
        (Failure("process_exit", signal=6), "abort", "killed by SIGABRT (aborted by native code)"),
        (Failure("process_exit", signal=15), "terminated", None),
        (Failure("process_exit", signal=7), "bus_error", None),
        (Failure("process_exit", signal=4), "illegal_instruction", None),
        (Failure("process_exit", signal=250), "signal", "killed by signal 250"),
        (
            Failure("process_exit", exit_code=139),
            "segfault",
            "exited with code 139 (its shell says: killed by SIGSEGV: a crash in native code)",
        ),
        (Failure("process_exit", exit_code=3), "exit", "exited with code 3"),
        (
            Failure("process_exit", exit_code=127),
            "command_not_found",
            "exited with code 127 (command not found)",
        ),
        (
            Failure("process_exit", signal=6, output_tail="terminate called\n  what():  std::bad_alloc\n"),
            "out_of_memory",
            "killed by SIGABRT (out of memory)",
        ),
        (
            Failure("hang", step=3, message="no step for 40 s"),
            "hang",
            "no progress at step 3: no step for 40 s",
        ),
        (
            Failure("bad_numbers", step=7, message="loss is nan"),
            "bad_numbers",
            "bad numbers at step 7: loss is nan",
        ),
        (Failure("fatal", message="10 stored, 20 expected"), "state_mismatch", None),
    ],
)
def test_an_end_has_a_cause_and_a_sentence(failure, cause, sentence):
    assert classify(failure) == cause
    if sentence is not None:
        assert describe(failure) == sentence


def test_a_child_that_the_kernel_killed_explains_the_exit_of_its_parent():
    loader = raised("RuntimeError: DataLoader worker (pid 12) is killed by signal: Killed. ")
    assert classify(loader) == "loader_worker"
    assert classify(Failure("process_exit", exit_code=1, oom=KERNEL)) == "oom_kill"
    pool = raised("concurrent.futures.process.BrokenProcessPool: A process in the pool was terminated")
    assert classify(Failure(**{**pool.to_dict(), "oom": KERNEL})) == "oom_kill"
    assert classify(Failure(**{**loader.to_dict(), "oom": KERNEL})) == "oom_kill"
    other = Failure(**{**raised("ValueError: bad batch").to_dict(), "oom": KERNEL})
    assert classify(other) == "exception"


def test_the_traceback_counts_before_what_was_written_earlier():
    failure = raised("ValueError: x")
    noisy = Failure("process_exit", exit_code=1, output_tail="CUDA out of memory\n" + failure.output_tail)
    assert classify(noisy) == "exception"


def test_what_accuses_the_machine_is_no_exit_of_its_own():
    assert is_own_exit(raised("ValueError: bad batch"))
    assert is_own_exit(raised("torch.OutOfMemoryError: CUDA out of memory."))
    assert not is_own_exit(raised("RuntimeError: CUDA error: uncorrectable ECC error encountered"))
    assert not is_own_exit(raised("torch.distributed.DistBackendError: NCCL error in: x"))
    assert not is_own_exit(Failure("process_exit", exit_code=137))


@pytest.mark.parametrize(
    ("evidence", "more", "kind", "cause"),
    [
        ("Ray saw its process die (pid 1, SYSTEM_ERROR)", {}, "agent_lost", "agent_died"),
        ("Ray saw its process die (pid 1, INTENDED, exit code 70)", {}, "agent_lost", "agent_gave_up"),
        ("it could not start: No module named orch", {}, "agent_lost", "agent_not_started"),
        ("Ray saw its process die (NODE_OUT_OF_MEMORY)", {}, "agent_lost", "agent_out_of_memory"),
        ("its node has died", {"node_lost": True}, "node_lost", "node_died"),
        ("its node has died", {"node_state": "dead"}, "node_lost", "node_died"),
        ("its node has died", {"node_lost": True, "preempted": True}, "preempted", "preempted"),
        ("its node has died", {"node_lost": True, "node_state": "draining"}, "preempted", "preempted"),
        ("killed", {"drain_deadline_us": 5}, "preempted", "preempted"),
    ],
)
def test_a_lost_worker(evidence, more, kind, cause):
    failure = lost_worker(evidence, step=4, **more)
    assert (failure.kind, classify(failure), failure.step) == (kind, cause, 4)
    assert evidence in describe(failure)


def test_every_cause_can_be_told():
    for name, cause in CAUSES.items():
        assert cause.advice, name
        assert not cause.advice.endswith(".")


def test_the_page_of_failures_has_every_cause():
    page = (Path(__file__).parents[3] / "docs" / "failures.md").read_text()
    told = dict(re.findall(r"^\| `([a-z_]+)`\*? \| .* \| (.*) \|$", page, re.MULTILINE))
    assert {name: cause.advice for name, cause in CAUSES.items()} == {
        name: advice for name, advice in told.items() if not name.endswith("_s")
    }
    suspected = set(re.findall(r"^\| `([a-z_]+)`\* ", page, re.MULTILINE))
    assert suspected == {name for name, cause in CAUSES.items() if cause.accuses_node}


anything = st.builds(
    Failure,
    kind=st.sampled_from(
        ["process_exit", "hang", "agent_lost", "node_lost", "preempted", "fatal", "bad_numbers"]
    ),
    exit_code=st.one_of(st.none(), st.integers(-1, 256)),
    signal=st.one_of(st.none(), st.integers(0, 70)),
    output_tail=st.one_of(st.text(max_size=80), st.text(max_size=80).map(lambda text: HEADING + text)),
    message=st.text(max_size=20),
    oom=st.sampled_from(["", KERNEL]),
)


@given(anything)
def test_whatever_is_seen_is_classified_once_and_travels(failure):
    """What the controller reads out of the journal says what the leader said, without the output."""
    kept = classified(failure)
    assert kept.cause in CAUSES
    read = Failure.from_dict(json.loads(json.dumps(kept.to_dict())))
    assert describe(read) == describe(failure)
    assert (is_own_exit(read), startup_error(read)) == (is_own_exit(failure), startup_error(failure))


def test_the_error_line_of_a_rank():
    assert error_line(raised("ValueError: bad", prefix="[rank1]:").output_tail) == "ValueError: bad"
