"""A job's own environment, from the job file to an interpreter that its processes run in."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from orch_workers.config import WorkerConfig
from orch_workers.environments.building import Builder
from orch_workers.environments.cache import Cache, InUse, Record
from orch_workers.environments.pip_settings import settings
from orch_workers.environments.uv import Uv, base_environment
from orch_workers.environments.wanted import wanted
from orch_workers.errors import UnbuildableError
from orch_workers.logs.attempt_log import AttemptLog

UV_CACHE = "UV_CACHE_DIR"


@dataclass(frozen=True)
class Around:
    """Whom to tell, and what a build has to heed."""

    log: AttemptLog
    note: Callable[[str], None]
    stopping: threading.Event
    has_trained: bool
    """The job has done steps already, in whatever attempt."""

    def tell(self, text: str) -> None:
        self.log.tell(f"orch: {text}\n")


def own_environment(
    config: WorkerConfig, secrets: Mapping[str, str], workdir: Path, around: Around
) -> InUse | None:
    """None where the job wants none. Waits as long as it takes to build.

    Raises UnbuildableError ("failed" only for a job that has never trained: what did once work is not the job's fault),
    and InterruptedError when told to stop.
    """
    if not config.python:
        return None
    cache = Cache(config.paths.environments)
    try:
        found = _acquire(config, cache, secrets, workdir, around)
    except InterruptedError:
        raise
    except (
        UnbuildableError,
        OSError,
    ) as error:  # a full disk is a machine's fault, as it is when uv meets it
        clean = around.log.redactor.redact_text
        outcome = "blocked" if around.has_trained else getattr(error, "outcome", "blocked")
        tail = clean(getattr(error, "tail", ""))
        raise UnbuildableError(clean(str(error)), outcome=outcome, tail=tail) from error
    if found.built:
        try:
            cache.prune()
        except OSError as error:  # this one is there, and that is what the job waits for
            around.note(f"Python environments that nobody uses are not removed for now: {error}")
    else:
        around.tell(
            f"uses the Python environment {found.folder}, built before ({found.record.get('interpreter')})"
        )
    return found


def _acquire(
    config: WorkerConfig, cache: Cache, secrets: Mapping[str, str], workdir: Path, around: Around
) -> InUse:
    shipped = config.code_digest is not None
    # As it was submitted, whatever the job has written over it since.
    source = Path(config.node_root) / "code" / str(config.code_digest) if shipped else workdir
    asked = wanted(config.python, source, shipped=shipped)
    base = base_environment(os.environ, {**config.env, **secrets})
    base.setdefault(UV_CACHE, str(cache.uv_cache))
    found = settings(base)
    uv = Uv(base, config.paths.builds, around.log.path, around.stopping)
    builder = Builder(
        uv.with_variables(found.environment),
        asked,
        options=found.options,
        source=source,
        workdir=workdir,
        note=around.note,
        tell=around.tell,
        stopping=around.stopping,
    )
    interpreter, name = builder.interpreter()

    def build(folder: Path) -> Record:
        record = builder.build(interpreter, name, folder)
        if wanted(config.python, source, shipped=shipped) != asked:
            raise UnbuildableError(
                f"{asked.describe()} changed while the Python environment was being built of it",
                outcome="blocked",
            )
        return record

    return cache.acquire(
        asked.key(name, found, config.code_digest),
        build,
        waits=lambda: around.tell("waits for another worker, which is building this Python environment"),
        stopping=around.stopping,
    )
