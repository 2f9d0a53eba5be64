from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from orch_workers import guard
from orch_workers.process import guarded as process
from support.processes import TREE, TREE_SIZE, Command, Fifo, is_alive, wait_dead


@pytest.fixture
def fifo(tmp_path):
    return Fifo(tmp_path)


def test_the_command_runs_and_its_exit_code_is_told(tmp_path):
    command = Command(tmp_path, ["sh", "-c", "echo out; echo err >&2; pwd; exit 3"])
    exited = command.finish()
    assert (exited.code, exited.signal) == (3, None)
    assert command.log.split() == ["out", "err", str(tmp_path)]


def test_a_signal_is_told_as_a_signal(tmp_path):
    exited = Command(tmp_path, ["sh", "-c", "kill -SEGV $$"]).finish()
    assert (exited.code, exited.signal) == (None, signal.SIGSEGV)


INTERNAL_SIGNALS = 0b11 << 31
"""32 and 33 belong to the C library (nptl(7)): whoever started the tests may have them ignored, and no program can
set them back.
"""


def test_nothing_reads_the_terminal_and_signals_are_as_they_were(tmp_path):
    command = Command(tmp_path, ["sh", "-c", "cat; grep -E 'Sig(Ign|Blk)' /proc/self/status"])
    assert command.finish().code == 0
    found = [int(line.split()[1], 16) & ~INTERNAL_SIGNALS for line in command.log.splitlines()]
    assert found == [0, 0]


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["no-such-program"], 127, "cannot start 'no-such-program': No such file"),
        (["/"], 126, "cannot start '/': Permission denied"),
    ],
)
def test_a_command_that_cannot_start_says_so_in_the_log(tmp_path, argv, code, words):
    command = Command(tmp_path, argv)
    exited = command.finish()
    assert exited.code == code
    assert words in exited.message
    assert words in command.log


def an_agent(folder: Path, then: str) -> tuple[subprocess.Popen[bytes], list[int]]:
    """A process of its own that has a guarded TREE, and the numbers that it prints `then`."""
    code = textwrap.dedent(
        f"""
        import subprocess, sys, threading
        sys.path.insert(0, {str(Path(__file__).parents[2])!r})
        from pathlib import Path
        from support.processes import Command
        command = Command(Path({str(folder)!r}), [sys.executable, "-c", {TREE!r}, "stay"])
        """
    )
    agent = subprocess.Popen(
        [sys.executable, "-c", f"{code}{then}\nthreading.Event().wait()"], stdout=subprocess.PIPE
    )
    assert agent.stdout is not None
    return agent, [int(word) for word in agent.stdout.readline().split()]


GUARD_AND_COMMAND = "print(command.process._guard[0], command.process.pid, flush=True)"


def test_a_killed_agents_tree_dies_with_it(tmp_path, fifo):
    agent, [guard_pid, _] = an_agent(tmp_path, GUARD_AND_COMMAND)
    pids = fifo.pids(TREE_SIZE)
    assert all(is_alive(pid) for pid in pids)
    agent.kill()
    agent.communicate()
    for pid in [*pids, guard_pid]:
        wait_dead(pid)


def test_the_command_ends_with_its_guard_when_nobody_is_left_to_sweep(tmp_path, fifo):
    agent, [guard_pid, command_pid] = an_agent(tmp_path, GUARD_AND_COMMAND)
    pids = fifo.pids(TREE_SIZE)
    try:
        os.kill(agent.pid, signal.SIGSTOP)
        os.kill(guard_pid, signal.SIGKILL)
        wait_dead(command_pid)
    finally:
        agent.kill()
        agent.communicate()
        for pid in pids:
            guard.send(pid, signal.SIGKILL)


def test_the_guard_is_no_child_of_the_agent(tmp_path, fifo):
    command = Command(tmp_path, ["sh", "-c", "echo $$ >$FIFO; sleep 1000"])
    fifo.pids(1)
    found = guard.look_up(command.process._guard[0])
    assert found is not None
    assert found.parent != os.getpid()
    assert os.getsid(found.pid) == found.pid
    command.process.kill()
    command.finish()


def test_a_pipe_end_that_somebody_inherited_does_not_keep_a_dead_agents_tree_alive(tmp_path, fifo):
    """The guard also watches the agent itself."""
    inherits = """
control = command.process._control
print(subprocess.Popen(["sleep", "1000"], pass_fds=[control], stdout=subprocess.DEVNULL).pid, flush=True)
"""
    agent, [holder] = an_agent(tmp_path, inherits)
    try:
        pids = fifo.pids(TREE_SIZE)
        agent.kill()
        agent.communicate()
        for pid in pids:
            wait_dead(pid)
    finally:
        os.kill(holder, signal.SIGKILL)


def test_when_the_command_ends_the_rest_of_its_tree_is_ended_before_gone(tmp_path, fifo):
    command = Command(tmp_path, [sys.executable, "-c", TREE, "leave"])
    pids = fifo.pids(TREE_SIZE)
    fifo.go()
    assert command.exited().code == 7
    command.gone()
    assert not any(is_alive(pid) for pid in pids)


def test_stop_gives_the_whole_grace_period_to_what_runs_in_a_shell(tmp_path, fifo):
    """The shell dies of the TERM at once; the program in it wants to save first."""
    program = textwrap.dedent(
        """
        import os, signal, sys
        def leave(*_):
            for line in open(os.environ["FIFO"] + ".go"):
                print("saved", line, end="", flush=True)
            sys.exit(0)
        signal.signal(signal.SIGTERM, leave)
        print(os.getpid(), file=open(os.environ["FIFO"], "w"), flush=True)
        while True:
            signal.pause()
        """
    )
    command = Command(tmp_path, ["sh", "-c", 'python -c "$PROGRAM"; echo never'], PROGRAM=program)
    (pid,) = fifo.pids(1)
    command.process.stop(1000)
    assert command.exited().signal == signal.SIGTERM
    assert is_alive(pid)
    fifo.go()
    command.gone()
    assert command.log == "saved go\n"


def test_stop_leaves_the_commands_own_children_to_it(tmp_path, fifo):
    """A loader worker that dies of the TERM would bring down the process that wants to save."""
    program = textwrap.dedent(
        """
        import os, signal, subprocess, sys
        script = "trap 'echo worker told; exit' TERM; echo $$ >$FIFO; read x <$NEVER"
        worker = subprocess.Popen(["sh", "-c", script])
        def leave(*_):
            print("worker", "lives" if worker.poll() is None else "died", flush=True)
            os._exit(75)
        signal.signal(signal.SIGTERM, leave)
        worker.wait()
        """
    )
    os.mkfifo(tmp_path / "never")
    command = Command(tmp_path, [sys.executable, "-c", program], NEVER=str(tmp_path / "never"))
    fifo.pids(1)
    command.process.stop(1000)
    assert command.exited().code == 75
    command.gone()
    assert command.log.startswith("worker lives\n")


def test_after_the_grace_period_everything_is_killed(tmp_path, fifo):
    command = Command(tmp_path, ["sh", "-c", "trap '' TERM; echo $$ >$FIFO; while :; do sleep 1000; done"])
    fifo.pids(1)
    command.process.stop(0.1)
    assert command.exited().signal == signal.SIGKILL
    command.gone()


def test_a_stopped_process_is_woken_to_hear_that_it_shall_end(tmp_path, fifo):
    command = Command(tmp_path, ["sleep", "1000"])
    command.process.signal(signal.SIGSTOP)
    command.process.stop(1000)
    assert command.finish().signal == signal.SIGTERM


def test_a_signal_reaches_what_runs_in_the_shell_not_the_shell(tmp_path, fifo):
    program = (
        "import os,signal; signal.signal(signal.SIGUSR1, lambda *_: os._exit(4));"
        "print(os.getpid(), file=open(os.environ['FIFO'], 'w'), flush=True); signal.pause()"
    )
    command = Command(tmp_path, ["sh", "-c", 'python -c "$PROGRAM"; echo code $?'], PROGRAM=program)
    fifo.pids(1)
    command.process.signal(signal.SIGUSR1)
    assert command.finish().code == 0
    assert command.log == "code 4\n"


def test_kill_zero_in_a_script_does_not_reach_the_guard(tmp_path):
    assert Command(tmp_path, ["sh", "-c", "kill -KILL 0"]).finish().signal == signal.SIGKILL


def test_the_guard_does_not_mind_a_term(tmp_path, fifo):
    command = Command(tmp_path, ["sh", "-c", "echo $$ >$FIFO; read x <$FIFO.go; exit 5"])
    fifo.pids(1)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(command.process._guard[0], number)
    fifo.go()
    assert command.finish().code == 5


def test_a_second_guard_in_the_same_place_is_refused(tmp_path, fifo):
    command = Command(tmp_path, ["sh", "-c", "echo $$ >$FIFO; sleep 1000"])
    fifo.pids(1)
    with pytest.raises(process.GuardError, match="another guard is still at work"):
        Command(tmp_path, ["true"])
    command.process.kill()
    assert command.finish().signal == signal.SIGKILL
    assert Command(tmp_path, ["true"]).finish().code == 0


def test_words_that_are_no_message_kill_the_tree(tmp_path, fifo):
    command = Command(tmp_path, ["sh", "-c", "echo $$ >$FIFO; sleep 1000"])
    fifo.pids(1)
    assert command.process._control is not None
    os.write(command.process._control, b"{]\n")
    assert command.finish().signal == signal.SIGKILL


def test_names_with_brackets_and_spaces_do_not_confuse_the_tree(tmp_path):
    program = tmp_path / "a) S 1 (b"
    program.symlink_to("/bin/sleep")
    child = subprocess.Popen([program, "1000"])
    try:
        found = guard.look_up(child.pid)
        assert found is not None
        assert found.parent == os.getpid()
    finally:
        child.kill()
        child.wait()
    assert guard.look_up(child.pid) is None
