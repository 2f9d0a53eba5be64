"""The orders, and what leads to them: see the package."""

import os
import sys

from .places import Places
from .record import Recorder
from .warm import Standby

ENV_ORDER = "ORCH_STANDBY"
EXIT_BROKEN = 70  # EX_SOFTWARE


def main(name: str, folder: str) -> None:
    """What our ``sitecustomize`` (`name`) in `folder` is there for. Raises ImportError when it hides none."""
    order = _hide(folder)
    try:
        found = _run_hidden(name)
    finally:
        _obey(order, os.path.dirname(folder))  # also where it raises what the user shall see
    if not found:
        raise ImportError("no sitecustomize but orch's", name=name)


def _hide(folder: str) -> str:
    """Takes back what brought us here."""
    sys.path[:] = [path for path in sys.path if path != folder]
    for path in [path for path in sys.path_importer_cache if path.startswith(folder)]:
        del sys.path_importer_cache[path]
    package = __name__.rpartition(".")[0]
    for name in [name for name in sys.modules if name == package or name.startswith(package + ".")]:
        del sys.modules[name]
    first, _, rest = os.environ.get("PYTHONPATH", "").partition(os.pathsep)
    if first == folder:
        if rest:
            os.environ["PYTHONPATH"] = rest
        else:
            del os.environ["PYTHONPATH"]
    return os.environ.pop(ENV_ORDER, "")


def _run_hidden(name: str) -> bool:
    """The sitecustomize that this one hides. Another error than its absence is site's to report."""
    del sys.modules[name]
    try:
        __import__(name)
    except ImportError as error:
        if error.name != name:
            raise
        return False
    return True


def _has_usercustomize() -> bool:
    if not getattr(sys.modules.get("site"), "ENABLE_USER_SITE", False):
        return False
    return sys.modules["_frozen_importlib_external"].PathFinder.find_spec("usercustomize") is not None


def _obey(order: str, bundle: str) -> None:
    what, _, where = order.partition(":")
    if what == "probe":
        with open(where, "w") as file:
            file.write(repr((sys.version_info[:2], sys.implementation.name, _has_usercustomize())))
    elif what == "record":
        try:
            Recorder(where, Places(bundle)).start()
        except Exception:  # the job runs without a record
            return
    elif what == "wait":
        try:
            Standby(where, Places(bundle)).run()
        except BaseException as error:
            # Never go on: the script would run beside itself.
            os.write(2, f"orch: the standby failed: {error!r}\n".encode())
            os._exit(EXIT_BROKEN)
