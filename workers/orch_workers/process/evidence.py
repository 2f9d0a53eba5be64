"""What the kernel says about kills for lack of memory: its log, and the counter of the process' memory group.

Neither can always be had: a container may hide /dev/kmsg and number processes otherwise than the log does, and
a group's counter does not name the process. The log's word about one of our processes is sure; a counter that
rose while one of them was killed is the next best. Where there is neither, a SIGKILL stays a SIGKILL.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

KERNEL_LOG = Path("/dev/kmsg")
CGROUPS = Path("/sys/fs/cgroup")
PROCESSES = Path("/proc")
RECORD_BYTES_MAX = 8192
"""Of the kernel's log: a read gives one record, and fails for a smaller buffer (printk.c, PRINTK_MESSAGE_MAX)."""
RECORDS_MAX = 100_000
"""Looked at after one death; the log itself holds fewer."""
RECORD_CHARS_MAX = 300

_KILLED = re.compile(r"Killed process (\d+) \(([^)]*)\)")


class Group(NamedTuple):
    """A memory group and how many kills for lack of memory it had seen."""

    counter: Path
    kills: int


class OomWatch:
    """From the start of a process tree to its end: `begin`, `look` now and then, `found` when it is over."""

    def __init__(self, kernel_log: Path = KERNEL_LOG) -> None:
        self._path = kernel_log
        self._log = -1
        self._groups: dict[Path, int] = {}
        self._pids: set[int] = set()

    def begin(self, pid: int) -> None:
        """Only what comes after this counts."""
        self.close()
        with contextlib.suppress(OSError):
            self._log = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            os.lseek(self._log, 0, os.SEEK_END)
        self._groups, self._pids = {}, set()
        self.look([pid])

    def look(self, pids: Collection[int]) -> None:
        """Remembers who belongs to the tree and where its memory is counted: a command may move itself."""
        for pid in set(pids) - self._pids:
            group = memory_group(pid)
            if group is not None:
                self._groups.setdefault(group.counter, group.kills)
        self._pids |= set(pids)

    def found(self) -> str:
        """The kernel's word about a kill for lack of memory in this tree since `begin`; "" if there is none."""
        for pid, record in self._kills():
            if pid in self._pids:
                return f"the kernel's log: {record[:RECORD_CHARS_MAX]}"
        for counter, before in self._groups.items():
            now = _kills_in(counter)
            if now is not None and now > before:
                return (
                    f"the kernel counted {now - before} kill(s) for lack of memory in its memory group "
                    f"({counter.parent}, limit {_limit_of(counter.parent)})"
                )
        return ""

    def close(self) -> None:
        if self._log >= 0:
            os.close(self._log)
            self._log = -1

    def _kills(self) -> list[tuple[int, str]]:
        if self._log < 0:
            return []
        found = []
        for _ in range(RECORDS_MAX):
            try:
                record = os.read(self._log, RECORD_BYTES_MAX)
            except BrokenPipeError:
                continue  # what was next has been overwritten meanwhile
            except OSError:
                break  # nothing more
            if not record:
                break
            text = record.decode(errors="replace").partition(";")[2].partition("\n")[0]
            if (match := _KILLED.search(text)) is not None:
                found.append((int(match[1]), text))
        return found


def memory_group(pid: int, processes: Path = PROCESSES, cgroups: Path = CGROUPS) -> Group | None:
    """Where the kernel counts the memory of a process: version 2 or 1 of cgroups, wherever they are mounted."""
    try:
        lines = (processes / str(pid) / "cgroup").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        _, controllers, path = line.split(":", 2)
        below = path.lstrip("/")
        if controllers == "":
            places = [root / below / "memory.events" for root in (cgroups, cgroups / "unified")]
        elif "memory" in controllers.split(","):
            places = [cgroups / controllers / below / "memory.oom_control"]
        else:
            continue
        # In a container the path may be the host's: then the group is the mount itself.
        places += [place.parents[len(Path(below).parts)] / place.name for place in places if below]
        for place in places:
            kills = _kills_in(place)
            if kills is not None:
                return Group(place, kills)
    return None


def _kills_in(counter: Path) -> int | None:
    """`oom_kill 3`, a line in both versions' files."""
    try:
        text = counter.read_text()
    except OSError:
        return None
    match = re.search(r"^oom_kill (\d+)$", text, re.MULTILINE)
    return int(match[1]) if match is not None else None


def _limit_of(group: Path) -> str:
    for name in ("memory.max", "memory.limit_in_bytes"):
        with contextlib.suppress(OSError):
            value = (group / name).read_text().strip()
            return f"{int(value) >> 20} MiB" if value.isdigit() and len(value) < 18 else "none of its own"
    return "unknown"
