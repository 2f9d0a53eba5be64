"""A job of two ranks that is killed on purpose; for tests/chaos."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from support.recovery import Victim, kill

if TYPE_CHECKING:
    from support.server import Server

FOLDER = Path(__file__).parent.parent / "chaos" / "gang_jobs"
STEPS = 300
"""Of that job, on every rank."""


class GangVictim(Victim):
    def __init__(self, server: Server, *options: str, folder: Path = FOLDER) -> None:
        super().__init__(server, *options, folder=folder)

    def newest(self, kind: str, rank: int) -> dict[str, Any]:
        found: dict[str, Any] = self.wait_event(kind, lambda data: data["rank"] == rank)
        return found

    def kill_process(self, rank: int) -> int | None:
        return kill(self.newest("ProcessStarted", rank)["pid"])

    def kill_agent_of(self, rank: int) -> int | None:
        return kill(self.newest("AgentUp", rank)["pid"])
