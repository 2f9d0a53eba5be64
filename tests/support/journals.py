"""What an agent has written into its journal on disk, which needs no controller and no store."""

from __future__ import annotations

from support.recovery import Victim
from support.server import Server


def journalled(server: Server, victim: Victim, kind: str) -> int:
    """How often the agent of the first attempt has told `kind`."""
    return len(in_journal(server, victim, kind))


def in_journal(server: Server, victim: Victim, kind: str) -> list[str]:
    path = server.home / "node" / "jobs" / victim.id / "rank-0" / "journal-000001.jsonl"
    return [line for line in path.read_text().splitlines() if f'"type":"{kind}"' in line]
