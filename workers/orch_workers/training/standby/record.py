"""Which modules the script imports, in order, and up to where that can be repeated without it."""

# ruff: noqa: FA100, UP037 - an import of __future__ or typing would be one that the script finds done
# ruff: noqa: SLF001 - sys._getframe

import os
import sys

from .places import FROZEN, Places, private
from .state import State

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType
    from typing import Any, List, Optional, Tuple

RECORDS_MAX = 500
EVENTS = ("import", "exec", "os.putenv", "os.unsetenv")


class Recorder:
    """An audit hook (PEP 578): cheap where nothing is to be recorded, and never in the way of the script.

    The record ends with the first change that the user's code makes to its environment. Lines of the file:
    ``("import", name, state)``, ``("from", name, origin)``, ``("end", reason)``, each as Python writes it.
    """

    def __init__(self, path: str, places: Places) -> None:
        self._path, self._places, self._state = path, places, State()
        self._pid, self._thread = os.getpid(), private("_thread")
        self._ident = self._thread.get_ident()
        self._waiting: "List[str]" = []
        self._count, self._busy = 0, False

    def start(self) -> None:
        recorder = [self]

        def hook(event: str, args: "Tuple[Any, ...]") -> None:
            if recorder and event in EVENTS and not recorder[0].take(event, args):
                recorder.clear()

        sys.addaudithook(hook)

    def take(self, event: str, args: "Tuple[Any, ...]") -> bool:
        """False when there is nothing more to record."""
        if self._busy:
            return True
        self._busy = True
        try:
            if os.getpid() != self._pid:
                return False
            if self._thread.get_ident() != self._ident:
                return True
            if event == "import":
                return self._import(args[0])
            if event == "exec":  # a module's code begins: it can be seen where it comes from
                self._tell_origins()
                return True
            return self._environment()
        except Exception:  # whatever it is, the script must not notice
            return False
        finally:
            self._busy = False

    def _import(self, name: str) -> bool:
        self._tell_origins()
        frame = _caller()
        while frame is not None and frame.f_code.co_filename.startswith(FROZEN):
            frame = frame.f_back
        if frame is None or not self._places.is_users(frame):
            return True
        self._write(("import", name, self._state.read()))
        self._waiting.append(name)
        self._count += 1
        return self._count < RECORDS_MAX

    def _environment(self) -> bool:
        """A library may do that while it is imported; the user's code, or what it calls, ends the record."""
        frame = _caller()
        while frame is not None:
            if frame.f_code.co_filename.startswith(FROZEN):
                return True
            if self._places.is_users(frame):
                break
            frame = frame.f_back
        where = "" if frame is None else f" ({frame.f_code.co_filename}:{frame.f_lineno})"
        self._tell_origins()
        self._write(("end", "the script changes its environment" + where))
        return False

    def _tell_origins(self) -> None:
        for name in list(self._waiting):
            module = sys.modules.get(name)
            if module is not None:
                self._waiting.remove(name)
                self._write(("from", name, self._places.origin(getattr(module, "__spec__", None))))

    def _write(self, entry: "Tuple[Any, ...]") -> None:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, (repr(entry) + "\n").encode("utf-8", "backslashreplace"))
        finally:
            os.close(descriptor)


def _caller() -> "Optional[FrameType]":
    """Who caused the event: below this function, two methods and the hook. None when no Python code did."""
    try:
        return sys._getframe(4)
    except ValueError:
        return None
