"""`orch submit --dry-run`: the resolved job, what would be shipped, and whether it could ever be placed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from orch.cli import output
from orch.cli.connect import connected, find_target
from orch.cli.humans import count, one_line
from orch.cli.output import Format
from orch.cli.submit import local_problems
from orch.model.errors import NeverPlaceable, NoServer
from orch.model.problems import JobFileError, format_path
from orch.model.units import describe_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orch.api.packing import PackPlan
    from orch.cli.connect import Target
    from orch.model.jobfile import LoadedJob
    from orch.model.spec import JobSpec
    from orch_policies.placement import Node

Document = dict[str, Any]

FILES_SHOWN_MAX = 20


def dry_run(loaded: LoadedJob, plan: PackPlan | None, output_format: Format, cluster: str | None) -> None:
    """Raises JobFileError for what could not be shipped, NeverPlaceable for what could never run."""
    placement = _placement(loaded.spec, cluster)
    if output_format is Format.JSON:
        output.write_json(
            {
                "version": output.VERSION,
                "job": loaded.spec.model_dump(mode="json"),
                "origins": loaded.origins,
                "code": _code(plan),
                "placement": placement,
            }
        )
    else:
        _print(loaded, plan, placement)
    if problems := local_problems(loaded, plan, cluster):
        raise JobFileError(problem.at(loaded.file, None) for problem in problems)
    if placement["placeable"] is False:
        raise NeverPlaceable(f"this job can never be placed: {placement['reason']}")


def _placement(spec: JobSpec, cluster: str | None) -> Document:
    """The server's word; without one, what this machine (where it would be started) has.

    `placeable` is None where neither is known.
    """
    target = find_target(cluster)
    try:
        with connected(cluster) as client:
            found = client.check(spec.model_dump(mode="json"))
            return {key: value for key, value in found.items() if key != "version"}
    except NoServer as error:
        if target.kind != "home":
            return {"placeable": None, "reason": f"not checked: {error.message}"}
    from orch_policies.placement import Request, fits

    asked, labels = spec.resources, dict(spec.placement.labels)
    request = Request(asked.workers, asked.cpus, asked.gpus, asked.memory_bytes or 0, labels)
    fit = fits(request, [_this_machine(target)])
    reason = f"no server runs; on one started here: {fit.reason}"
    return {"placeable": fit.fits, "reason": reason, "storage": _storage(spec, target)}


def _this_machine(target: Target) -> Node:
    import psutil

    from orch.cli.connect import config_of
    from orch_policies.placement import Node

    config = config_of(target.home)
    return Node(
        "this machine",
        cpus=config.cpus or psutil.cpu_count() or 1,
        gpus=_gpus() if config.gpus is None else config.gpus,
        memory_bytes=psutil.virtual_memory().total,
    )


def _gpus() -> int:
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return 0
    try:
        return int(pynvml.nvmlDeviceGetCount())
    finally:
        pynvml.nvmlShutdown()


def _storage(spec: JobSpec, target: Target) -> str:
    return spec.checkpoint.storage.url if spec.checkpoint.storage else str(target.home.storage)


def _code(plan: PackPlan | None) -> Document | None:
    if plan is None:
        return None
    return {
        "workdir": str(plan.workdir),
        "size_bytes": plan.size_bytes,
        "left_out": plan.left_out,
        "files": [{"path": file.path, "size_bytes": file.size_bytes} for file in plan.files],
        "problems": [problem.to_dict() for problem in plan.problems],
    }


def _print(loaded: LoadedJob, plan: PackPlan | None, placement: Document) -> None:
    console = output.console()
    console.print(_values_table(loaded))
    console.print()
    for line in _shipping_lines(loaded, plan):
        console.print(line)
    console.print()
    if placement.get("storage"):
        console.print(f"checkpoints go to {one_line(placement['storage'])}")
    for warning in placement.get("warnings") or []:
        console.print(f"warning: {one_line(warning)}")
    answer = {True: "can be placed", False: "can never be placed", None: "placement"}[placement["placeable"]]
    console.print(f"{answer}: {one_line(placement['reason'])}")


def _values_table(loaded: LoadedJob) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("KEY", no_wrap=True)
    table.add_column("VALUE", overflow="fold")
    table.add_column("FROM", overflow="fold")
    for path, value in _leaves(loaded.spec.model_dump(mode="json"), ()):
        table.add_row(path, _value(value), one_line(loaded.origins.get(path, "default")))
    return table


def _leaves(value: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, below in value.items():
            yield from _leaves(below, (*path, key))
    else:
        yield format_path(path), value


def _value(value: Any) -> str:
    if value is None or value in ([], {}):
        return "-"
    return one_line(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _shipping_lines(loaded: LoadedJob, plan: PackPlan | None) -> Iterator[str]:
    if plan is None:
        yield f"nothing is shipped: the command runs in {loaded.spec.workdir}"
        return
    left_out = f", {plan.left_out} left out by ignore rules" if plan.left_out else ""
    size = describe_size(plan.size_bytes)
    yield f"ships {count(len(plan.files), 'file')}, {size}, from {plan.workdir}{left_out}"
    largest = sorted(plan.files, key=lambda file: (-file.size_bytes, file.path))[:FILES_SHOWN_MAX]
    for file in largest:
        yield f"  {describe_size(file.size_bytes):>10}  {one_line(file.path)}"
    if len(plan.files) > len(largest):
        yield f"  and {len(plan.files) - len(largest)} smaller ones"
