"""A wall clock that a test sets for one process and its children, by libfaketime; steady clocks stay as they are."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Self

import psutil


class FakeTime:
    """`env` for the processes; `jump` sets their clock, at once, relative to the true one. A context."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "faketime"
        self.jump(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """The library leaves its shared memory behind in a process that is killed."""
        for path in Path("/dev/shm").glob("*faketime_*"):
            _, _, pid = path.name.rpartition("_")
            if pid.isdecimal() and not psutil.pid_exists(int(pid)):
                path.unlink(missing_ok=True)

    @property
    def env(self) -> dict[str, str]:
        found = find_spec("libfaketime")
        assert found is not None
        assert found.submodule_search_locations
        package = Path(found.submodule_search_locations[0])
        library = next(package.rglob("libfaketime.so.1"))
        return {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "DONT_FAKE_MONOTONIC": "1",
        }

    def jump(self, to_s: int) -> None:
        new = self._file.with_suffix(".new")
        new.write_text(f"{to_s:+d}\n")
        new.replace(self._file)
