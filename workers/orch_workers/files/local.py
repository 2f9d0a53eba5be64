"""Versions that are kept on this machine, on disk beside the job's working folder: whole copies, never links to the
script's own files. They outlive the training process and its agent; the next agent of the job here adopts them.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orch_workers.checkpoint.chain import Chain, Generation, strict_generation
from orch_workers.checkpoint.errors import SnapshotChanged
from orch_workers.checkpoint.file_records import FileRecord
from orch_workers.checkpoint.staging import BOOT_ID, RESTORE_INDEX, Snapshot
from orch_workers.files.matching import Signature
from orch_workers.training.slots import format_generation

KEPT_MAX = 2
"""Versions that stay here beside those that are held: the newest, and the one to fall back to."""
LEFT_BEHIND_MAX = 2
"""Versions that a start could not use: so many stay, here as in storage."""
_RECORD, _LINEAGE, _LEFT_BEHIND = "version.json", "lineage.json", "left-behind"
_FORMAT = 1


@dataclass(frozen=True)
class Version:
    """One version of a job's files: what a checkpoint of `kind: files` says of it."""

    generation: Generation
    number: int
    files: tuple[FileRecord, ...]
    step: int | None = None
    """The script's own, where its files tell one."""
    epoch: int | None = None
    metrics: dict[str, Any] | None = None
    left_out: tuple[str, ...] = ()
    """Files that match and were being written all the time (logs): no part of any version, and left where they are."""
    took_s: float = 0.0
    here: tuple[tuple[str, Signature], ...] = ()
    """The script's files as they were when this was taken, on this machine."""

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)

    def to_json(self) -> dict[str, Any]:
        return {
            "format": _FORMAT,
            "generation": format_generation(self.generation),
            "number": self.number,
            "step": self.step,
            "epoch": self.epoch,
            "metrics": self.metrics,
            "left_out": list(self.left_out),
            "took_s": self.took_s,
            "files": [file.model_dump(mode="json") for file in self.files],
            "here": {name: list(signature) for name, signature in self.here},
        }

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Version:
        """ValueError, TypeError or KeyError for what is none."""
        return cls(
            strict_generation(document["generation"]),
            int(document["number"]),
            tuple(FileRecord.model_validate(file) for file in document["files"]),
            document["step"],
            document["epoch"],
            document["metrics"],
            tuple(document["left_out"]),
            float(document["took_s"]),
            tuple((name, Signature(*found)) for name, found in document["here"].items()),
        )


class Local:
    """The versions below `folder`; used under the keeper's lock. What it shares with the staging of snapshots has
    the same names there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.writing: int | None = None
        self._holds: dict[int, set[str]] = {}
        self._found: dict[int, tuple[Snapshot, Version]] = {}
        self._next = RESTORE_INDEX + 1
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._adopt()

    def _adopt(self) -> None:
        """What an earlier agent left and is whole; the rest goes. After a power loss none is known to be whole."""
        boot = self.folder / "boot"
        if _text(boot) != _text(BOOT_ID):
            for path in self.folder.iterdir():
                _remove(path)
            boot.write_text(_text(BOOT_ID))
        for path in sorted(self.folder.glob("version-*")):
            index = int(path.name.partition("-")[2])
            self._next = max(self._next, index + 1)
            if (path / _LEFT_BEHIND).exists():
                continue
            version = _read(path)
            if version is None:
                _remove(path)
                continue
            self._found[index] = _snapshot(index, path, version), version

    # taking and fetching

    def make(self, *, fetched: bool = False) -> tuple[int, Path]:
        """An empty folder for a version; it is none until `ready`. One fetched from storage replaces the one before."""
        index = RESTORE_INDEX if fetched else self._next
        if not fetched:
            self._next += 1
        self._found.pop(index, None)
        path = self.folder / f"version-{index}"
        _remove(path)
        path.mkdir(mode=0o700)
        return index, path

    def ready(self, index: int, version: Version) -> Snapshot:
        """The folder has every file; from now on it is a version."""
        path = self.folder / f"version-{index}"
        beside = path / f"{_RECORD}.new"
        beside.write_text(json.dumps(version.to_json()))
        beside.replace(path / _RECORD)
        self._found[index] = _snapshot(index, path, version), version
        self._holds.setdefault(index, set())
        self._tidy()
        return self._found[index][0]

    def drop(self, index: int) -> None:
        """Of a folder that did not become a version."""
        self._found.pop(index, None)
        _remove(self.folder / f"version-{index}")

    def leave_behind(self, index: int, reason: str) -> None:
        """It is kept, and never restored again."""
        path = self.folder / f"version-{index}"
        if path.is_dir():
            (path / _LEFT_BEHIND).write_text(reason)
        self._found.pop(index, None)
        self._holds.pop(index, None)
        for old in sorted(self.folder.glob(f"version-*/{_LEFT_BEHIND}"))[:-LEFT_BEHIND_MAX]:
            _remove(old.parent)

    def version(self, snapshot: Snapshot) -> Version:
        """SnapshotChanged when it is not there any more."""
        found = self._found.get(snapshot.index)
        version = found[1] if found is not None and found[0] == snapshot else _read(Path(snapshot.path))
        if version is None:
            raise SnapshotChanged(f"{snapshot.path} was given away")
        return version

    @staticmethod
    def file_of(snapshot: Snapshot, number: int) -> Path:
        """Where the file `version.files[number]` lies."""
        return Path(snapshot.path) / str(number)

    # as the staging of snapshots has it

    def abandon(self) -> None:
        """Nobody but the agent writes here."""

    def hold(self, index: int, why: str) -> None:
        self._holds.setdefault(index, set()).add(why)

    def release(self, index: int, why: str) -> None:
        self._holds.get(index, set()).discard(why)
        self._tidy()

    def forget(self, snapshots: Sequence[Snapshot]) -> None:
        """They are never restored again."""
        for snapshot in snapshots:
            self._holds.pop(snapshot.index, None)
            self.drop(snapshot.index)

    def snapshots(self) -> list[Snapshot]:
        """All, newest first."""
        found = [snapshot for snapshot, _ in self._found.values()]
        return sorted(found, key=lambda s: (s.step, s.generation), reverse=True)

    def newest_ready(self, chain: Chain) -> Snapshot | None:
        return next((s for s in self.snapshots() if chain.admits(s.generation, s.step)), None)

    def restored(self) -> Snapshot:
        return self._found[RESTORE_INDEX][0]

    def save_lineage(self, chain: Chain) -> None:
        path = self.folder / _LINEAGE
        beside = path.with_suffix(".new")
        beside.write_text(json.dumps(chain.to_json()))
        beside.replace(path)

    def load_lineage(self) -> Chain | None:
        try:
            return Chain.from_json(json.loads((self.folder / _LINEAGE).read_text()))
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return None

    def _tidy(self) -> None:
        """The newest by when they came: what a superseded start has taken is older, whatever its number says."""
        by_age = sorted(
            self._found,
            key=lambda index: (self._found[index][0].generation, self._found[index][0].step),
            reverse=True,
        )
        for index in by_age[KEPT_MAX:]:
            if not self._holds.get(index):
                self.drop(index)


def _snapshot(index: int, path: Path, version: Version) -> Snapshot:
    return Snapshot(index, str(path), version.generation, version.number, version.size_bytes)


def _read(path: Path) -> Version | None:
    try:
        version = Version.from_json(json.loads((path / _RECORD).read_text()))
        sizes = [file.size_bytes for file in version.files if not file.link]
        numbers = [number for number, file in enumerate(version.files) if not file.link]
        there = [(path / str(number)).stat().st_size for number in numbers]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    return version if sizes == there else None


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()
