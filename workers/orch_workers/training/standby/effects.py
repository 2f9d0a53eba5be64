"""What an import must not do in a process that may never run the script."""

# ruff: noqa: FA100, UP037 - an import of __future__ or typing would be one that the script finds done
# ruff: noqa: SLF001 - how many threads there are, and where generators stand

import os
import sys

from .places import private
from .state import loaded

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Set, Tuple

DEVICES = ("/dev/nvidia", "/dev/shm/", "/dev/dri", "/dev/kfd", "/dev/accel", "/dev/infiniband", "/SYSV")  # noqa: S108 - not used, looked for
CONNECTS = ("socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo")
LOOPBACK = ("", "localhost", "127.0.0.1", "::1", "0.0.0.0", "::")  # noqa: S104 - told from others, not bound


class Effects:
    """What an import must not have: each of these would be done by a process that may never run the script."""

    def __init__(self) -> None:
        self._thread, self._seen = private("_thread"), ""
        self._watching = [self]

        def hook(event: str, args: "Tuple[Any, ...]") -> None:
            if self._watching and event.startswith("socket."):
                self._note(event, args)

        sys.addaudithook(hook)

    def _note(self, event: str, args: "Tuple[Any, ...]") -> None:
        if event in CONNECTS or (event == "socket.bind" and not self._is_local(args)):
            self._seen = f"it opens a connection ({event})"

    @staticmethod
    def _is_local(args: "Tuple[Any, ...]") -> bool:
        address = args[1] if len(args) > 1 else None
        return isinstance(address, tuple) and address[0] in LOOPBACK and address[1] == 0

    def stop(self) -> None:
        self._watching.clear()

    def before(self) -> "Tuple[Set[Tuple[str, str]], int, Set[str], Dict[str, Any]]":
        return self._open(), self._thread._count(), self._devices(), draws()

    def problem(self, before: "Tuple[Set[Tuple[str, str]], int, Set[str], Dict[str, Any]]") -> str:
        """What the import did that it must not do; "" if nothing."""
        files, threads, devices, generators = before
        if self._seen:
            return self._seen
        if self._thread._count() > threads:
            return "it starts a thread"
        opened = self._open() - files
        if opened:
            return f"it keeps {', '.join(sorted(name for _, name in opened))} open"
        mapped = self._devices() - devices
        if mapped:
            return f"it opens {', '.join(sorted(mapped))}"
        if children():
            return "it starts a process"
        now = draws()
        drawn = [name for name, state in generators.items() if now.get(name) != state]
        return f"it draws random numbers ({', '.join(drawn)})" if drawn else ""

    @staticmethod
    def _open() -> "Set[Tuple[str, str]]":
        found = set()
        for name in os.listdir("/proc/self/fd"):
            try:
                found.add((name, os.readlink("/proc/self/fd/" + name)))
            except OSError:  # the listing's own
                continue
        return found

    @staticmethod
    def _devices() -> "Set[str]":
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
            paths = {line[73:].strip() for line in maps}
        return {path for path in paths if path.startswith(DEVICES)}


def children() -> bool:
    for task in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{task}/children") as file:
                if file.read().strip():
                    return True
        except OSError:  # a kernel that does not tell
            continue
    return False


def draws() -> "Dict[str, Any]":
    """State of every random generator that a script could have seeded."""
    found: "Dict[str, Any]" = {}
    random, torch = loaded("random"), loaded("torch")
    if random is not None:
        found["random"] = random.getstate()
    numbers = loaded("numpy.random.mtrand")
    if numbers is not None:
        state = numbers._rand.get_state(legacy=False)["state"]
        found["numpy"] = (state["key"].tobytes(), state["pos"])
    if torch is not None:
        found["torch"] = tuple(torch.default_generator.get_state().tolist())
    return found
