"""Whose a module is, and built-in modules without a trace."""

# ruff: noqa: FA100, UP037 - an import of __future__ or typing would be one that the script finds done

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType
    from typing import Any, Dict

FROZEN = "<frozen importlib"
"""What the import system's own frames are named."""


def private(name: str) -> "Any":
    """A built-in module that leaves no trace in sys.modules; None where there is none of that name."""
    importlib = sys.modules["_frozen_importlib"]
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.BuiltinImporter.find_spec(name)
    if spec is None:
        return None
    module = importlib.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Places:
    """Whose a file is: the installed libraries' (the standard one, site-packages, orch's own) or the user's."""

    def __init__(self, bundle: str) -> None:
        library = os.path.dirname(os.__file__)
        installed = [
            path for path in sys.path if os.path.basename(path) in ("site-packages", "dist-packages")
        ]
        folders = [library, bundle, *installed]
        self._folders = tuple({os.path.join(folder, "") for folder in folders})
        self._known: "Dict[str, bool]" = {}

    def installed(self, path: str) -> bool:
        known = self._known.get(path)
        if known is None:
            known = path.startswith(("<frozen ", *self._folders))
            self._known[path] = known
        return known

    def is_users(self, frame: "FrameType") -> bool:
        # A module that is run (`python -m`) stands for the user's script wherever it lies.
        return frame.f_globals.get("__name__") == "__main__" or not self.installed(frame.f_code.co_filename)

    def origin(self, spec: "Any") -> str:
        """Where a module comes from, as text; "" for what only the user's own folders hold."""
        if spec is None:
            return ""
        if spec.origin in ("built-in", "frozen"):
            return str(spec.origin)
        if spec.has_location and spec.origin:
            return str(spec.origin) if self.installed(spec.origin) else ""
        folders = list(spec.submodule_search_locations or ())
        good = folders and all(self.installed(os.path.join(folder, "")) for folder in folders)
        return "namespace " + os.pathsep.join(folders) if good else ""


class NotOursError(BaseException):
    """A module of the user's own would have been imported. No Exception: no library may catch it."""


class Watch:
    """The first finder while modules are warmed: nothing of the user's own is found, let alone run."""

    def __init__(self, places: Places) -> None:
        self._places = places

    def find_spec(self, name: str, path: "Any" = None, target: "Any" = None) -> "Any":
        for finder in sys.meta_path:
            find = getattr(finder, "find_spec", None)
            if finder is self or find is None:
                continue
            spec = find(name, path, target)
            if spec is not None:
                if not self._places.origin(spec):
                    raise NotOursError(f"it imports {name}, which is the user's own")
                return spec
        return None
