"""What happened, from the evidence: one name per cause, what shows it, and what a person can do about it.

Pure: exit status, output, the kernel's records and what Ray says are arguments. The leader classifies where all
of it is at hand; the name it found travels with the failure, so that the controller says the same.

The table of a person's view is docs/failures.md; a test keeps it and CAUSES together.
"""

from __future__ import annotations

import re
import signal as signals
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

Kind = Literal["process_exit", "fatal", "hang", "agent_lost", "node_lost", "preempted", "bad_numbers"]
"""process_exit: the training process ended without having finished. fatal: its state can never be loaded.
hang: killed because it made no progress. bad_numbers: its loss is NaN or infinite. agent_lost, node_lost: the
worker is gone; preempted: announced."""

OUTPUT_TAIL_CHARS_MAX = 16_384
"""How much of the end of the output is looked at."""
LAST_LINES_MAX = 40
"""Where there is no traceback: how many of the last lines are looked at."""
ERROR_CHARS_MAX = 300
EXIT_OF_SIGNAL = 128
"""A shell says with 128 + n that its command was killed by signal n."""
EXIT_GAVE_UP = 70
"""An agent that meets a fault of its own ends with this code (orch_workers.agent)."""


@dataclass(frozen=True)
class Failure:
    """What was seen.

    `step`: the step at which this generation's process stood (the restored one before its first own step),
    None when it never said. `exit_code` is its own exit's; `signal` is the number of what killed it: one of
    the two is set for a process_exit. 127 stands for a command that could not be started. `output_tail`: the
    end of its output. `message`: for fatal and bad_numbers what is wrong, else the evidence ("node x dead
    since …"). `oom`: what the kernel says about a kill of this process tree for lack of memory.
    """

    kind: Kind
    exit_code: int | None = None
    signal: int | None = None
    step: int | None = None
    output_tail: str = ""
    message: str = ""
    oom: str = ""
    node_state: str = ""
    """Of a lost worker: alive, draining, dead; empty where it is not known."""
    drain_deadline_us: int | None = None
    """Until when its machine was to be left, where that was announced."""
    cause: str = ""
    """A name of CAUSES, found where all evidence was at hand."""
    error: str = ""
    """The last line of its traceback, likewise."""

    def to_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Failure:
        return Failure(**data)


class Cause(NamedTuple):
    """A row of the table. `title` stands in sentences; empty where the exit status says it all."""

    title: str
    advice: str
    accuses_node: bool = False
    """The machine is suspected, not the script: no crash loop, and who places jobs should know."""


_MORE_MEMORY = "use a smaller batch or fewer loader workers, or ask for more under resources.memory"

CAUSES: dict[str, Cause] = {
    # killed by a signal
    "oom_kill": Cause("killed by the kernel for lack of memory", _MORE_MEMORY),
    "killed": Cause(
        "", "something outside orch sent the signal: a person, a batch system, an out-of-memory daemon"
    ),
    "terminated": Cause("told to end by someone else than orch", "look for a time limit or a shutdown there"),
    "segfault": Cause("a crash in native code", "PYTHONFAULTHANDLER=1 in `env` shows the Python lines of it"),
    "abort": Cause("aborted by native code", "the last lines of its log say which check failed"),
    "bus_error": Cause("memory that it had mapped was not there", "most often /dev/shm or the disk is full"),
    "illegal_instruction": Cause("code for another kind of processor", "rebuild it for this one", True),
    "arithmetic": Cause("an integer division by zero in native code", "the last lines of its log say where"),
    "limit": Cause("a limit of the system was used up", "`ulimit -a` shows the limits"),
    "signal": Cause("", "the last lines of its log say more"),
    # its own exit
    "import_error": Cause("import error", "install the package, or correct the import"),
    "syntax_error": Cause("syntax error", "correct the script"),
    "usage_error": Cause("usage error", "correct the command under `run`"),
    "command_not_found": Cause("command not found", "correct the command under `run`, or install it"),
    "not_executable": Cause("command cannot be executed", "make it executable, or name its interpreter"),
    "out_of_memory": Cause("out of memory", _MORE_MEMORY),
    "gpu_out_of_memory": Cause("out of GPU memory", "use a smaller batch, or share the GPU with nobody"),
    "gpu_ecc": Cause("uncorrectable memory error of the GPU", "have the GPU reset or replaced", True),
    "gpu_lost": Cause("the GPU is lost", "look for Xid in the kernel's log; reset the machine", True),
    "gpu_driver": Cause("GPU driver and program do not fit", "match driver, CUDA and framework", True),
    "gpu_assert": Cause(
        "an assertion in GPU code", "an index out of range, mostly; CUDA_LAUNCH_BLOCKING=1 shows it"
    ),
    "gpu_fault": Cause(
        "a fault in GPU code", "CUDA_LAUNCH_BLOCKING=1 shows the call; elsewhere it may be the GPU"
    ),
    "communication": Cause(
        "the ranks lost each other", "look at the first rank that died, and at the network", True
    ),
    "disk_full": Cause("no space left", "free space where the script writes"),
    "open_files": Cause("too many open files", "raise `ulimit -n`, or close what is not needed"),
    "loader_worker": Cause("a process of the data loader died", "its own message stands above; often memory"),
    "interrupted": Cause("interrupted", "someone sent SIGINT"),
    "exception": Cause("", "the traceback says where"),
    "exit": Cause("", "the last lines of its log say more"),
    # the rest
    "state_mismatch": Cause("the state cannot be loaded", "use the script that made it, or submit a new job"),
    "hang": Cause("no progress", "the stacks of all ranks are in the attempt's log"),
    "bad_numbers": Cause("bad numbers", "lower the learning rate, clip gradients, or look at the batch"),
    "agent_died": Cause("the agent died", "the server's log says more"),
    "agent_gave_up": Cause("the agent gave up", "a fault of orch; it stands in the attempt's log"),
    "agent_not_started": Cause("the agent could not start", "what Ray says stands beside it", True),
    "agent_out_of_memory": Cause("Ray ended the agent for lack of memory", _MORE_MEMORY),
    "node_died": Cause("the node went away", "nothing to do where machines come and go"),
    "preempted": Cause("preempted", "nothing to do where machines come and go"),
}

_SIGNAL_CAUSES = {
    "SIGKILL": "killed",
    "SIGTERM": "terminated",
    "SIGHUP": "terminated",
    "SIGINT": "terminated",
    "SIGSEGV": "segfault",
    "SIGABRT": "abort",
    "SIGBUS": "bus_error",
    "SIGILL": "illegal_instruction",
    "SIGFPE": "arithmetic",
    "SIGXCPU": "limit",
    "SIGXFSZ": "limit",
}

# First match counts: what is surer, and what explains the others, stands first. Sources: the error strings of
# CUDA (cudaGetErrorString), PyTorch's c10 and ProcessGroupNCCL, TensorFlow's status messages, glibc.
_ERRORS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (cause, re.compile(pattern, re.IGNORECASE))
    for cause, pattern in (
        ("gpu_ecc", r"uncorrectable ECC error|CUDA_ERROR_ECC_UNCORRECTABLE|cudaErrorECCUncorrectable"),
        (
            "gpu_lost",
            (
                r"fallen off the bus|GPU is lost|no CUDA-capable device is detected"
                r"|devices? (?:is|are) busy or unavailable|CUDA_ERROR_NO_DEVICE|NVRM: Xid"
                r"|Unable to determine the device handle"
            ),
        ),
        (
            "gpu_driver",
            (
                r"driver version is insufficient|no kernel image is available|Found no NVIDIA driver"
                r"|forward compatibility was attempted|driver initialization failed|driver on your system is too old"
            ),
        ),
        ("gpu_assert", r"device-side assert"),
        (
            "gpu_out_of_memory",
            (
                r"CUDA out of memory|OutOfMemoryError: (?:CUDA|HIP|XPU)|CUDA_ERROR_OUT_OF_MEMORY"
                r"|cudaErrorMemoryAllocation|CUDA error: out of memory|OOM when allocating tensor.*GPU"
                r"|CUBLAS_STATUS_ALLOC_FAILED"
            ),
        ),
        (
            "communication",
            (
                r"NCCL (?:error|watch)|nccl(?:System|Remote|Internal|UnhandledCuda)Error|DistBackendError"
                r"|collective operation timeout|Connection closed by peer|Gloo connect"
                r"|DistNetworkError|DistStoreError"
            ),
        ),
        (
            "gpu_fault",
            (
                r"illegal memory access|misaligned address|unspecified launch failure|launch timed out"
                r"|an illegal instruction was encountered|CUDA error:|CUDNN_STATUS_|CUBLAS_STATUS_|cuFFT error"
            ),
        ),
        (
            "out_of_memory",
            (
                r"^MemoryError|can't allocate memory|Cannot allocate memory|std::bad_alloc|ResourceExhaustedError"
                r"|OOM when allocating tensor|_ArrayMemoryError|Unable to allocate .* for an array"
            ),
        ),
        ("loader_worker", r"DataLoader worker \(pid"),
        ("disk_full", r"No space left on device|Disk quota exceeded"),
        ("open_files", r"Too many open files"),
        ("interrupted", r"^KeyboardInterrupt"),
    )
)
_OF_CHILDREN = ("loader_worker", "communication")
_LOST_CHILD = re.compile(
    r"Killed|SIGKILL|CalledProcessError|BrokenProcessPool|BrokenPipeError|ConnectionResetError|EOFError|unexpectedly"
)
_IMPORT_ERRORS = ("ImportError", "ModuleNotFoundError")
_SYNTAX_ERRORS = ("SyntaxError", "IndentationError", "TabError")
_USAGE = re.compile(r"^usage: |can't open file|: syntax error|no such option", re.IGNORECASE | re.MULTILINE)
_TRACEBACK = "Traceback (most recent call last)"
_RANK_PREFIX = re.compile(r"^(?:\[[^\]]*\]:? ?)+")
_STARTUP = ("import_error", "syntax_error", "usage_error", "command_not_found", "not_executable")


def classify(failure: Failure) -> str:
    """The name of the cause, one of CAUSES; the one that was found with more evidence, if there is one."""
    if failure.cause in CAUSES:
        return failure.cause
    if failure.kind == "process_exit":
        return _of_signal(failure) if _signal_of(failure) is not None else _of_exit(failure)
    named = {"fatal": "state_mismatch", "node_lost": "node_died", "agent_lost": _of_agent(failure.message)}
    return named.get(failure.kind, failure.kind)


def classified(failure: Failure) -> Failure:
    """With its cause and its error line, and without the output: as it is written down and sent."""
    return replace(failure, cause=classify(failure), error=error_of(failure), output_tail="")


def lost_worker(
    evidence: str,
    *,
    step: int | None = None,
    node_lost: bool = False,
    preempted: bool = False,
    node_state: str = "",
    drain_deadline_us: int | None = None,
) -> Failure:
    """The failure behind an agent's death. Announced, or its machine is being drained: a preemption, whatever the
    agent died of; else the machine's end, if it is gone; else the agent's own.
    """
    announced = preempted or node_state == "draining" or drain_deadline_us is not None
    kind: Kind = (
        "preempted" if announced else "node_lost" if node_lost or node_state == "dead" else "agent_lost"
    )
    return Failure(
        kind, step=step, message=evidence, node_state=node_state, drain_deadline_us=drain_deadline_us
    )


def describe(failure: Failure) -> str:
    """What happened, as the first part of a sentence."""
    at = "" if failure.step is None else f" at step {failure.step}"
    name = classify(failure)
    if failure.kind == "process_exit":
        return _exit_words(failure) + at + _in_brackets(failure, name)
    detail = failure.message.strip()[:ERROR_CHARS_MAX]
    return CAUSES[name].title + at + (f": {detail}" if detail else "")


def advice(failure: Failure) -> str:
    """What a person can do about it, as a sentence without its full stop."""
    return CAUSES[classify(failure)].advice


def error_of(failure: Failure) -> str:
    return failure.error or error_line(failure.output_tail)


def error_line(output_tail: str) -> str:
    """The last line of the last Python traceback in it ("ValueError: bad"), or ""."""
    _, traceback, body = output_tail[-OUTPUT_TAIL_CHARS_MAX:].rpartition(_TRACEBACK)
    for raw in body.splitlines()[1:] if traceback else body.splitlines():
        line = _RANK_PREFIX.sub("", raw)
        # A syntax error in the script itself comes without the traceback's first line.
        if line.startswith(_SYNTAX_ERRORS) or (traceback and line.strip() and not line[0].isspace()):
            return line.strip()[:ERROR_CHARS_MAX]
    return ""


def startup_error(failure: Failure) -> str | None:
    """What shows that the command cannot even begin (usage, missing file, import), or None.

    An exit code of 2 alone is not enough: many scripts use it for their own errors.
    """
    if failure.kind != "process_exit" or failure.signal is not None:
        return None
    name = classify(failure)
    return CAUSES[name].title if name in _STARTUP else None


def is_own_exit(failure: Failure) -> bool:
    """It ended itself, and nothing accuses the machine or another rank."""
    return (
        failure.kind == "process_exit"
        and _signal_of(failure) is None
        and bool(failure.exit_code)
        and not (CAUSES[classify(failure)].accuses_node)
    )


def signal_name(number: int) -> str:
    try:
        return signals.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _signal_of(failure: Failure) -> int | None:
    """Also of a command whose shell reports its signal."""
    if failure.signal is not None:
        return failure.signal
    number = (failure.exit_code or 0) - EXIT_OF_SIGNAL
    return number if signal_name(number) in _SIGNAL_CAUSES else None


def _of_signal(failure: Failure) -> str:
    name = signal_name(_signal_of(failure) or 0)
    if failure.oom and name in {"SIGKILL", "SIGBUS"}:
        return "oom_kill"
    if name == "SIGABRT":  # a C++ exception that nobody caught, mostly: its text says more
        return _by_text(failure) or "abort"
    return _SIGNAL_CAUSES.get(name, "signal")


def _of_exit(failure: Failure) -> str:
    error, code = error_line(failure.output_tail), failure.exit_code
    if code in {126, 127}:
        return "command_not_found" if code == 127 else "not_executable"
    if code == 1 and error.startswith(_IMPORT_ERRORS):
        return "import_error"
    if code == 1 and error.startswith(_SYNTAX_ERRORS):
        return "syntax_error"
    if code == 2 and _USAGE.search(failure.output_tail[-OUTPUT_TAIL_CHARS_MAX:]):
        return "usage_error"
    found = _by_text(failure)
    if failure.oom and (found in _OF_CHILDREN or (found is None and _LOST_CHILD.search(error or "Killed"))):
        return "oom_kill"  # one of its children, and it could not go on without
    return found or ("exception" if error else "exit")


def _by_text(failure: Failure) -> str | None:
    """By the error itself, then by the rest of its traceback, else by the last lines."""
    tail = failure.output_tail[-OUTPUT_TAIL_CHARS_MAX:]
    _, heading, body = tail.rpartition(_TRACEBACK)
    rest = body if heading else "\n".join(tail.splitlines()[-LAST_LINES_MAX:])
    for text in (error_line(failure.output_tail), rest):
        for name, pattern in _ERRORS:
            if text and pattern.search(text):
                return name
    return None


def _of_agent(evidence: str) -> str:
    """What Ray's ActorDiedError says, in the short form of orch.control.cluster.death_evidence."""
    if re.search(rf"exit code {EXIT_GAVE_UP}\b", evidence):
        return "agent_gave_up"
    if "could not start" in evidence:
        return "agent_not_started"
    if re.search(r"OUT_OF_MEMORY|NODE_OUT_OF_MEMORY|memory monitor|due to memory pressure", evidence):
        return "agent_out_of_memory"
    return "agent_died"


def _exit_words(failure: Failure) -> str:
    if failure.signal is None:
        return f"exited with code {failure.exit_code}"
    return f"killed by {signal_name(failure.signal)}"


def _in_brackets(failure: Failure, name: str) -> str:
    """Cause, then the error's own words, then the kernel's."""
    parts = [CAUSES[name].title, error_of(failure), failure.oom if name == "oom_kill" else ""]
    number = _signal_of(failure)
    if failure.signal is None and number is not None:
        parts.insert(0, f"its shell says: killed by {signal_name(number)}")
    text = ": ".join(part for part in parts if part)
    return f" ({text})" if text else ""
