"""More nodes for a server's Ray, on this machine: each a raylet with a working area, and so memory, of its own.

A node is killed, frozen and woken whole: raylet, agents, guards and everything that runs below them, whoever their
parents are by then. Nothing here needs root.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from orch.control.home import Home
from orch.control.raylocal import LOOPBACK, OBJECT_STORE_BYTES, TOKEN_VARIABLE, ray_environment
from orch_workers.config import NODE_VARIABLE, WorkerPaths, share_of
from support.server import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Self

    from support.recovery import Victim
    from support.server import Server

CPUS = (os.cpu_count() or 1) + 1
"""Of a node: one more than the server's own node has. (Ray starts a process for each, so no more than that.)"""
ELSEWHERE = f"--set=resources.cpus={CPUS}"
"""For `Victim`: on one of these nodes, and on no other; each of them holds one such job."""
LOOPBACK_NODE = Path(__file__).with_name("loopback_node.py")
START_LIMIT_S = 60.0
GONE_LIMIT_S = 30.0
ROUNDS_MAX = 50


class Node:
    """One node. `id` is Ray's."""

    def __init__(
        self,
        server: Server,
        *,
        cpus: int = CPUS,
        gpus: int = 0,
        ip: str = LOOPBACK,
        inside: Sequence[str] = (),
        head_port: int | None = None,
        apart: bool = False,
        labels: str = "",
    ) -> None:
        """Begins to start; `ready` waits for it, and only then another may begin: Ray gives two that start at once the
        same names for their sockets, and one of them dies.

        `inside`: a command that runs another one in a network namespace. `head_port`: it is the head of a cluster,
        which the server joins later. `apart`: on a machine of its own, as the server sees it, which does not count
        these processes among those of its home. `labels`: as `ray start` takes them.
        """
        self.server, self._ip, self._inside, self._head_port, self._apart = (
            server,
            ip,
            inside,
            head_port,
            apart,
        )
        self._resources = (f"--num-cpus={cpus}", f"--num-gpus={gpus}", f"--labels={labels}")
        self.folder = Path(tempfile.mkdtemp(prefix="orch-node-"))
        self.id = ""
        self.used = False
        """Something was done to it that cannot be taken back."""
        self.start()

    def _ray(self) -> tuple[str, ...]:
        on_loopback = self._ip == LOOPBACK
        return ("-P", str(LOOPBACK_NODE)) if on_loopback else ("-m", "ray.scripts.scripts")

    def _where(self) -> tuple[str, ...]:
        if self._head_port is not None:
            return (
                "--head",
                f"--port={self._head_port}",
                "--include-dashboard=false",
                f"--temp-dir={self.folder}/r",
            )
        record = Home(self.server.home).read_server()
        assert record is not None
        return (f"--address={record.ray_address}",)

    def __enter__(self) -> Self:
        return self.ready()

    def __exit__(self, *_: object) -> None:
        self.remove()

    def start(self) -> None:
        """Also again, after its end, as a machine that comes back with an empty memory."""
        command = [
            *self._inside,
            *(sys.executable, *self._ray(), "start", "--block", *self._where()),
            f"--node-ip-address={self._ip}",
            *self._resources,
            f"--object-store-memory={OBJECT_STORE_BYTES}",
            *("--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0"),
        ]
        ray_env = ray_environment(self.server.home, self.server.env)
        env = {**self.server.env, **ray_env, NODE_VARIABLE: str(self.folder)}
        if self._ip != LOOPBACK:
            del env["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"]
        if self._apart:  # a server knows the processes of its own machine by the token's path
            env[TOKEN_VARIABLE] = shutil.copy2(self.server.home / "ray-token", self.folder / "ray-token")
            del env["ORCH_HOME"]
        with (self.folder / "ray-start.log").open("ab") as log:
            self._started = subprocess.Popen(
                command,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                start_new_session=True,
            )
        self.id = ""

    def ready(self) -> Self:
        def there() -> bool:
            assert self._started.poll() is None, (self.folder / "ray-start.log").read_text()[-2000:]
            raylet = self.raylet()
            words = [] if raylet is None else _words(raylet)
            self.id = next((w.partition("=")[2] for w in words if w.startswith("--node_id=")), "")
            return self.alive

        wait_for("the node is there", there, START_LIMIT_S, poll_s=0.1)
        return self

    @property
    def alive(self) -> bool:
        """As Ray sees it."""
        return self.id in {node["node_id"] for node in self.server.client().server()["nodes"]}

    # its processes

    def processes(self) -> list[psutil.Process]:
        """Of this node: by the environment of Ray's processes, the arguments of guards, and whatever is below both."""
        found: dict[int, psutil.Process] = {}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.status() != psutil.STATUS_ZOMBIE and self._is_ours(process):
                    found[process.pid] = process
                    found |= {below.pid: below for below in process.children(recursive=True)}
        return [process for process in found.values() if _lives(process)]

    def _is_ours(self, process: psutil.Process) -> bool:
        if any(str(self.folder) in word for word in process.cmdline()):
            return True
        return process.environ().get(NODE_VARIABLE) == str(self.folder)

    def raylet(self) -> psutil.Process | None:
        return next((process for process in self.processes() if process.name() == "raylet"), None)

    def at_work(self) -> list[psutil.Process]:
        """Agents, guards, and what they guard."""
        guards = [
            process
            for process in self.processes()
            if any(str(self.folder) in word for word in _words(process))
        ]
        agents = [process for process in self.processes() if "ray::Agent" in " ".join(_words(process))]
        return guards + agents

    def _signal_all(self, number: int, done: set[str]) -> None:
        """Until nobody is left that is not in one of the states `done`: new ones may come while it is under way."""
        for _ in range(ROUNDS_MAX):
            waiting = [process for process in self.processes() if _status(process) not in done]
            if not waiting:
                return
            for process in waiting:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(number)
        raise AssertionError(f"some of the node did not obey signal {number}: {waiting}")

    def kill(self) -> None:
        """The power fails: everything at once, and the memory is gone."""
        self.used = True
        self.freeze()  # nobody sees the others die
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        wait_for("the node's processes are gone", lambda: not self.processes(), GONE_LIMIT_S)
        self._started.wait(GONE_LIMIT_S)
        self.forget()

    def freeze(self) -> None:
        self.used = True
        self._signal_all(
            signal.SIGSTOP, {psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD, ""}
        )

    def thaw(self) -> None:
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()

    def terminate(self) -> None:
        """SIGTERM to `ray start --block`, as systemd and Kubernetes send it."""
        self.used = True
        self._started.terminate()

    def drain(self, grace_s: float) -> None:
        """As an autoscaler announces a preemption."""
        self.used = True
        accepted = self.server.python(
            "import json, sys, time; from ray._raylet import GcsClient;"
            "from ray.core.generated import autoscaler_pb2 as pb;"
            "reason = pb.DrainNodeReason.Value('DRAIN_NODE_REASON_PREEMPTION');"
            f"until_ms = int((time.time() + {grace_s}) * 1000);"
            "client = GcsClient(address=sys.argv[1]);"
            f"print(json.dumps(client.drain_node('{self.id}', reason, 'spot instance taken back', until_ms)[0]))"
        )
        assert accepted

    def ended(self) -> bool:
        return self._started.poll() is not None and not self.processes()

    # what it holds

    def memory(self) -> list[Path]:
        """What lies in shared memory and in /tmp for jobs on this node."""
        one = self._paths("any")
        return [folder for folder in (one.snapshots_job.parent, one.socket.parent.parent) if folder.exists()]

    def job_folders(self) -> list[str]:
        folder = self.folder / "jobs"
        return sorted(path.name for path in folder.iterdir()) if folder.exists() else []

    def _paths(self, job: str) -> WorkerPaths:
        return WorkerPaths(job, 0, self.folder, self.server.home / "jobs", share=share_of(str(self.folder)))

    def forget(self) -> None:
        for folder in self.memory():
            shutil.rmtree(folder, ignore_errors=True)

    def remove(self) -> None:
        """At the end of a test, whatever happened in it."""
        if self.processes():
            self.kill()
        self._started.wait(GONE_LIMIT_S)
        self.forget()
        shutil.rmtree(self.folder, ignore_errors=True)


class Pool:
    """Two nodes at least for every test; what one test has used up is replaced for the next."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._nodes: list[Node] = []

    def two(self) -> list[Node]:
        """Both fit for use, and no third one is: where a job goes is known."""
        for node in [node for node in self._nodes if not node.alive or node.used]:
            self._nodes.remove(node)
            node.remove()
        while len(self._nodes) < 2:
            self._nodes.append(Node(self._server, gpus=1))
            self._nodes[-1].ready()
        return list(self._nodes)

    def close(self) -> None:
        for node in self._nodes:
            node.remove()


def place_of(victim: Victim, nodes: Iterable[Node], attempt: int = 1) -> Node:
    """Where the job's agent of this attempt is."""
    up = victim.wait_event("AgentUp", lambda data: data["attempt"] == attempt)
    return next(node for node in nodes if node.id == up["node_id"])


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


def _status(process: psutil.Process) -> str:
    try:
        return str(process.status())
    except psutil.NoSuchProcess:
        return ""


def _lives(process: psutil.Process) -> bool:
    return _status(process) not in {psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD, ""}
