"""Gangs without Ray: real workers with real training processes on machines of their own, and a network that a test can
make as bad as it likes.
"""

from __future__ import annotations

import os
import signal
import textwrap
import threading
from typing import TYPE_CHECKING, Any

from orch.model.generation import Generation
from orch_workers.gang.worker import GangWorker
from support.server import wait_for
from support.workers import LIMIT_S, Machine, Running

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from orch_workers.config import WorkerConfig

# What a collective is to torch: every step needs every rank, and who loses a peer fails.
TOGETHER = textwrap.dedent(
    """
    import hashlib, signal
    RANK, WORLD = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])

    class Ring:
        def __init__(self):
            where = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
            self.peers = []
            if RANK == 0:
                with socket.create_server(where) as door:
                    self.peers = [door.accept()[0] for _ in range(WORLD - 1)]
            else:
                while not self.peers:
                    try:
                        self.peers = [socket.create_connection(where)]
                    except ConnectionRefusedError:
                        os.sched_yield()

        def together(self):
            for peer in self.peers if RANK == 0 else []:
                self.hear(peer)
            for peer in self.peers:
                peer.sendall(b"x")
            for peer in self.peers if RANK else []:
                self.hear(peer)

        def hear(self, peer):
            if not peer.recv(1):
                raise ConnectionError("Connection closed by peer")

    def work(thousands):
        # about half a millisecond each
        hashlib.pbkdf2_hmac("sha256", b"work", b"of a step", 1000 * thousands)

    def train(until, save_every=5, thousands=4, at=lambda job: None, hold=0):
        # hold: the first start goes no further than that step, until it is ended
        job = Trainee()
        ring = Ring()
        word = 0
        while job.step < until:
            ring.together()
            job.steps(1)
            at(job)
            new = job.page.read_word()
            asked = new.number != word and new.save_at and job.step >= new.save_at
            if asked:
                word = new.number
            if asked or job.step == 1 or job.step % save_every == 0 or job.step == until:
                job.save("asked" if asked else "steps")
            while new.hold and job.step >= new.save_at:
                os.sched_yield()
                new = job.page.read_word()
            if new.stop and job.step >= new.save_at:
                if not asked:
                    job.save("stop")
                sys.exit(75)
            if job.step == hold and os.environ["ORCH_GENERATION"] == "000001.000001":
                signal.pause()
            work(thousands)
        job.finished()
    """
)


class Gang:
    """Ranks of one attempt after the other. `lose`: asked for each message; True loses it."""

    def __init__(self, machine: Machine, size: int = 2, **more: Any) -> None:
        self.machine, self.size, self._more = machine, size, more
        (machine.workdir / "together.py").write_text("from trainee import *\n" + TOGETHER)
        self.ranks: dict[int, Member] = {}
        self.lose: Callable[[int, Mapping[str, Any]], bool] = lambda rank, message: False

    def start(self, script: str, attempt: int = 1, ranks: tuple[int, ...] | None = None) -> Gang:
        text = "from together import *\n" + textwrap.dedent(script)
        (self.machine.workdir / "train.py").write_text(text)
        for rank in range(self.size) if ranks is None else ranks:
            self.place(rank, attempt)
        return self

    def place(self, rank: int, attempt: int) -> Member:
        self.ranks[rank] = Member(self, self._config(rank, attempt))
        self.machine._stoppable.append(self.ranks[rank].stop)
        return self.ranks[rank]

    def _config(self, rank: int, attempt: int) -> WorkerConfig:
        more = {
            "run": "python train.py",
            "rank": rank,
            "world_size": self.size,
            "standby": False,
            **self._more,
        }
        return self.machine.config(attempt, **more)

    def say(self, rank: int, message: Mapping[str, Any]) -> None:
        member = self.ranks.get(rank)
        if member is not None and not member.dead and not self.lose(rank, message):
            threading.Thread(target=member.worker.heard, args=(message,), daemon=True).start()

    def lose_agent(self, rank: int, attempt: int) -> None:
        """As the controller does when an agent has died: another one, and the others adopt the attempt."""
        if not self.ranks[rank].dead:
            self.ranks[rank].die()
        for other, member in self.ranks.items():
            if other != rank:
                member.adopt(attempt)
        self.place(rank, attempt)

    def wait_step(self, step: int) -> None:
        def there() -> bool:
            return all(member.step >= step for member in self.ranks.values())

        wait_for(f"every rank is at step {step}", there, LIMIT_S)

    def wait_over(self) -> list[str]:
        """Outcomes by rank."""
        return [str(self.ranks[rank].end()["outcome"]) for rank in range(self.size)]


class Member(Running):
    """One rank, and what it has told."""

    worker: GangWorker

    def __init__(self, gang: Gang, config: WorkerConfig) -> None:
        self.gang, self.dead = gang, False
        super().__init__(config)

    def _make(self) -> GangWorker:
        return GangWorker(
            self.config, self.reports, dict, give_up=self.gave_up.set, say=self.gang.say, address="127.0.0.1"
        )

    @property
    def step(self) -> int:
        launcher = self.worker._launcher
        return 0 if launcher is None else launcher.progress().step

    def pid(self) -> int:
        return int(self.told("ProcessStarted")[-1]["pid"])

    def kill_process(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid(), number)

    def die(self) -> None:
        """The agent is killed, and its guard ends what ran."""
        self.dead = True
        self.stop()

    def forget_memory(self) -> None:
        """As a machine does that was switched off."""
        for path in self.paths.snapshots.iterdir():
            path.unlink()

    def stop(self) -> None:
        self.worker.retire(LIMIT_S)

    def adopt(self, attempt: int) -> None:
        old = self.worker
        old.retire(LIMIT_S)
        self.config = self.config.adopting(attempt, self.config.policy)
        self.paths.make()
        self.worker = self._make()
        self.worker.take_over_stop(old)
        self.worker.start()

    def generation(self) -> Generation:
        return Generation.parse(self.told("ProcessStarted")[-1]["generation"])
