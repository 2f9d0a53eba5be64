"""The guard: stands between agent and training process, and makes sure that nothing survives.

Run as ``python -I -S -X utf8 guard.py CONTROL_FD EVENTS_FD STATE_DIR AGENT_PID``: standard library only, one
thread, forked away from the agent (``ray.kill`` kills an actor's direct children), its own session, and child
subreaper (prctl(2), PR_SET_CHILD_SUBREAPER), so that whatever the command starts stays below it: a second
fork and setsid included. One guard runs one command and ends when nothing of it is left.

Control pipe in, JSON lines: ``{"do": "start", "argv", "env", "cwd", "log_path", "idle"}`` (idle: at the lowest
priority), ``{"do": "signal", "signal"}``, ``{"do": "stop", "grace_s"}``, ``{"do": "kill"}``. Its end, or the
agent's, is a kill. Event pipe out: ``ready {pid, start_ticks}`` or ``refused {message}``; ``started {pid,
start_ticks}``; ``exited {code, signal, t_monotonic_ns, message}``; ``gone {t_monotonic_ns}``: nothing of the
command exists.

``STATE_DIR/guard.lock`` is locked (flock) for as long as anything lives: whoever gets that lock is alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import select
import signal
import sys
import time
from typing import Any, NamedTuple, NoReturn

LOCK_NAME = "guard.lock"
CONTROL_BYTES_MAX = 16 << 20
"""Longest control message: the kernel allows no larger environment by far."""
REST_GRACE_S = 2.0
"""What outlives the command itself (loader workers, daemons) has this long between TERM and KILL."""
KILL_AGAIN_MIN_S, KILL_AGAIN_MAX_S = 0.02, 0.5
"""Pause between two rounds of SIGKILL, doubled from the one to the other."""
SHELLS = frozenset({"sh", "dash", "bash", "zsh", "ksh", "ksh93", "mksh", "ash", "busybox", "fish"})

IDLE_NICE = 19
_PR_SET_PDEATHSIG, _PR_SET_NAME, _PR_SET_CHILD_SUBREAPER = 1, 15, 36
_libc = ctypes.CDLL(None, use_errno=True)


class Process(NamedTuple):
    """One row of /proc. `start_ticks` (since boot) tells a process from a later one with the same number."""

    pid: int
    parent: int
    state: str
    start_ticks: int

    @property
    def alive(self) -> bool:
        return self.state not in "ZX"


def look_up(pid: int) -> Process | None:
    """What /proc/<pid>/stat says (proc(5)); None when there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The name is in brackets and may itself hold brackets and spaces: count from the last one.
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    if len(fields) < 20:  # the process went away while we read
        return None
    return Process(pid, int(fields[1]), fields[0].decode(), int(fields[19]))


def all_processes() -> dict[int, Process]:
    found = (look_up(int(name)) for name in os.listdir("/proc") if name.isdigit())
    return {process.pid: process for process in found if process is not None}


def below(table: dict[int, Process], root: int) -> list[Process]:
    """Every descendant of `root`, parents before their children."""
    children: dict[int, list[Process]] = {}
    for process in table.values():
        children.setdefault(process.parent, []).append(process)
    found: list[Process] = []
    waiting = list(children.get(root, ()))
    while waiting:
        process = waiting.pop()
        found.append(process)
        waiting.extend(children.get(process.pid, ()))
    return found


def send(pid: int, number: int) -> None:
    """kill(2); a process that is gone, or is not ours to signal, is no error."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def _is_shell(pid: int) -> bool:
    try:
        return os.path.basename(os.readlink(f"/proc/{pid}/exe")) in SHELLS
    except OSError:
        return False


class Guard:
    def __init__(self, control: int, events: int, lock: int, agent: int | None) -> None:
        self.control = control
        self.events = events
        self.lock = lock
        self.agent = agent
        self.buffer = b""
        self.main: int | None = None
        self.exec_error: int | None = None
        self.main_exited = False
        self.asked_to_stop: list[Process] = []  # who got the TERM of a stop
        self.rest_told = False
        self.kill_at: float | None = None
        self.kill_again_s = KILL_AGAIN_MIN_S
        self.over = False

    # the loop

    def run(self, wake: int) -> None:
        poller = select.poll()
        for descriptor in (self.control, self.agent, wake):
            if descriptor is not None:
                poller.register(descriptor, select.POLLIN)
        while not self.over:
            for descriptor, _ in poller.poll(self._timeout_ms()):
                if descriptor == wake:
                    os.read(wake, 4096)
                elif descriptor == self.control and self._read_control():
                    continue
                else:  # the pipe was closed, or the agent's pidfd says it ended
                    poller.unregister(descriptor)
                    self._kill()
            self._advance()

    def _timeout_ms(self) -> float | None:
        if self.kill_at is None:
            return None
        left_s = self.kill_at - time.monotonic()
        if left_s > 0:
            return left_s * 1000 + 1
        # No limit on the rounds: while something is left, the lock must be kept, because it is not free to
        # start again. Who waits for us has a limit of its own.
        pause_s = self.kill_again_s
        self.kill_again_s = min(pause_s * 2, KILL_AGAIN_MAX_S)
        return pause_s * 1000

    def _advance(self) -> None:
        """Reaps, and does what is due."""
        nothing_left = not self._reap()
        if self.main is None:
            self.over = self.kill_at is not None
            return
        if self.main_exited and nothing_left:
            # Unlocked first: who reads `gone` may start the next guard at once.
            fcntl.flock(self.lock, fcntl.LOCK_UN)
            self._tell({"event": "gone", "t_monotonic_ns": time.monotonic_ns()})
            self.over = True
            return
        now = time.monotonic()
        if self.main_exited and not self.rest_told and not self._still_stopping():
            self.rest_told = True
            for process in below(all_processes(), os.getpid()):
                self._terminate(process.pid)
            self.kill_at = (
                now + REST_GRACE_S if self.kill_at is None else min(self.kill_at, now + REST_GRACE_S)
            )
        if self.kill_at is not None and now >= self.kill_at:
            for process in below(all_processes(), os.getpid()):
                send(process.pid, signal.SIGKILL)

    def _reap(self) -> bool:
        """Collects whoever ended; False when there is no descendant left (ECHILD: all orphans come to us)."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid == self.main:
                self._main_ended(status)

    def _main_ended(self, status: int) -> None:
        t_monotonic_ns = time.monotonic_ns()
        self.main_exited = True
        code = os.waitstatus_to_exitcode(status)
        message = b""
        if self.exec_error is not None:
            message = os.read(self.exec_error, 4096)
            os.close(self.exec_error)
            self.exec_error = None
        self._tell(
            {
                "event": "exited",
                "code": code if code >= 0 else None,
                "signal": -code if code < 0 else None,
                "t_monotonic_ns": t_monotonic_ns,
                "message": message.decode(errors="replace"),
            }
        )

    def _still_stopping(self) -> bool:
        """Whether somebody who was asked to stop, with a grace period of his own, is still at it."""
        for asked in self.asked_to_stop:
            now = look_up(asked.pid)
            if now is not None and now.alive and now.start_ticks == asked.start_ticks:
                return True
        return False

    # control

    def _read_control(self) -> bool:
        """Acts on what came; False when the pipe was closed, or brings what is no message of ours."""
        piece = os.read(self.control, 1 << 20)
        self.buffer += piece
        if not piece or len(self.buffer) > CONTROL_BYTES_MAX:
            return False
        *lines, self.buffer = self.buffer.split(b"\n")
        try:
            for line in lines:
                self._obey(json.loads(line))
        except (ValueError, KeyError, TypeError):
            return False  # whoever writes this is not the agent we know: fail safe
        return True

    def _obey(self, message: dict[str, Any]) -> None:
        what = message["do"]
        if what == "start" and self.main is None:
            self._start(message)
        elif what == "signal" and not self.main_exited:
            self._signal(int(message["signal"]))
        elif what == "stop":
            self._stop(float(message["grace_s"]))
        elif what == "kill":
            self._kill()

    def _kill(self) -> None:
        self.kill_at = time.monotonic()

    def _stop(self, grace_s: float) -> None:
        deadline = time.monotonic() + grace_s
        self.kill_at = deadline if self.kill_at is None else min(self.kill_at, deadline)
        if self.main is None or self.main_exited or self.asked_to_stop:
            return
        self.asked_to_stop = self._front()
        for process in self.asked_to_stop:
            self._terminate(process.pid)

    def _signal(self, number: int) -> None:
        front = self._front()
        programs = [process for process in front if not _is_shell(process.pid)]
        for process in programs or front:
            send(process.pid, number)

    def _front(self) -> list[Process]:
        """The command itself: the main process and, where that is a shell, what runs in it.

        A shell does not hand TERM on. The command's own children are left out: a loader worker that gets a
        TERM brings down the very process that wants to save and leave.
        """
        table = all_processes()
        found = []
        waiting = [table[self.main]] if self.main in table else []
        while waiting:
            process = waiting.pop(0)
            found.append(process)
            if _is_shell(process.pid):
                waiting.extend(other for other in table.values() if other.parent == process.pid)
        return found

    def _terminate(self, pid: int) -> None:
        send(pid, signal.SIGTERM)
        send(pid, signal.SIGCONT)  # a stopped process would never see it

    def _start(self, message: dict[str, Any]) -> None:
        self.exec_error, child_error = os.pipe()
        os.set_blocking(self.exec_error, False)
        # Blocked until the child has given up our handlers: a TERM that comes in between must not be lost.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        me = os.getpid()
        pid = os.fork()
        if pid == 0:
            _die_with(me)
            _become(message, child_error)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.close(child_error)
        self.main = pid
        process = look_up(pid)
        self._tell({"event": "started", "pid": pid, "start_ticks": process.start_ticks if process else 0})

    def _tell(self, event: dict[str, Any]) -> None:
        tell(self.events, event)


def tell(events: int, event: dict[str, Any]) -> None:
    # If the agent is gone, the end of the control pipe says so too.
    with contextlib.suppress(OSError):
        os.write(events, json.dumps(event).encode() + b"\n")


def _die_with(guard: int) -> None:
    """In the new child: the command ends with its guard, whoever kills that, and although nobody may be left to sweep.

    Its own children do not inherit this (prctl(2), PR_SET_PDEATHSIG): they are the agent's to sweep.
    """
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != guard:  # killed before the line above
        os._exit(128 + signal.SIGKILL)


def _become(message: dict[str, Any], error: int) -> NoReturn:
    """In the new child: turns into the command. What fails is said in the log and through `error`."""
    doing = "open the log"
    try:
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            # The C library keeps two real-time signals for itself.
            with contextlib.suppress(OSError, ValueError):
                signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        # Its own session: `kill 0` in a user's script must not reach the guard.
        os.setsid()
        log = os.open(message["log_path"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        null = os.open("/dev/null", os.O_RDONLY)
        for target, source in enumerate((null, log, log)):
            os.dup2(source, target)
        if message.get("idle"):
            # The disk follows the scheduler (ioprio_set(2): idle for SCHED_IDLE).
            os.setpriority(os.PRIO_PROCESS, 0, IDLE_NICE)
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
            # Where sessions are weighed against each other, a session has a nice value of its own (sched(7)).
            with contextlib.suppress(OSError), open("/proc/self/autogroup", "w") as session:
                session.write(str(IDLE_NICE))
        doing = f"enter {message['cwd']}"
        os.chdir(message["cwd"])
        doing = f"start {message['argv'][0]!r}"
        os.execvpe(message["argv"][0], message["argv"], message["env"])  # noqa: S606, no shell is what we want
    except OSError as failure:
        sentence = f"orch: cannot {doing}: {failure.strerror}"
        missing = isinstance(failure, (FileNotFoundError, NotADirectoryError))
    except Exception as failure:  # whatever it was, the child must not go on as a second guard
        sentence, missing = f"orch: cannot {doing}: {failure!r}", False
    os.write(error, sentence.encode()[:4096])
    os.write(2, sentence.encode() + b"\n")
    os._exit(127 if missing else 126)  # the shell's convention


def main(control: int, events: int, state_dir: str, agent_pid: int) -> None:
    os.set_inheritable(control, False)
    os.set_inheritable(events, False)
    try:
        # The pipe's end tells the agent's death too, unless somebody inherited the other end.
        agent = os.pidfd_open(agent_pid) if os.getppid() == agent_pid else None
    except OSError:
        agent = None
    if os.fork() != 0:
        os._exit(0)
    os.setsid()
    os.chdir("/")
    _libc.prctl(_PR_SET_NAME, b"orch-guard", 0, 0, 0)
    if _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        tell(
            events, {"event": "refused", "message": "this kernel has no child subreaper (Linux 3.4 or newer)"}
        )
        return
    lock = os.open(os.path.join(state_dir, LOCK_NAME), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        tell(events, {"event": "refused", "message": f"another guard is still at work in {state_dir}"})
        return
    wake, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    # Only the agent's word counts. Handlers, not SIG_IGN, which the command would inherit.
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    me = look_up(os.getpid())
    tell(events, {"event": "ready", "pid": os.getpid(), "start_ticks": me.start_ticks if me else 0})
    Guard(control, events, lock, agent).run(wake)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
