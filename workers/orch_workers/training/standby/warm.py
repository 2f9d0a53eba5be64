"""The standby itself: imports what it is told, waits, and becomes the script."""

# ruff: noqa: FA100 - an import of __future__ or typing would be one that the script finds done

import os
import sys

from .effects import Effects
from .places import Places, Watch, private
from .state import State

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, List, Tuple


class Standby:
    """The agent's word comes through the pipe `to`, ours goes through `from`; both lie in `folder`."""

    def __init__(self, folder: str, places: Places) -> None:
        self._folder, self._places = folder, places
        self._marshal = private("marshal")
        self._to = os.open(os.path.join(folder, "to"), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self._from = os.open(os.path.join(folder, "from"), os.O_WRONLY | os.O_CLOEXEC)
        self._word = b""

    def run(self) -> None:
        with open(os.path.join(self._folder, "plan"), "rb") as file:
            plan = self._marshal.loads(file.read())
        imported, why = self._warm(plan)
        self._tell("ready", imported, why)
        word = self._wait()
        self._take_over(word)

    def _tell(self, *words: "Any") -> None:
        os.write(self._from, repr(list(words)).encode("ascii", "backslashreplace") + b"\n")

    # warming

    def _warm(self, plan: "List[Any]") -> "Tuple[int, str]":
        """How many modules were imported, and why not more ("" if all were)."""
        plain_path, state, effects = list(sys.path), State(), Effects()
        watch = Watch(self._places)
        sys.meta_path.insert(0, watch)
        try:
            for number, (name, origin, wanted) in enumerate(plan):
                if self._was_called():
                    return number, "the process it stands by for has ended"
                if number == 0:
                    self._set_path(wanted["sys.path"])
                found = state.read()
                different = [key for key in {*wanted, *found} if wanted.get(key) != found.get(key)]
                if different:
                    return number, f"before {name} the script has changed: {', '.join(sorted(different))}"
                before = effects.before()
                self._import(name, origin)
                problem = effects.problem(before)
                if problem:
                    self._spoiled(name, problem)
            return len(plan), ""
        finally:
            effects.stop()
            sys.meta_path.remove(watch)
            sys.path[:] = plain_path

    def _set_path(self, recorded: "List[str]") -> None:
        # The interpreter puts the script's folder in front only after us.
        if recorded[1:] == sys.path:
            sys.path.insert(0, recorded[0])

    def _import(self, name: str, origin: str) -> None:
        try:
            __import__(name)
        except BaseException as error:
            self._spoiled(name, f"{type(error).__name__}: {error}")
        found = self._places.origin(getattr(sys.modules.get(name), "__spec__", None))
        if found != origin:
            self._spoiled(name, f"it comes from {found}, and came from {origin}")

    def _spoiled(self, name: str, reason: str) -> None:
        """This process has done what the script did not: it must never become the script."""
        self._tell("spoiled", name, reason)
        os._exit(0)

    # taking over

    def _was_called(self) -> bool:
        self._read()
        return b"\n" in self._word

    def _read(self) -> None:
        try:
            piece = os.read(self._to, 1 << 20)
        except BlockingIOError:
            return
        if not piece:
            os._exit(0)  # nobody will ever call
        self._word += piece

    def _wait(self) -> "Any":
        os.set_blocking(self._to, True)
        while b"\n" not in self._word:
            self._read()
        return self._marshal.loads(bytes.fromhex(self._word.decode()))

    def _take_over(self, word: "Any") -> None:
        for name in word["unset"]:
            os.environ.pop(name, None)
        os.environ.update(word["env"])
        self._join_log(word["log"])
        for finder in sys.path_importer_cache.values():
            # What was listed while warming may be older than what lies there now.
            invalidate = getattr(finder, "invalidate_caches", None)
            if invalidate is not None:
                invalidate()
        self._tell("taken")
        os.close(self._to)
        os.close(self._from)

    def _join_log(self, path: str) -> None:
        """Standard output and error go to the job's log, after what the imports have said."""
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with open(os.path.join(self._folder, "said"), "rb") as said:
            os.write(log, said.read())
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
