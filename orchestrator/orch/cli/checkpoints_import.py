"""`orch checkpoints import`: a script's own file becomes a checkpoint that a job can begin with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orch.cli import output
from orch.cli.app import Output, verb
from orch.cli.checkpoints import Options
from orch.cli.output import Format
from orch.model.errors import OrchError, WrongUse


def register(group: typer.Typer) -> None:
    verb(
        group,
        "orch checkpoints import checkpoint.pth s3://bucket/prefix/imported",
        "orch checkpoints import model.pt ./imported/resnet --step 1200",
        name="import",
    )(bring_in)


def bring_in(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", show_default=False, help="What torch.save has written.")
    ],
    url: Annotated[
        str,
        typer.Argument(
            metavar="URL",
            show_default=False,
            help="Their folder to be; its last part is the name.",
        ),
    ],
    *,
    step: Annotated[
        int | None,
        typer.Option("--step", metavar="STEP", min=0, help="Default: what the file says, else 0."),
    ] = None,
    output_format: Output = Format.TABLE,
    option: Options = None,
) -> None:
    """Makes a checkpoint out of a script's own file.

    `{epoch, model_state_dict, optimizer_state_dict, loss}` and its kin, or a bare state dict, read as weights alone
    (nothing in it is executed). `orch submit job.yaml --from URL` begins with it. Needs PyTorch here.
    """
    from orch.cli.checkpoints_place import parse_options, split_url
    from orch_workers.checkpoint import Checkpointer, CheckpointError, StorageError
    from orch_workers.checkpoint.importing_torch import read_torch

    if not file.is_file():
        raise WrongUse(f"{file} is no file")
    split_url(url)
    try:
        found = read_torch(file)
        at = step if step is not None else (found.step or 0)
        with Checkpointer(url, keep=1_000, options=parse_options(option or ())) as checkpoints:
            if checkpoints.list():
                checkpoints.restore()  # it goes on from what was imported before
            checkpoints.save(at, found.state, epoch=found.epoch, metrics=found.metrics)
    except (CheckpointError, StorageError, ValueError) as error:
        raise OrchError(str(error)) from error
    names = list(found.state)
    if output_format is Format.JSON:
        told = {"storage": checkpoints.url, "step": at, "arguments": names, "notes": list(found.notes)}
        output.write_json({"version": output.VERSION, **told})
        return
    output.write_line(f"{checkpoints.url}@{at}: {', '.join(names)}")
    for note in found.notes:
        output.say(f"orch: {note}")
