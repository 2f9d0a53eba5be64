"""Which sources an agent watches."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orch_workers.preemption.aws import Aws
from orch_workers.preemption.azure import Azure
from orch_workers.preemption.gcp import Gcp
from orch_workers.preemption.metadata import LINK_LOCAL, Metadata
from orch_workers.preemption.ray_drain import RayDrain
from orch_workers.preemption.slurm import Slurm

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from orch_workers.preemption.notice import Source

METADATA_VARIABLE = "ORCH_METADATA"
"""In the environment of the machine's Ray: another address of the metadata service, or `off`."""
OFF = "off"


def sources_of(environment: Mapping[str, str], drain: Callable[[], int | None]) -> list[Source]:
    """All that could give a notice here; the watcher finds out which of them exist. `drain`: see RayDrain."""
    found: list[Source] = [RayDrain(drain), Slurm(environment)]
    base = environment.get(METADATA_VARIABLE, "") or LINK_LOCAL
    if base == OFF:
        return found
    return [*found, Aws(Metadata(base)), Gcp(Metadata(base)), Azure(Metadata(base))]
