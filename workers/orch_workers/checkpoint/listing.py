"""What a job has in storage, each checkpoint with everything that is known about it, and which one is meant."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

from orch_workers.checkpoint.errors import CheckpointError, Damaged
from orch_workers.training.slots import format_generation

if TYPE_CHECKING:
    from orch_policies.retention import Rules
    from orch_workers.checkpoint.catalog import Catalog, RestorePoint
    from orch_workers.checkpoint.chain import Chain, Generation
    from orch_workers.checkpoint.format import Manifest

MANIFESTS_AT_ONCE = 8


class Listed(NamedTuple):
    """A committed checkpoint. `manifest` None: it does not read, and `problem` says why."""

    point: RestorePoint
    manifest: Manifest | None
    problem: str | None
    on_chain: bool
    quarantined: str | None
    """Why it was called damaged; None if it was not."""
    pinned: str | None
    """The note of its pin; None if there is none."""
    kept: str | None
    """Why retention keeps it; None: it would go, or it is none of retention's business (see `is_restorable`)."""
    is_newest: bool
    """The one that a restart would restore."""

    @property
    def step(self) -> int:
        return self.point.step

    @property
    def epoch(self) -> int | None:
        return None if self.manifest is None else self.manifest.epoch

    @property
    def metrics(self) -> dict[str, Any]:
        found = None if self.manifest is None else self.manifest.metrics
        return found if isinstance(found, dict) else {}

    @property
    def size_bytes(self) -> int | None:
        return None if self.manifest is None else self.manifest.size_bytes

    @property
    def is_restorable(self) -> bool:
        """As far as is known without reading its tensors."""
        return self.on_chain and self.quarantined is None and self.manifest is not None


def list_checkpoints(catalog: Catalog, rules: Rules | None = None) -> list[Listed]:
    """All that are committed, newest first. `rules` None: what retention would do is not asked."""
    chain = _chain(catalog)
    points = catalog.committed()
    marks = {point[:2]: reason for point, reason in catalog.quarantined().items()}
    pins = {point[:2]: note for point, note in catalog.pins().items()}
    kept = {} if rules is None else {p[:2]: reason for p, reason in catalog.judge(rules).kept.items()}
    found = []
    newest: RestorePoint | None = None
    with ThreadPoolExecutor(MANIFESTS_AT_ONCE, thread_name_prefix="manifest") as pool:
        manifests = pool.map(lambda point: _manifest(catalog, point), points)
        for point, (manifest, problem) in zip(points, manifests, strict=True):
            place = point[:2]
            on_chain = chain is not None and chain.admits(point.generation, point.step)
            if newest is None and on_chain and place not in marks:
                newest = point
            found.append(
                Listed(
                    point,
                    manifest,
                    problem,
                    on_chain,
                    marks.get(place),
                    pins.get(place),
                    kept.get(place, "pinned" if place in pins else None),
                    point is newest,
                )
            )
    return found


def _chain(catalog: Catalog) -> Chain | None:
    try:
        return catalog.chain()
    except Damaged:
        return None  # nothing can be restored then; what is there is shown all the same


def _manifest(catalog: Catalog, point: RestorePoint) -> tuple[Manifest | None, str | None]:
    try:
        return catalog.manifest(point), None
    except Damaged as error:
        return None, str(error)


def find_point(
    catalog: Catalog, step: int | None = None, generation: Generation | None = None
) -> RestorePoint:
    """The checkpoint that is meant: of that step, else the newest restore point. Without a generation one on the
    chain goes before one off it. CheckpointError when there is none, with what there is.
    """
    where = f"{catalog.storage.url}/{catalog.job_id}"
    points = catalog.committed()
    if not points:
        raise CheckpointError(f"{where} has no checkpoint")
    restorable = {point[:2] for point in _restore_points(catalog)}
    if step is None and generation is None:
        newest = next((point for point in points if point[:2] in restorable), None)
        if newest is None:
            raise CheckpointError(
                f"{where} has {len(points)} checkpoints and none that a restart would take; name a step"
            )
        return newest
    meant = [
        point
        for point in points
        if (step is None or point.step == step) and (generation is None or point.generation == generation)
    ]
    if not meant:
        raise CheckpointError(
            f"{where} has no checkpoint of {_wanted(step, generation)}; it has {_have(points)}"
        )
    return next((point for point in meant if point[:2] in restorable), meant[0])


def _restore_points(catalog: Catalog) -> list[RestorePoint]:
    try:
        return catalog.restore_points()
    except Damaged:
        return []


STEPS_NAMED_MAX = 12


def _wanted(step: int | None, generation: Generation | None) -> str:
    parts = [] if step is None else [f"step {step}"]
    parts += [] if generation is None else [f"generation {format_generation(generation)}"]
    return " of ".join(parts)


def _have(points: list[RestorePoint]) -> str:
    steps = sorted({point.step for point in points}, reverse=True)
    named = ", ".join(str(step) for step in steps[:STEPS_NAMED_MAX])
    more = f" and {len(steps) - STEPS_NAMED_MAX} older" if len(steps) > STEPS_NAMED_MAX else ""
    return f"{'step' if len(steps) == 1 else 'steps'} {named}{more}"


__all__ = ["Listed", "find_point", "list_checkpoints"]
