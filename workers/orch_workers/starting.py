"""What a job without a state of its own begins with: a checkpoint of another job (`start_from`)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from orch.model.events import Event, WarmStarted
from orch.model.generation import Generation
from orch_workers.checkpoint.catalog import Catalog, RestorePoint
from orch_workers.checkpoint.chain import tuple_of
from orch_workers.checkpoint.errors import CheckpointError, NotFound
from orch_workers.checkpoint.location import split_location
from orch_workers.checkpoint.reader import restore
from orch_workers.checkpoint.storage import open_storage
from orch_workers.config import WorkerConfig
from orch_workers.patience import patiently

if TYPE_CHECKING:
    import threading

    from orch_workers.checkpoint.format import Manifest, RankManifest

SOURCE = "start"
"""What a training process says it has restored from when it began with this."""
NAMED_MAX = 20
"""Names of each kind in the note for status; the event and the log have them all."""


def begin_with(
    config: WorkerConfig,
    secrets: Mapping[str, str],
    hello: Mapping[str, Any],
    trouble: Callable[[str], None],
    stopping: threading.Event,
) -> dict[str, Any] | None:
    """For the welcome of a training process; None where the job names none, or the process will not have it.

    Storage that is away is waited for. CheckpointError, StorageRefused: a person must act.
    """
    if not config.start or not hello.get("restore", True):
        return None
    start = config.start
    found = patiently(lambda: _read(config, secrets), has_instead=False, trouble=trouble, stopping=stopping)
    return {"path": found, "label": start["label"], "only": list(start["only"]), "maps": list(start["maps"])}


def _read(config: WorkerConfig, secrets: Mapping[str, str]) -> str:
    start = config.start
    prefix, job = split_location(start["url"])
    storage = open_storage(prefix, start["options"], {**config.env, **secrets}, unfenced=True)
    catalog = Catalog(storage, job)
    point = RestorePoint(tuple_of(Generation.parse(start["generation"])), start["step"])
    try:
        rank = _rank(config, catalog, point)
        for place in _places(config):
            place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with contextlib.suppress(OSError):  # shared memory may have no room for it
                return restore(catalog, point, rank, place)[1]
    except NotFound as error:
        raise CheckpointError(
            f"{start['label']}, which this job begins with, is not there: {error}"
        ) from error
    raise CheckpointError(
        f"there is no room on this machine for {start['label']}, which this job begins with"
    )


def _places(config: WorkerConfig) -> tuple[Path, Path]:
    return config.paths.snapshots / SOURCE, config.paths.state / SOURCE


def _rank(config: WorkerConfig, catalog: Catalog, point: RestorePoint) -> int:
    """Whose part is read: the same rank's, else that of rank 0 where it has everything."""
    manifest: Manifest = catalog.manifest(point)
    if manifest.world_size == config.world_size:
        return config.rank
    part: RankManifest = catalog.rank_manifest(point, manifest, 0)
    if any(piece.global_shape != piece.shape for piece in part.tensors):
        raise CheckpointError(
            f"{config.start['label']} was saved by {manifest.world_size} ranks that divide its tensors; this job has"
            f" {config.world_size}: begin with as many"
        )
    return 0


def forget(config: WorkerConfig) -> None:
    """It was read, or is not wanted."""
    for place in _places(config):
        place.unlink(missing_ok=True)


class Listener(Protocol):
    """Whom it is told."""

    def on_event(self, event: Event) -> None: ...
    def note(self, message: str) -> None: ...


def tell(
    listener: Listener,
    generation: Generation,
    label: str,
    counts: Mapping[str, int],
    names: Sequence[list[str]],
) -> None:
    """The event, and a sentence for status. `names`: skipped, missing, reshaped."""
    skipped, missing, reshaped = (tuple(map(str, found)) for found in names)
    event = WarmStarted(
        generation=generation,
        source=label,
        loaded=int(counts.get("loaded", 0)),
        skipped=skipped,
        missing=missing,
        reshaped=reshaped,
    )
    listener.on_event(event)
    kinds = (("not loaded", skipped), ("missing there", missing), ("of another shape", reshaped))
    parts = [f"{what} {_listed(found)}" for what, found in kinds if found]
    rest = f"; {'; '.join(parts)}" if parts else ", all that there was"
    listener.note(f"began with {label}: {event.loaded} tensors and arguments loaded{rest}")


def _listed(found: tuple[str, ...]) -> str:
    more = f" and {len(found) - NAMED_MAX} more" if len(found) > NAMED_MAX else ""
    return f"{', '.join(found[:NAMED_MAX])}{more}"
