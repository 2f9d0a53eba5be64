"""`orch submit --from`: the checkpoint of another job that a new one begins with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orch.model.errors import WrongUse

if TYPE_CHECKING:
    from orch.cli.checkpoints_place import Place
    from orch.model.jobfile import LoadedJob

From = Annotated[
    str | None,
    typer.Option(
        "--from", metavar="JOB[@STEP]", help="Begin with another job's checkpoint; a URL names one, too."
    ),
]
Only = Annotated[
    list[str] | None,
    typer.Option(
        "--only", metavar="ARGUMENT", help="Of --from: only this one, such as model, and no counters."
    ),
]
Map = Annotated[
    list[str] | None,
    typer.Option(
        "--map", metavar="OLD=NEW", help="Of --from: renamed tensors, such as 'encoder.*=backbone.*'."
    ),
]


def beginning_with(
    loaded: LoadedJob,
    address: str | None,
    only: Sequence[str],
    maps: Sequence[str],
    cluster: str | None,
) -> LoadedJob:
    """The job with `start_from`. WrongUse, NoSuchJob, JobFileError for what cannot be begun with."""
    if address is None:
        if only or maps:
            raise WrongUse(
                "--only and --map say what is taken of another job's checkpoint: name it with --from"
            )
        return loaded
    from orch.cli.checkpoints_place import find_place, parse_address, sentences
    from orch.cli.checkpoints_tables import generation_text
    from orch.model.jobfile import spec_from_json
    from orch_workers.checkpoint.blobs import KIND

    named = parse_address(address)
    place = find_place(named, cluster)
    with sentences(place):
        point = place.point(named)
        manifest = place.catalog.manifest(point)
    if manifest.kind == KIND:
        raise WrongUse(
            f"--from {address}: this job's script keeps its own files: `orch checkpoints export {address} --to files"
            " --into DIR` brings them into the workdir"
        )
    start = {
        "url": place.url.removeprefix("file://"),
        "options": _options(place),
        "step": point.step,
        "generation": generation_text(point.generation),
        "only": list(only),
        "map": dict(_pair(text) for text in maps),
    }
    spec = spec_from_json({**loaded.spec.model_dump(mode="json"), "start_from": start})
    origins = {name: origin for name, origin in loaded.origins.items() if not name.startswith("start_from")}
    told = {f"start_from.{name}": "--from" for name in start} | {"start_from.only": "--only"}
    return replace(loaded, spec=spec, origins=origins | told)


def _options(place: Place) -> dict[str, Any]:
    storage = None if place.spec is None else place.spec.checkpoint.storage
    return {} if storage is None else dict(storage.options)


def _pair(text: str) -> tuple[str, str]:
    old, equals, new = text.partition("=")
    if not (old and equals and new):
        raise WrongUse(f"--map: {text[:80]!r} is no OLD=NEW, such as 'encoder.*=backbone.*'")
    return old, new
