"""When may a set of files be copied? Pure: what was seen and the time are arguments.

A script writes the files of one version one after another, and nobody says when the last one is done. So a set is
settled when it differs from what was taken last, nobody has any of it open for writing, and it has not changed for
a while. A script that saves again and again without such a pause is learned: the longest pause it makes is the one
between two versions, and most of it has to pass.

Any moment without an open writer is one in which the script could have been killed, so even a set that is taken too
early is one that the script would have found after a crash without orch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from orch_workers.files.matching import Signature

Files = Mapping[str, Signature]

TICK_S = 0.01
"""A single file that was changed at least so long ago may be copied at once: time stamps are as coarse as the kernel's
tick, a few milliseconds, so that a change after that shows.
"""
QUIET_ONE_S = 0.05
"""A single file that looks the same for so long, whatever the clock says."""
QUIET_SET_S = 1.0
"""Several files that belong together."""
QUIET_LEARNED = 0.7
"""The part of a script's longest pause that has to pass when it makes none of QUIET_SET_S."""
BUSY_AFTER_S = 4.0
"""So long without a pause, and the pauses are learned."""
LOOK_EVERY_S = 0.25
LOOK_CLOSELY_S = 0.02
LOOK_SHARE_MAX = 0.05
"""The part of a core that looking may take: a set of many files is looked at less often."""


@dataclass
class Settling:
    """One start of the command after the other; used by one thread."""

    taken: Files = field(default_factory=dict)
    """The set as it was taken last, or as it was put there before the start."""
    settled: Files | None = None
    """The newest state in which the set was seen to be settled."""
    _files: Files = field(default_factory=dict)
    _changed_s: float = 0.0
    _pending_s: float | None = None
    _longest_s: float = 0.0

    def began(self, files: Files, now_s: float) -> None:
        """The command was started, with these files."""
        self.taken = self._files = dict(files)
        self.settled = self.taken
        self._changed_s, self._pending_s, self._longest_s = now_s, None, 0.0

    def look(self, files: Files, *, writing: bool, now_s: float, age_s: float = 0.0) -> bool:
        """Whether the set may be copied now. `writing`: somebody has one of the files open for writing. `age_s`: since
        its newest change, by its own time stamps.
        """
        if not writing and age_s >= TICK_S and self._is_single(files):
            self._files = self.settled = dict(files)
            self._changed_s = now_s
            return files != self.taken
        if files != self._files or writing:
            if self._pending_s is not None:
                self._longest_s = max(self._longest_s, now_s - self._changed_s)
            else:
                self._pending_s, self._longest_s = now_s, 0.0
            self._files, self._changed_s = dict(files), now_s
            return False
        if not files or now_s - self._changed_s < self.quiet_s(now_s):
            return False
        self.settled = self._files
        if files == self.taken:
            self._pending_s = None
            return False
        return True

    def took(self, files: Files) -> None:
        """This state was copied, or can never be."""
        self.taken, self._pending_s = dict(files), None

    def quiet_s(self, now_s: float) -> float:
        """How long the set must stand still."""
        if self._is_single(self._files):
            return QUIET_ONE_S
        if not self._is_busy(now_s):
            return QUIET_SET_S
        return min(QUIET_SET_S, max(QUIET_ONE_S, QUIET_LEARNED * self._longest_s))

    def pause_s(self, look_took_s: float) -> float:
        """Until the next look."""
        every_s = LOOK_EVERY_S if self._pending_s is None else LOOK_CLOSELY_S
        return max(every_s, look_took_s / LOOK_SHARE_MAX)

    def _is_single(self, files: Files) -> bool:
        return len(files) == 1 and len(self.taken) <= 1

    def _is_busy(self, now_s: float) -> bool:
        return self._pending_s is not None and now_s - self._pending_s > BUSY_AFTER_S
