"""What a script can change before an import, so that the import comes out differently."""

# ruff: noqa: FA100, UP037 - an import of __future__ or typing would be one that the script finds done
# ruff: noqa: SLF001 - what modules do not show, and others look at

import os
import sys

from .places import Watch, private

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Iterator, Tuple


class State:
    """The state of the interpreter as far as it can be seen cheaply and without changing it."""

    def __init__(self) -> None:
        self._gc, self._signal = private("gc"), private("_signal")
        self._locale, self._atexit = private("_locale"), private("atexit")
        self._faulthandler, self._thread = private("faulthandler"), private("_thread")
        self._warnings = private("_warnings")

    def read(self) -> "Dict[str, Any]":
        """Name → value, all of plain types: two processes that did the same have the same."""
        return {
            "sys.path": list(sys.path),
            "folder": os.getcwd(),
            "finders": [name_of(finder) for finder in sys.meta_path if type(finder) is not Watch],
            "path hooks": [name_of(hook) for hook in sys.path_hooks],
            "hooks": [name_of(sys.excepthook), name_of(sys.displayhook), name_of(sys.unraisablehook)],
            "tracing": [sys.gettrace() is not None, sys.getprofile() is not None],
            "recursion limit": sys.getrecursionlimit(),
            "switch interval": sys.getswitchinterval(),
            "digits limit": getattr(sys, "get_int_max_str_digits", int)(),
            "garbage collector": [self._gc.isenabled(), *self._gc.get_threshold()],
            "signal handlers": [
                [number, name_of(handler)] for number, handler in self._handlers() if handler not in (0, 1)
            ],
            "ignored signals": [number for number, handler in self._handlers() if handler == 1],
            "locale": self._locale.setlocale(6) if self._locale else "",
            "atexit functions": self._atexit._ncallbacks(),
            "threads": self._thread._count(),
            "faulthandler": self._faulthandler.is_enabled() if self._faulthandler else False,
            "cores": sorted(os.sched_getaffinity(0)),
            "warnings": [
                str(entry) for entry in getattr(sys.modules.get("warnings", self._warnings), "filters", ())
            ],
            **of_modules(),
        }

    def _handlers(self) -> "Iterator[Tuple[int, Any]]":
        for number in range(1, 65):
            try:
                handler = self._signal.getsignal(number)
            except ValueError:
                continue
            yield number, handler


def name_of(thing: "Any") -> str:
    kind = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{getattr(kind, '__module__', '')}.{kind.__qualname__}"


def loaded(name: str) -> "Any":
    module = sys.modules.get(name)
    spec = getattr(module, "__spec__", None)
    return None if getattr(spec, "_initializing", False) else module


def of_modules() -> "Dict[str, Any]":
    """Settings of modules that other modules look at when they are imported."""
    found: "Dict[str, Any]" = {}
    logging, numpy, torch = loaded("logging"), loaded("numpy"), loaded("torch")
    if logging is not None:
        root = logging.root
        found["logging"] = [root.level, len(root.handlers), root.manager.disable, logging.raiseExceptions]
    if numpy is not None:
        found["numpy"] = sorted(numpy.geterr().items())
    if torch is not None:
        found["torch"] = [
            str(torch.get_default_dtype()),
            torch.is_grad_enabled(),
            torch.are_deterministic_algorithms_enabled(),
            str(getattr(sys.modules.get("torch.utils._device"), "CURRENT_DEVICE", None)),
        ]
    sockets = loaded("socket")
    if sockets is not None:
        found["socket time-out"] = sockets.getdefaulttimeout()
    contexts = loaded("multiprocessing.context")
    if contexts is not None:
        chosen = contexts._default_context._actual_context
        found["start method"] = None if chosen is None else name_of(chosen)
    return found
