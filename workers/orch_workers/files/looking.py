"""One look at a job's files: what is there, who writes it, and what the job writes elsewhere."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from orch_workers.files.matching import Signature, find
from orch_workers.files.writers import Open, open_for_writing

CHECKPOINT_FOLDER = "checkpoints"
"""Below the working folder; scripts find it as ORCH_CHECKPOINT_DIR, and what is in it belongs to the set."""
ELSEWHERE_BYTES_MIN = 1 << 10
ELSEWHERE_MAX = 64
HINTS_MAX = 3
COMPILED = "/__pycache__/"
_GROWING = re.compile(r"(?:^|/)events\.out\.tfevents\.[^/]*$|\.(?:log|out|err)$")
"""What scripts append to as long as they run."""


@dataclass(frozen=True)
class Look:
    """`writing`: somebody has one of `files` open for writing. `left_out`: what is only appended to."""

    files: Mapping[str, Signature]
    writing: frozenset[str]
    left_out: frozenset[str]


class Looker:
    """Used by one thread at a time."""

    def __init__(self, root: Path, patterns: Sequence[str], pids: Callable[[], Sequence[int]]) -> None:
        self._root, self._pids = root, pids
        self.patterns = (*patterns, CHECKPOINT_FOLDER)
        self._left_out = set[str]()
        self._elsewhere: dict[str, int] = {}

    def leave_out(self, names: Sequence[str]) -> None:
        """What an earlier start was seen to append to."""
        self._left_out.update(names)

    def look(self, calm: Mapping[str, Signature] | None = None) -> Look:
        """TooManyError when the patterns name more than a set may have. `calm`: where the set is still that, nobody is
        looked for who writes it: a look into all of /proc costs more than the rest.
        """
        found = find(str(self._root), self.patterns)
        if calm and {name: found[name] for name in found if name not in self._left_out} == calm:
            return Look(calm, frozenset(), frozenset(self._left_out & set(found)))
        opened = {(one.device, one.inode): one for one in open_for_writing(self._pids())}
        writing = {name for name, signature in found.items() if (signature.device, signature.inode) in opened}
        for name in found:
            if name in self.patterns:
                continue  # named as it is: then it is meant
            signature = found[name]
            appended = name in writing and opened[signature.device, signature.inode].appends
            if appended or _GROWING.search(name):
                self._left_out.add(name)
        inodes = {(signature.device, signature.inode) for signature in found.values()}
        self._note_elsewhere([one for key, one in opened.items() if key not in inodes])
        files = {name: signature for name, signature in found.items() if name not in self._left_out}
        return Look(files, frozenset(writing - self._left_out), frozenset(self._left_out & set(found)))

    def _note_elsewhere(self, opened: Sequence[Open]) -> None:
        for one in opened:
            if one.path.startswith(("/dev/", "/proc/", "/memfd:")) or one.path.endswith(" (deleted)"):
                continue
            if COMPILED in one.path:
                continue  # the first imports in a new environment write more than any small model
            if len(self._elsewhere) < ELSEWHERE_MAX or one.path in self._elsewhere:
                self._elsewhere[one.path] = max(one.size_bytes, self._elsewhere.get(one.path, 0))

    def hints(self, log: Path) -> list[tuple[str, int]]:
        """The largest files that the job was seen to write and that no pattern names, with what lies beside them:
        checkpoints are open for a moment only, the event file in their folder is all the time. (path, bytes)
        """
        found = dict(self._elsewhere)
        for folder in {str(Path(path).parent) for path in self._elsewhere}:
            if folder in {str(log.parent), "/", "/tmp"}:  # noqa: S108 - of everybody
                continue
            try:
                with os.scandir(folder) as entries:
                    for entry in entries:
                        if entry.is_file(follow_symlinks=False):
                            found[entry.path] = entry.stat(follow_symlinks=False).st_size
            except OSError:
                continue
        ours = {str(self._root / name) for name in find(str(self._root), self.patterns)}
        named = [(path, size) for path, size in found.items() if path != str(log) and path not in ours]
        large = [one for one in named if one[1] >= ELSEWHERE_BYTES_MIN and Path(one[0]).exists()]
        return sorted(large, key=lambda one: one[1], reverse=True)[:HINTS_MAX]
