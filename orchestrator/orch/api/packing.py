"""Packs a working folder for shipping: first `plan`, which only looks, then `pack`, which writes the archive.

The archive is a zip that depends on nothing but the files' paths, contents, modes and links, so the same code
has the same digest (the sha256 of the zip), is uploaded once and unpacked once per node. The limits and the
rules for paths are those of `orch_workers.shipping.code`, which unpacks it.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import subprocess
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from orch.api.ignoring import Ignoring, ignore_line
from orch.model.problems import Problem, ProblemsError
from orch.model.units import describe_size
from orch_workers.shipping import code

GIT_WAIT_S_MAX = 20.0
LARGEST_NAMED_MAX = 3
"""Files named when everything together is too large."""
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)
_ZIP_LEVEL = 1
"""Upload time is spent on reading and hashing; higher levels of deflate cost more than they save."""
_COPY_BYTES = 1 << 20


class PackError(ProblemsError):
    """The working folder cannot be shipped as it is."""


@dataclass(frozen=True, slots=True)
class Entry:
    """`path` is relative, with `/`. `target`: where a link points."""

    path: str
    kind: Literal["file", "link", "folder"]
    size_bytes: int = 0
    mode: int = 0
    target: str = ""


@dataclass(frozen=True, slots=True)
class PackPlan:
    """`files` are sorted by path; folders are among them only when they are empty. `left_out` counts what an
    ignore rule held back (a folder counts as one). With `problems` it cannot be packed.
    """

    workdir: Path
    files: tuple[Entry, ...]
    size_bytes: int
    left_out: int
    problems: tuple[Problem, ...]


@dataclass(frozen=True, slots=True)
class GitState:
    """None: not in a git repository, or git cannot say. `dirty`: the folder differs from the commit."""

    commit: str | None = None
    dirty: bool | None = None


@dataclass(frozen=True, slots=True)
class Packed:
    """`size_bytes` is the archive's, `content_bytes` that of the files in it."""

    digest: str
    size_bytes: int
    content_bytes: int
    git_commit: str | None
    git_dirty: bool | None


def plan(workdir: Path) -> PackPlan:
    """What would be shipped, and everything that stands against it. Reads no file's content."""
    if not workdir.is_dir():
        what = "is not a folder" if workdir.exists() else "does not exist"
        return PackPlan(workdir, (), 0, 0, (_problem(f"the working folder {workdir} {what}", str(workdir)),))
    scan = _Scan(workdir.resolve())
    scan.run()
    return scan.result()


def pack(plan: PackPlan, target: Path) -> Packed:
    """Writes the archive to `target`, which must not exist. Raises PackError, and leaves no file then."""
    if plan.problems:
        raise PackError(plan.problems)
    git = git_state(plan.workdir)
    with target.open("xb") as out:
        try:
            with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=_ZIP_LEVEL) as zipped:
                for entry in plan.files:
                    _add(zipped, plan.workdir, entry)
        except BaseException:
            target.unlink(missing_ok=True)
            raise
    with target.open("rb") as made:
        digest = hashlib.file_digest(made, "sha256").hexdigest()
    return Packed(digest, target.stat().st_size, plan.size_bytes, git.commit, git.dirty)


def git_state(workdir: Path) -> GitState:
    """The commit the working folder stands at. Never fails: a run is not worth less without git."""
    commit = _git(workdir, "rev-parse", "--verify", "HEAD")
    if not commit:
        return GitState()
    changes = _git(workdir, "status", "--porcelain", "--untracked-files=normal", "--", ".")
    return GitState(commit.strip(), None if changes is None else bool(changes.strip()))


class _Scan:
    """One walk over the folder. Links are never followed."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._entries: list[Entry] = []
        self._folders: list[str] = []
        self._problems: list[Problem] = []
        self._left_out = 0

    def run(self) -> None:
        try:
            waiting = [("", Ignoring.of(self._root))]
        except (OSError, ValueError) as error:
            self._refuse(f"an ignore file cannot be read: {error}")
            return
        while waiting:
            relative, ignoring = waiting.pop()
            if len(self._entries) + len(self._folders) > code.ENTRIES_MAX:
                self._refuse(
                    f"the working folder {self._root} holds more than {code.ENTRIES_MAX} files and folders; "
                    "exclude some in .orchignore, or use `ship: never`"
                )
                return
            folder = self._root / relative
            try:
                inside = ignoring.inside(folder, relative)
                found = sorted(os.scandir(folder), key=lambda item: item.name)
            except (OSError, ValueError) as error:
                self._refuse(f"{_shown(relative) or 'the working folder'} cannot be read: {error}", relative)
                continue
            for item in found:
                path = f"{relative}/{item.name}" if relative else item.name
                if inside.leaves_out(path, is_folder=item.is_dir(follow_symlinks=False)):
                    self._left_out += 1
                elif self._take(path, item):
                    waiting.append((path, inside))

    def result(self) -> PackPlan:
        size_bytes = sum(entry.size_bytes for entry in self._entries)
        if size_bytes > code.CONTENT_BYTES_MAX:
            files = sorted(self._entries, key=lambda entry: entry.size_bytes, reverse=True)[
                :LARGEST_NAMED_MAX
            ]
            named = ", ".join(f"{_shown(entry.path)} ({describe_size(entry.size_bytes)})" for entry in files)
            self._refuse(
                f"the working folder {self._root} holds {describe_size(size_bytes)}; the limit is "
                f"{describe_size(code.CONTENT_BYTES_MAX)}. The largest: {named}. Exclude what the job does "
                "not need in .orchignore, or use `ship: never` with a folder that every machine has"
            )
        parents = {
            path.rpartition("/")[0] for path in [*self._folders, *(entry.path for entry in self._entries)]
        }
        empty = [Entry(path, "folder") for path in self._folders if path not in parents]
        files = sorted([*self._entries, *empty], key=lambda entry: entry.path)
        return PackPlan(self._root, tuple(files), size_bytes, self._left_out, tuple(self._problems))

    def _take(self, path: str, item: os.DirEntry[str]) -> bool:
        """Notes one entry; True for a folder to walk into."""
        reason = code.refuse_path(path)
        if reason is not None:
            self._refuse(f"{_shown(path)} cannot be shipped: {reason}. {_exclude(path)}", path)
            return False
        if item.is_symlink():
            self._take_link(path, Path(item.path))
            return False
        try:
            status = item.stat(follow_symlinks=False)
        except OSError as error:
            self._refuse(f"{_shown(path)} cannot be read: {error.strerror}. {_exclude(path)}", path)
            return False
        if stat.S_ISDIR(status.st_mode):
            self._folders.append(path)
            return True
        if not stat.S_ISREG(status.st_mode):
            kind = _special_kind(status.st_mode)
            self._refuse(f"{_shown(path)} is {kind}, which cannot be shipped. {_exclude(path)}", path)
            return False
        if status.st_size > code.FILE_BYTES_MAX:
            self._refuse(
                f"{_shown(path)} is {describe_size(status.st_size)}; the limit for one file is "
                f"{describe_size(code.FILE_BYTES_MAX)}. {_exclude(path)}, or use `ship: never`",
                path,
            )
            return False
        if not os.access(item.path, os.R_OK):
            self._refuse(f"{_shown(path)} cannot be read: permission denied. {_exclude(path)}", path)
            return False
        self._entries.append(Entry(path, "file", status.st_size, stat.S_IMODE(status.st_mode) & 0o777))
        return False

    def _take_link(self, path: str, link: Path) -> None:
        text = str(link.readlink())
        try:
            real = Path(os.path.realpath(link, strict=True))
        except OSError as error:
            if error.errno == errno.ELOOP:
                self._refuse(f"{_shown(path)} is a link that leads in a circle. {_exclude(path)}", path)
                return
            real = Path(os.path.realpath(link))
        parent = link.parent.resolve()
        if not real.is_relative_to(self._root):
            self._refuse(
                f"{_shown(path)} is a link out of the working folder (to {_shown(text)}). {_exclude(path)}",
                path,
            )
        elif parent.is_relative_to(real):
            self._refuse(
                f"{_shown(path)} is a link to a folder that it lies in itself, a cycle. {_exclude(path)}",
                path,
            )
        else:
            if not code.link_stays_inside(path, text):
                # It comes back into the folder by this machine's path; elsewhere the folder has another one.
                text = os.path.relpath(real, parent)
            self._entries.append(Entry(path, "link", target=text.replace(os.sep, "/")))

    def _refuse(self, message: str, path: str = "") -> None:
        self._problems.append(_problem(message, path))


def _problem(message: str, value: str = "") -> Problem:
    return Problem(message, path="workdir", value=_shown(value) or None)


def _exclude(path: str) -> str:
    return f"Exclude it with the line {_shown(ignore_line(path))} in .orchignore"


def _shown(path: str) -> str:
    """A name may hold anything but a slash: nothing of it may reach a terminal as it is."""
    plain = path.encode(errors="backslashreplace").decode()
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in plain)


def _special_kind(mode: int) -> str:
    kinds = {stat.S_IFSOCK: "a socket", stat.S_IFIFO: "a named pipe"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def _add(zipped: zipfile.ZipFile, root: Path, entry: Entry) -> None:
    info = zipfile.ZipInfo(entry.path + ("/" if entry.kind == "folder" else ""), _ZIP_TIME)
    info.create_system = 3  # Unix, wherever this runs: that is how the modes are to be read
    info.compress_type = zipfile.ZIP_DEFLATED
    if entry.kind == "folder":
        info.external_attr = (stat.S_IFDIR | 0o755) << 16
        zipped.writestr(info, b"", zipfile.ZIP_STORED)
    elif entry.kind == "link":
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        zipped.writestr(info, entry.target.encode())
    else:
        info.external_attr = (stat.S_IFREG | entry.mode) << 16
        info.file_size = entry.size_bytes
        _add_file(zipped, root, entry, info)


def _add_file(zipped: zipfile.ZipFile, root: Path, entry: Entry, info: zipfile.ZipInfo) -> None:
    """Copies one file, which must still be what it was when the plan was made."""
    changed = _problem(
        f"{_shown(entry.path)} changed while it was being packed; submit again when nothing writes to it. "
        f"{_exclude(entry.path)} if the job does not need it",
        entry.path,
    )
    # Without waiting: what was a file may have become a pipe since.
    flags = (
        os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    )
    try:
        descriptor = os.open(root / entry.path, flags)
    except OSError as error:
        raise PackError([changed]) from error
    with os.fdopen(descriptor, "rb") as source:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise PackError([changed])
        left_bytes = entry.size_bytes
        with zipped.open(info, "w") as out:
            while block := source.read(_COPY_BYTES):
                left_bytes -= len(block)
                if left_bytes < 0:
                    break
                out.write(block)
        if left_bytes:
            raise PackError([changed])


def _git(workdir: Path, *arguments: str) -> str | None:
    environment = os.environ | {"GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    # A repository's own settings may name a program for this one; looking at a folder shall start nothing.
    command = ["git", "-c", "core.fsmonitor=false", "-C", str(workdir), *arguments]
    try:
        done = subprocess.run(
            command,
            env=environment,
            capture_output=True,
            timeout=GIT_WAIT_S_MAX,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode(errors="replace") if done.returncode == 0 else None
