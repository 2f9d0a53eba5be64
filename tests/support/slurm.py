"""A Slurm of one node on this machine: munged, slurmctld and slurmd in a folder of their own, ended with it.

Needs Debian's slurmctld, slurmd, slurm-client and munge, and root, as which slurmd runs; `missing` says what is absent.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Self

from orch.control.raylocal import LOOPBACK, free_port
from support.server import wait_for

if TYPE_CHECKING:
    from types import TracebackType

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "squeue", "scancel")
CPUS = os.cpu_count() or 1
END_LIMIT_S = 30.0


def missing() -> str:
    """Why there can be no Slurm here; empty where there can."""
    absent = [program for program in PROGRAMS if shutil.which(program) is None]
    if absent:
        return (
            f"Slurm is not installed here ({', '.join(absent)}; Debian: slurmctld slurmd slurm-client munge)"
        )
    return "" if os.geteuid() == 0 else "slurmd runs as root only"


class Slurm:
    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="orch-slurm-"))
        self._started: list[subprocess.Popen[bytes]] = []
        self.env = {**os.environ, "SLURM_CONF": str(self.folder / "slurm.conf")}

    def __enter__(self) -> Self:
        try:
            self._begin()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _begin(self) -> None:
        self.folder.chmod(0o755)  # munge wants its socket to be within everybody's reach
        self._configure()
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))
        munge = self.folder / "munge"
        munge.mkdir(mode=0o755)
        files = [f"--{name}-file={munge / name}" for name in ("pid", "seed", "log")]
        self._start("munged", "--foreground", f"--key-file={key}", f"--socket={self._socket}", *files)
        wait_for("munged is up", self._socket.exists)
        self._start("slurmctld", "-D")
        self._start("slurmd", "-D", "-N", "here")
        wait_for("the node is idle", lambda: "State=IDLE" in self.scontrol("show", "node", "here"))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in reversed(self._started):
            process.terminate()
            try:
                process.wait(END_LIMIT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(self.folder)

    @property
    def _socket(self) -> Path:
        return self.folder / "munge" / "socket"

    def _configure(self) -> None:
        for name in ("state", "spool", "munge.d"):
            (self.folder / name).mkdir()
        lines = {
            "ClusterName": "orch",
            "SlurmctldHost": f"{socket.gethostname()}({LOOPBACK})",
            "SlurmUser": "root",
            "SlurmctldPort": free_port(),
            "SlurmdPort": free_port(),
            "AuthInfo": f"socket={self._socket}",
            "StateSaveLocation": self.folder / "state",
            "SlurmdSpoolDir": self.folder / "spool",
            "SlurmctldPidFile": self.folder / "slurmctld.pid",
            "SlurmdPidFile": self.folder / "slurmd.pid",
            "SlurmctldLogFile": self.folder / "slurmctld.log",
            "SlurmdLogFile": self.folder / "slurmd.log",
            # No cgroups: this machine may have none that Slurm could use.
            "ProctrackType": "proctrack/linuxproc",
            "TaskPlugin": "task/none",
            "JobAcctGatherType": "jobacct_gather/none",
            "SelectType": "select/cons_tres",
            "SelectTypeParameters": "CR_Core",
            "MpiDefault": "none",
            "ReturnToService": 2,
            # A requeued job begins at once, not after the two minutes that Slurm lets pass by default.
            "SchedulerParameters": "requeue_delay=0,sched_interval=1,batch_sched_delay=0",
            "KillWait": 30,
        }
        text = "".join(f"{name}={value}\n" for name, value in lines.items())
        text += f"NodeName=here NodeAddr={LOOPBACK} NodeHostname={socket.gethostname()} CPUs={CPUS} RealMemory=1000\n"
        text += "PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP\n"
        (self.folder / "slurm.conf").write_text(text)

    def _start(self, *command: str) -> None:
        with (self.folder / f"{command[0]}.out").open("wb") as log:
            self._started.append(
                subprocess.Popen(
                    command, env=self.env, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )  # fmt: skip

    def run(self, *command: str, env: dict[str, str] | None = None, cwd: Path | None = None) -> str:
        done = subprocess.run(
            command, env={**self.env, **(env or {})}, cwd=cwd, capture_output=True, text=True, check=False,
            timeout=60,
        )  # fmt: skip
        if done.returncode:
            raise AssertionError(f"{' '.join(command)}: {done.stderr}\n{self._logs()}")
        return done.stdout

    def scontrol(self, *arguments: str) -> str:
        try:
            return self.run("scontrol", *arguments)
        except AssertionError:  # the controller is not up yet
            return ""

    def _logs(self) -> str:
        return "\n".join(path.read_text(errors="replace")[-1500:] for path in self.folder.glob("slurm*.log"))
