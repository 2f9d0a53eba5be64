"""Environments of this machine: below one folder, each under the key of its content, used by many jobs.

`KEY/` is the environment, `KEY.json` says that it was built to its end, `KEY.lock` is held alone by who builds or
removes it, and shared by every agent that uses it; the kernel gives locks back when their holder dies. What has no
`KEY.json` is half built: it is never used, and built anew. A virtual environment has its own path in it, so it is built
in its place.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orch_workers.locking import try_lock

ENVIRONMENTS_BYTES_MAX = 64 << 30
"""All environments of a machine and uv's cache together; over that those go that were not used for longest."""
UNUSED_S_MAX = 30 * 86400.0
"""One that no job has used for so long goes."""
WAIT_S_MAX = 3 * 3600.0
"""Somebody else may be building the very same, from source."""
POLL_S = 0.1
CACHE = "uv-cache"

Record = dict[str, Any]


class InUse:
    """An environment that this process uses: it is not removed until `close`."""

    def __init__(self, folder: Path, record: Record, lock: int, *, built: bool) -> None:
        self.folder, self.record, self.built = folder, record, built
        self._lock: int | None = lock

    @property
    def python(self) -> Path:
        return python_of(self.folder)

    def close(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


@dataclass(frozen=True)
class Kept:
    """One environment as pruning sees it."""

    key: str
    used_s: float
    size_bytes: int


def python_of(folder: Path) -> Path:
    return folder / "bin/python"


class Cache:
    """Below `root`. Safe between processes."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def uv_cache(self) -> Path:
        return self.root / CACHE

    def acquire(
        self,
        key: str,
        build: Callable[[Path], Record],
        *,
        waits: Callable[[], None],
        stopping: threading.Event,
    ) -> InUse:
        """The environment of this key; `build` makes it in the folder it is given and returns what is written down
        about it. `waits` is called once if somebody else is building it. Raises InterruptedError when `stopping` is
        set, TimeoutError at WAIT_S_MAX, and what `build` raises.
        """
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        deadline_s, told, built = time.monotonic() + WAIT_S_MAX, False, False
        while True:
            lock = self._lock(key, shared=True)
            record = self._record(key) if lock is not None else None
            if lock is not None and record is not None:
                self._touch(key)
                return InUse(self.root / key, record, lock, built=built)
            _close(lock)
            lock = self._lock(key)
            if lock is not None:
                try:
                    self._build(key, build)
                    built = True
                finally:
                    _close(lock)
                continue
            if not told:
                waits()
                told = True
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"{self.root / key} is still locked after {WAIT_S_MAX:.0f} s")
            if stopping.wait(POLL_S):
                raise InterruptedError("stopped while another worker was building the Python environment")

    def _build(self, key: str, build: Callable[[Path], Record]) -> None:
        if self._record(key) is not None:
            return  # somebody else was faster
        folder = self.root / key
        self._remove(key)
        with self._building():
            record = build(folder)
        # Before the word that it is whole: after a power cut, too.
        os.sync()
        beside = self.root / f"{key}.json.new"
        with beside.open("w") as file:
            json.dump(record, file)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self.root / f"{key}.json")

    def _record(self, key: str) -> Record | None:
        """None: it is not there, or not whole; its interpreter may have been removed from the machine."""
        try:
            found = json.loads((self.root / f"{key}.json").read_text())
        except (OSError, ValueError):
            return None
        whole = isinstance(found, dict) and os.access(python_of(self.root / key), os.X_OK)
        return found if whole else None

    def _touch(self, key: str) -> None:
        with contextlib.suppress(OSError):  # a full disk; it counts as unused for longer
            os.utime(self.root / f"{key}.json")

    def _remove(self, key: str) -> None:
        """The word that it is whole goes first."""
        (self.root / f"{key}.json").unlink(missing_ok=True)
        if (self.root / key).exists():
            shutil.rmtree(self.root / key)

    # room

    def prune(self, limit_bytes: int | None = None) -> list[str]:
        """Removes what is half built, what nobody has used for long, and, while all of it is over the limit, what was
        not used for longest; what is in use stays. Last goes uv's cache. Returns the keys.
        """
        limit_bytes = ENVIRONMENTS_BYTES_MAX if limit_bytes is None else limit_bytes
        removed = [key for key in self._half_built() if self._remove_unused(key)]
        kept, cache_bytes = self.sizes()
        total_bytes = cache_bytes + sum(one.size_bytes for one in kept)
        for one in sorted(kept, key=lambda one: one.used_s):
            old = time.time() - one.used_s > UNUSED_S_MAX
            if (old or total_bytes > limit_bytes) and self._remove_unused(one.key):
                removed.append(one.key)
                total_bytes -= one.size_bytes
        if total_bytes > limit_bytes:
            self._remove_uv_cache()
        return removed

    def sizes(self) -> tuple[list[Kept], int]:
        """Every environment, and uv's cache; a file that several have (hard links) counts where it is met first."""
        seen: set[tuple[int, int]] = set()
        found = []
        for path in sorted(self.root.glob("*.json")):
            with contextlib.suppress(OSError):
                size_bytes = _size_bytes(path.with_suffix(""), seen)
                found.append(Kept(path.stem, path.stat().st_mtime, size_bytes))
        return found, _size_bytes(self.uv_cache, seen)

    def _half_built(self) -> list[str]:
        folders = [path for path in self.root.iterdir() if path.is_dir() and path.name != CACHE]
        return [path.name for path in folders if not (self.root / f"{path.name}.json").is_file()]

    def _remove_unused(self, key: str) -> bool:
        lock = self._lock(key)
        if lock is None:
            return False
        try:
            self._remove(key)
            (self.root / f"{key}.lock").unlink(missing_ok=True)
        finally:
            _close(lock)
        return True

    def _remove_uv_cache(self) -> None:
        lock = self._lock("building")
        if lock is not None:  # else somebody builds, and prunes after that
            try:
                shutil.rmtree(self.uv_cache, ignore_errors=True)
            finally:
                _close(lock)

    # locks

    @contextlib.contextmanager
    def _building(self) -> Iterator[None]:
        """While uv's cache is being used."""
        while (lock := self._lock("building", shared=True)) is None:
            time.sleep(POLL_S)  # its removal takes seconds
        try:
            yield
        finally:
            _close(lock)

    def _lock(self, key: str, *, shared: bool = False) -> int | None:
        return try_lock(self.root / f"{key}.lock", shared=shared)


def _close(lock: int | None) -> None:
    if lock is not None:
        os.close(lock)


def _size_bytes(folder: Path, seen: set[tuple[int, int]]) -> int:
    """On disk, what was seen already left out."""
    total_bytes = 0
    for at, _, names in os.walk(folder):
        for name in names:
            try:
                found = (Path(at) / name).lstat()
            except OSError:
                continue
            if (found.st_dev, found.st_ino) not in seen:
                seen.add((found.st_dev, found.st_ino))
                total_bytes += found.st_blocks * 512
    return total_bytes
