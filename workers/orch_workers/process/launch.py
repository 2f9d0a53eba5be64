"""Everything around one training process: its folder, environment, socket, page, log, and its guarded start."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

from orch.model.events import Event
from orch.model.generation import Generation
from orch_policies import interval
from orch_workers import starting
from orch_workers.checkpoint.errors import CheckpointError, StorageRefused
from orch_workers.config import WorkerConfig
from orch_workers.drill import Drill
from orch_workers.process import environment
from orch_workers.process.guarded import Event as ProcessEvent
from orch_workers.process.guarded import Exited, Gone, GuardedProcess, Stuck, split_command
from orch_workers.process.leftovers import wait_predecessor
from orch_workers.process.sampling import Sampler
from orch_workers.recovery import Phases
from orch_workers.session import BusyError, SessionRefusedError, SessionServer
from orch_workers.shipping import bundle, code
from orch_workers.standby.standby import Standby
from orch_workers.training.page import Page, Progress
from orch_workers.training.protocol import IN_MEMORY

if TYPE_CHECKING:
    from orch_workers.environments.cache import InUse
    from orch_workers.keeper import Keeper
    from orch_workers.prepared import Prepared

PREDECESSOR_LIMIT_S = 60.0
"""How long an earlier agent's guard may take to end what it guards."""
KILL_LIMIT_S = 30.0
HOLD_LIMIT_S = 60.0
"""How long a process waits at the step that its gang has named to leave after."""
LEAVE_SHARE = 0.7
"""Part of the grace period in which a training process that listens may leave by itself, before SIGTERM."""
SIGKILL = 9
SOURCES = ("memory", "disk", "storage")
"""Where a state can have been restored from."""


class Listener(Protocol):
    """Whom the launcher tells what happens; `Worker` is one. Called from several threads."""

    def on_restored(self, step: int, source: str, seconds_s: float) -> None: ...
    def on_mismatch(self, message: str) -> None: ...
    def on_metrics(self, step: int, values: Mapping[str, Any]) -> None: ...
    def on_finished(self) -> None: ...
    def on_exit(self, code: int | None, signal: int | None, at_ns: int) -> None: ...
    def on_unrestorable(self, message: str) -> None: ...
    def on_event(self, event: Event) -> None: ...
    def note(self, message: str) -> None: ...


class Launcher:
    """One process at a time: `start`, then the listener's `on_exit` when nothing of it is left.

    Also the handlers of its socket (session.Handlers).
    """

    def __init__(
        self, config: WorkerConfig, secrets: Mapping[str, str], listener: Listener, keeper: Keeper
    ) -> None:
        self._config, self._paths = config, config.paths
        self._secrets, self._listener, self._keeper = secrets, listener, keeper
        self._process: GuardedProcess | None = None
        self._session: SessionServer | None = None
        self._asked: tuple[int, float | None] = (0, None)
        self._generation = Generation(config.attempt, 0)
        self._leaving = threading.Event()
        self._gone = threading.Event()
        self._workdir = Path(config.workdir)
        self._bundle: Path | None = None
        self.said_hello = False
        self.waits_for_slot = False
        """Training stands still because storage is slow."""
        self.leave_out: tuple[tuple[int, int], int] = ((0, 0), 0)
        """Generation of the newest rollback, and the step up to which data is left out then."""
        self.own: InUse | None = None
        """The job's own Python environment."""
        self.seat: Mapping[str, Any] = {}
        """Of a rank in a gang: what `environment.build` is told about its place among the others."""
        self.never_skips = False
        """Training waits for a slot whenever storage is to have the step: in a gang the others save it, too."""
        self._page: Page | None = None
        self._drill = Drill(config.drill, config.rank, config.world_size)
        self._page_path = self._paths.page
        self._restored_step: int | None = None
        self._over = threading.Event()
        self.phases = Phases()
        self._standby = Standby(
            self._paths.guards,
            enabled=config.standby,
            on_event=self._on_process,
            memory_bytes=config.memory_bytes,
            used=lambda: int(Sampler("").sample(self.pids())["memory_bytes"]),
        )

    # set-up

    def prepare(self) -> int:
        """Waits for what an earlier agent left behind, and puts the code in place.

        Returns the step at which a predecessor's process stood when it died (0: none, or the job was resumed since).
        """
        for place in self._paths.guards:
            wait_predecessor(place, PREDECESSOR_LIMIT_S)
        stood_at = _last_step(self._paths.page) or _last_step(self._paths.page_fallback)
        node_root = Path(self._config.node_root)
        self._bundle = bundle.ensure(node_root)
        if self._config.code_digest is not None:
            unpacked = code.unpack(self._open_code, self._config.code_digest, node_root)
            self._workdir = code.working_copy(unpacked, self._paths.workdir)
        elif not self._workdir.is_absolute():
            self._paths.workdir.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._workdir = self._paths.workdir
        return 0 if self._config.resumed == self._config.attempt else stood_at

    def _open_code(self) -> BinaryIO:
        return self._keeper.open_object(f"code/{self._config.code_digest}.zip")

    @property
    def workdir(self) -> Path:
        return self._workdir

    # start and stop

    def start(self, generation: Generation) -> int:
        """Starts the command; returns its pid. OSError, GuardError, ValueError when it cannot even be tried."""
        self._generation, self.said_hello, self._restored_step = generation, False, None
        self.waits_for_slot = False
        self._asked = (0, None)
        self._gone.clear()
        self.phases = Phases(since_ns=time.monotonic_ns())
        self._paths.make()
        self._make_page()
        if self._session is not None:
            self._session.close()
        self._session = SessionServer(self._paths.socket, str(self._page_path), self)
        self._process = self._take_over_or_start()
        self.phases.started_ns = time.monotonic_ns()
        self._over = threading.Event()
        self._standby.began(self._over, self._is_going)
        return self._process.pid

    def _take_over_or_start(self) -> GuardedProcess:
        assert self._bundle is not None
        argv, env = split_command(self._config.run), self._environment(self._bundle)
        process = self._standby.take_over(argv, env, self._workdir, self._paths.log)
        if process is not None:
            self.phases.standby = True
            return process
        env, place = self._standby.start(argv, env, self._workdir, self._bundle)
        return GuardedProcess.start(
            argv,
            env=env,
            cwd=self._workdir,
            log_path=self._paths.log,
            state_dir=place,
            on_event=self._on_process,
        )

    def _is_going(self) -> bool | None:
        """Whether the training process has made a step of its own; None while nobody can know."""
        if not self.said_hello:
            return None
        return self._restored_step is not None and self.progress().step > self._restored_step

    def _make_page(self) -> None:
        """A fresh one for every start: nobody who is left over can write into it."""
        for path in (self._paths.page, self._paths.page_fallback):
            try:
                Page.make(str(path))
            except OSError as error:
                if path == self._paths.page_fallback:
                    raise
                self._listener.note(f"{path}: {error.strerror}; the progress page is on disk instead")
                continue
            self._page, self._page_path = Page(str(path)), path
            self._drill.prepare(self._page)
            return

    def _environment(self, bundle_folder: Path) -> dict[str, str]:
        config, seat = self._config, dict(self.seat)
        return environment.build(
            base={**os.environ, **seat.pop("base", {})},
            job_env=config.env,
            secrets=self._secrets,
            bundle=bundle_folder,
            job_id=config.job_id,
            generation=str(self._generation),
            socket=self._paths.socket,
            rank=config.rank,
            world_size=config.world_size,
            gpus=config.gpus,
            checkpoint_dir=(self._workdir if config.files else self._paths.job) / "checkpoints",
            interpreter=None if self.own is None else self.own.python,
            **seat,
        )

    def _on_process(self, event: ProcessEvent) -> None:
        match event:
            case Gone(exited=exited, t_monotonic_ns=at_ns):
                self._gone.set()
                self._over.set()
                if self._session is not None:
                    self._session.end()  # before anybody acts on the exit
                if exited is None:  # the guard was killed, and nobody saw the exit status
                    self._listener.on_exit(None, SIGKILL, at_ns)
                else:
                    self._listener.on_exit(exited.code, exited.signal, exited.t_monotonic_ns)
            case Stuck(pids=pids):
                self._listener.note(
                    f"processes {', '.join(map(str, pids))} of the job do not die; nothing starts yet"
                )
            case Exited():
                pass  # `Gone` follows as soon as the rest of its tree has ended

    @property
    def running(self) -> bool:
        return self._process is not None and not self._gone.is_set()

    def stop(self, grace_s: float, at_step: int = 0) -> None:
        """A process that listens leaves at its next step, or at `at_step` if that is later, with its state; then TERM,
        then KILL of the whole tree.
        """
        process = self._process
        if process is None or not self.running:
            return
        self._leaving.set()
        if grace_s <= 0:
            process.kill()
            return
        if not self.said_hello or self._page is None:
            process.stop(grace_s)
            return
        self._page.put_word(save_at=at_step, stop=True, deadline_ns=time.monotonic_ns() + int(grace_s * 1e9))
        waiter = threading.Thread(target=self._stop_later, args=(process, grace_s), name="stop", daemon=True)
        waiter.start()

    def _stop_later(self, process: GuardedProcess, grace_s: float) -> None:
        if not process.wait_gone(grace_s * LEAVE_SHARE):
            process.stop(grace_s * (1 - LEAVE_SHARE))

    def kill(self) -> None:
        """Ends what still runs; returns when nothing does."""
        self._leaving.set()
        self._standby.end()
        if self._process is not None and self.running:
            self._process.kill()
            self._process.wait_gone(KILL_LIMIT_S)

    def end_process(self) -> None:
        """Ends what runs, so that another start may follow."""
        if self._process is not None and self.running:
            self._process.kill()

    def kill_for_drill(self, step: int) -> None:
        """SIGKILLs the training process when the drill wants that at this step; nobody is told but by its death."""
        if (
            self._process is not None
            and self.running
            and self._drill.kill_is_due(self._generation.restart, step)
        ):
            self._process.signal(SIGKILL)

    @property
    def drill_pending(self) -> bool:
        return self._drill.pending(self._generation.restart)

    def close(self) -> None:
        self._standby.end()
        if self.own is not None:
            self.own.close()
        if self._session is not None:
            self._session.close()

    # what it says, looked up

    @property
    def tells_steps(self) -> bool:
        """Whether anybody knows how far the training process is."""
        return self.said_hello or self._keeper.progress() is not None

    def progress(self) -> Progress:
        told = self._keeper.progress()
        if told is not None:
            return told
        return Progress(0, 0, 0, 0, 0) if self._page is None else self._page.read_progress()

    def beat(self) -> Progress | None:
        """What rises with every sign of progress; None while there is none that could be watched."""
        if self._keeper.progress() is not None:
            return self._keeper.beat()
        return self.progress() if self.said_hello else None

    def pids(self) -> list[int]:
        return self._process.tree() if self._process is not None and self.running else []

    def usage(self) -> dict[str, Any]:
        """What the standby process is and uses, for the job's usage."""
        found = self._standby.status()
        memory = found.get("pss_bytes")
        return {"standby": found, **({} if memory is None else {"standby_bytes": memory})}

    def save_when_due(self, step: int) -> None:
        """By the clock; steps and epochs are counted by the training process itself."""
        assert self._page is not None
        save_at = self.due(step)
        if save_at is not None:
            self._page.put_word(save_at=save_at, stop=self._leaving.is_set())

    def due(self, step: int) -> int | None:
        """The step to be saved, where the clock says that it is time; said once, and again after a while."""
        now_s = time.monotonic()
        asked_step, asked_s = self._asked
        progress = interval.Progress(
            step=step,
            saved_s=self._keeper.saved_s,
            saved_step=self._keeper.saved_step,
            asked_step=asked_step,
            asked_s=asked_s,
        )
        due = interval.next_save(self._keeper.pacing.every, progress, now_s)
        if due.save_at is not None:
            self._asked = (due.save_at, now_s)
        return due.save_at

    def save_at(self, step: int, *, hold: bool = False) -> bool:
        """Asks for a save at `step`. True: the process will surely make it there, should it come so far; it had not
        reached that step when the word could be read, and reads it at every step. `hold`: it goes no further until the
        next word.
        """
        if self._page is None or not self.said_hello or not self.running:
            return False
        self._asked = (step, time.monotonic())
        until_ns = time.monotonic_ns() + int(HOLD_LIMIT_S * 1e9)
        self._page.put_word(save_at=step, stop=self._leaving.is_set(), deadline_ns=until_ns, hold=hold)
        return self.progress().step < step

    def save_soon(self) -> None:
        """At the next step, whatever the interval says."""
        if self._page is not None and self.said_hello and self.running:
            self._asked = (self.progress().step + 1, time.monotonic())
            self._page.put_word(save_at=self._asked[0], stop=self._leaving.is_set())

    # told by a keeper, where the training process tells nothing itself

    def tell_restored(self, step: int, source: str, seconds_s: float) -> None:
        self._listener.on_restored(step, source, seconds_s)

    def tell_metrics(self, step: int, values: Mapping[str, Any]) -> None:
        self._listener.on_metrics(step, values)

    # session.Handlers: called from the connection's thread, in order

    def on_hello(self, hello: Mapping[str, Any]) -> Mapping[str, Any]:
        asked_by = self._generation
        try:
            found = self._keeper.fitted(self._keeper.prepared(), hello.get("places"))
            start = None if found else self._begin_with(hello)
        except InterruptedError as error:
            raise SessionRefusedError(str(error)) from error  # a stop: nothing is wrong with the job
        except (CheckpointError, StorageRefused) as error:
            self._listener.on_unrestorable(str(error))
            raise SessionRefusedError(str(error)) from error
        if asked_by != self._generation:  # it died while storage was waited for, and another one runs
            raise SessionRefusedError(f"generation {asked_by} is over")
        self.said_hello = True
        self.phases.hello_ns = time.monotonic_ns()
        told = None if found is None else found.told(self._skip_after(found))
        return {
            "start": start,
            "generation": str(self._generation),
            "rules": {**self._keeper.pacing.every.rules(), **self._config.rules},
            "restore": told,
        }

    def _begin_with(self, hello: Mapping[str, Any]) -> dict[str, Any] | None:
        return starting.begin_with(self._config, self._secrets, hello, self._listener.note, self._leaving)

    def _skip_after(self, found: Prepared) -> int:
        """Steps whose data is left out: `leave_out` goes for a state that was made before the rollback."""
        rolled_back, until = self.leave_out
        return max(0, until - found.step) if found.generation < rolled_back else 0

    def on_save(self, size_bytes: int, *, step: int, reason: str, wait: bool) -> tuple[int, str] | None:
        # What the clock asked for is skipped while both slots are busy, and asked for again: training does not wait
        # for storage. The last one, one before leaving and one on demand must not be skipped.
        must = (wait and reason != "asked") or (self.never_skips and reason != IN_MEMORY)
        if not self._keeper.pacing.admits(reason, time.monotonic() - self._keeper.saved_s):
            return None  # `max_overhead`: saves by steps and epochs come too close
        try:
            given = self._keeper.acquire(size_bytes, spare_newest=reason == IN_MEMORY)
        except OSError as error:
            self._listener.note(f"no snapshot of step {step} can be taken: {error}")
            return None
        self.waits_for_slot = must and given is None
        if self.waits_for_slot:
            raise BusyError
        return None if given is None else (given.index, given.path)

    def on_saved(self, index: int, info: Mapping[str, Any]) -> None:
        self._keeper.saved(index, info)

    def on_save_failed(self, index: int, message: str) -> None:
        self._keeper.save_failed()
        self._listener.note(f"a snapshot could not be taken: {message}")

    def on_metrics(self, step: int, epoch: int, values: Mapping[str, Any]) -> None:
        self._listener.on_metrics(step, values)

    def on_note(self, level: str, message: str) -> None:
        self._listener.note(message)

    def on_mismatch(self, message: str) -> None:
        self._listener.on_mismatch(message)

    def on_started(self, label: str, counts: Any, skipped: Any, missing: Any, reshaped: Any) -> None:
        if not self._config.rank:  # of all ranks it would be the same
            starting.tell(self._listener, self._generation, label, counts, (skipped, missing, reshaped))

    def on_restored(self, step: int, source: str, seconds_s: float) -> None:
        starting.forget(self._config)
        self.phases.restored_ns = time.monotonic_ns()
        self._restored_step = step
        self._keeper.restored(loaded=source in SOURCES)
        self._listener.on_restored(step, source, seconds_s)

    def on_finished(self, step: int, epoch: int) -> None:
        self._listener.on_finished()


def _last_step(path: Path) -> int:
    """Where a predecessor's process stood; 0 when its page cannot tell."""
    try:
        page = Page(str(path))
    except (OSError, ValueError):
        return 0
    step = page.read_progress().step
    page.close()
    return step
