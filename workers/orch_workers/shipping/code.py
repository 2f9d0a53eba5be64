"""The shipped code of a job: unpacked once per node, copied once per job.

The archive is a zip named by the sha256 of its bytes (made by `orch.api.packing`, which takes its limits from
here). Below `<node_root>/code/` stand `<digest>/`, shared and never written to again, `<digest>.lock`, and
`<digest>.boot`, which says under which boot of the machine the folder was completed: after a power cut the
file system may have kept the folder and lost the files, so an older one is made anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import stat
import time
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, BinaryIO

from orch_workers.locking import try_lock

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    Source = Path | BinaryIO | Callable[[], BinaryIO]

ENTRIES_MAX = 50_000
"""Files, links and empty folders in one archive."""
CONTENT_BYTES_MAX = 1 << 30
"""All files of one archive together, unpacked."""
FILE_BYTES_MAX = 512 << 20
"""One file of an archive, unpacked."""
LINK_BYTES_MAX = 4096
PATH_BYTES_MAX = 2048
NAME_BYTES_MAX = 255
LOCK_WAIT_S_MAX = 900.0
"""Another agent on this node may be unpacking the same code, from slow storage."""
LOCK_POLL_S = 0.05
_COPY_BYTES = 1 << 20
_DIGEST = re.compile(r"[0-9a-f]{64}")


class CodeError(Exception):
    """The archive cannot be used; the sentence says why. Trying again does not help."""


def unpack(source: Source, digest: str, node_root: Path) -> Path:
    """The folder with the code of this digest; unpacked if this node does not have it yet.

    `source` is a path, an open stream, or a function that opens one and is called only when it is needed.
    Raises CodeError if the bytes are not those of the digest, or if the archive holds something that does not
    belong there; nothing is left behind then. Several processes may call it at once: one unpacks.
    """
    if not _DIGEST.fullmatch(digest):
        raise CodeError(f"{digest!r} is no code digest (64 hexadecimal digits)")
    folder = node_root / "code"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    target = folder / digest
    boot = folder / f"{digest}.boot"
    with _locked(folder / f"{digest}.lock", LOCK_WAIT_S_MAX):
        if target.is_dir() and boot.is_file() and boot.read_text() == _boot_id():
            return target
        partial = folder / f"{digest}.partial"
        for leftover in (partial, target, boot):
            _remove(leftover)
        partial.mkdir(mode=0o700)
        try:
            archive = partial / "archive.zip"
            _fetch(source, archive, digest)
            _extract(archive, partial / "tree")
            (partial / "tree").rename(target)
            boot.write_text(_boot_id())
        finally:
            _remove(partial)
    return target


def working_copy(code_dir: Path, workdir: Path) -> Path:
    """The job's own copy of `code_dir` (from `unpack`) at `workdir`, for its command to run and write in.

    Made once: a copy that stands keeps everything the job has written or changed, so that a replaced agent
    goes on in the same folder. Other code (another digest) is copied over it, file by file. Ranks of one machine
    share it: the first one makes it, the others wait.
    """
    marker = workdir.with_name(workdir.name + ".code")
    digest = code_dir.name
    workdir.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _locked(workdir.with_name(workdir.name + ".lock"), LOCK_WAIT_S_MAX):
        if workdir.is_dir() and marker.is_file() and marker.read_text() == digest:
            return workdir
        if workdir.is_dir():
            _copy(code_dir, workdir)
        else:
            partial = workdir.with_name(workdir.name + ".partial")
            _remove(partial)
            _copy(code_dir, partial)
            partial.rename(workdir)
        marker.write_text(digest)
    return workdir


def sweep(node_root: Path, in_use: Collection[str]) -> list[str]:
    """Removes the unpacked code that no job uses; returns its digests. What is locked is left alone."""
    folder = node_root / "code"
    digests = {path.name.partition(".")[0] for path in folder.glob("*")} if folder.is_dir() else set()
    swept = []
    for digest in sorted(digests - set(in_use)):
        lock = folder / f"{digest}.lock"
        with contextlib.suppress(TimeoutError), _locked(lock, 0.0):
            for path in (folder / f"{digest}.boot", folder / f"{digest}.partial", folder / digest, lock):
                _remove(path)
            swept.append(digest)
    return swept


def refuse_path(path: str) -> str | None:
    """Why a path cannot stand in an archive (it would leave the folder), or None."""
    if not path or "\0" in path or "\\" in path:
        return "it is empty or has a character that no archive path may have"
    if path.startswith("/") or re.match(r"[A-Za-z]:", path):
        return "it is not relative"
    if any(part in {"", ".", ".."} for part in path.split("/")):
        return "it has an empty part or leaves the folder"
    try:
        size_bytes = len(path.encode())
    except UnicodeEncodeError:
        return "it is not valid UTF-8"
    names_bytes = [len(part.encode()) for part in path.split("/")]
    too_long = size_bytes > PATH_BYTES_MAX or max(names_bytes) > NAME_BYTES_MAX
    return "it is too long" if too_long else None


def link_stays_inside(path: str, target: str) -> bool:
    """Whether the link at `path` (relative to the folder) points to something in the folder, by its text."""
    if target.startswith("/"):
        return False
    depth = len(PurePosixPath(path).parts) - 1
    for part in target.split("/"):
        depth += {"": 0, ".": 0, "..": -1}.get(part, 1)
        if depth < 0:
            return False
    return True


def _fetch(source: Source, archive: Path, digest: str) -> None:
    """Copies the source, checking digest and size on the way."""
    opened = source.open("rb") if isinstance(source, Path) else source
    stream: IO[bytes] = opened() if callable(opened) else opened
    # zip adds at most some hundred bytes per entry; deflate grows nothing by more than 0.1%.
    limit_bytes = CONTENT_BYTES_MAX + CONTENT_BYTES_MAX // 100 + ENTRIES_MAX * (2 * PATH_BYTES_MAX)
    seen = hashlib.sha256()
    size_bytes = 0
    try:
        with archive.open("xb") as out:
            while block := stream.read(_COPY_BYTES):
                size_bytes += len(block)
                if size_bytes > limit_bytes:
                    raise CodeError(f"the code archive {digest} is longer than {limit_bytes} bytes")
                seen.update(block)
                out.write(block)
    finally:
        if stream is not source:
            stream.close()
    if seen.hexdigest() != digest:
        raise CodeError(
            f"the code archive should have sha256 {digest}, but its {size_bytes} bytes have "
            f"{seen.hexdigest()}: it was damaged or cut short on the way; submit the job again"
        )


def _extract(archive: Path, tree: Path) -> None:
    try:
        with zipfile.ZipFile(archive) as opened:
            entries = opened.infolist()
            _check(entries)
            tree.mkdir(mode=0o755)
            # Links last, so that no file is ever written through one.
            for entry in sorted(entries, key=_is_link):
                _extract_one(opened, entry, tree)
            _check_links([entry.filename for entry in entries if _is_link(entry)], tree)
    except (zipfile.BadZipFile, zlib.error, RuntimeError, EOFError, ValueError) as error:
        raise CodeError(f"the code archive cannot be unpacked: {error}") from error


def _check(entries: list[zipfile.ZipInfo]) -> None:
    if len(entries) > ENTRIES_MAX:
        raise CodeError(f"the code archive has {len(entries)} entries; at most {ENTRIES_MAX} are allowed")
    total_bytes = sum(entry.file_size for entry in entries)
    if total_bytes > CONTENT_BYTES_MAX:
        raise CodeError(f"the code archive unpacks to {total_bytes} bytes; {CONTENT_BYTES_MAX} are allowed")
    kinds: dict[str, bool] = {}
    for entry in entries:
        # orig_filename: zipfile itself cuts the other one at a zero byte.
        path = entry.orig_filename.rstrip("/")
        reason = refuse_path(path)
        mode = stat.S_IFMT(entry.external_attr >> 16)
        if reason is None and mode not in {0, stat.S_IFREG, stat.S_IFLNK, stat.S_IFDIR}:
            reason = "it is no file, folder or link"
        if reason is None and path in kinds:
            reason = "it is there twice"
        if reason is not None:
            raise CodeError(f"the code archive has an entry {path!r}, which is refused: {reason}")
        kinds[path] = entry.is_dir()
    for path in kinds:
        for parent in PurePosixPath(path).parents:
            if kinds.get(str(parent), True) is False:
                raise CodeError(f"the code archive has {path!r} below {str(parent)!r}, which is no folder")


def _extract_one(opened: zipfile.ZipFile, entry: zipfile.ZipInfo, tree: Path) -> None:
    path = tree / entry.filename.rstrip("/")
    path.parent.mkdir(parents=True, exist_ok=True)
    if entry.is_dir():
        path.mkdir(exist_ok=True)
    elif _is_link(entry):
        if entry.file_size > LINK_BYTES_MAX:
            raise CodeError(f"the link {entry.filename!r} in the code archive is longer than any path")
        target = opened.read(entry).decode()
        if not link_stays_inside(entry.filename, target):
            raise CodeError(f"the link {entry.filename!r} in the code archive leaves its folder ({target!r})")
        path.symlink_to(target)
    else:
        with opened.open(entry) as source, path.open("xb") as out:
            # The declared size bounds it: zipfile stops there, and complains about the checksum.
            shutil.copyfileobj(source, out, _COPY_BYTES)
        path.chmod((entry.external_attr >> 16) & 0o777 | stat.S_IRUSR | stat.S_IWUSR)


def _check_links(paths: list[str], tree: Path) -> None:
    """One link through another can leave where each by itself does not."""
    root = tree.resolve()
    for path in paths:
        if not Path(os.path.realpath(tree / path)).is_relative_to(root):
            raise CodeError(f"the link {path!r} in the code archive leaves its folder through another link")


def _is_link(entry: zipfile.ZipInfo) -> bool:
    return stat.S_ISLNK(entry.external_attr >> 16)


def _copy(source: Path, target: Path) -> None:
    """Copies the tree; what stands in the way as another kind of thing is replaced. Times are the copy's."""
    target.mkdir(exist_ok=True)
    for entry in os.scandir(source):
        to = target / entry.name
        if entry.is_dir(follow_symlinks=False):
            if to.is_symlink() or not to.is_dir():
                _remove(to)
            _copy(Path(entry.path), to)
        else:
            _remove(to)
            shutil.copy(entry.path, to, follow_symlinks=False)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


@contextlib.contextmanager
def _locked(path: Path, wait_s: float) -> Iterator[None]:
    """An exclusive lock between processes. Raises TimeoutError."""
    deadline_s = time.monotonic() + wait_s
    while (descriptor := try_lock(path)) is None:
        if time.monotonic() >= deadline_s:
            raise TimeoutError(f"{path} is still locked after {wait_s:.0f} s")
        time.sleep(LOCK_POLL_S)
    try:
        yield
    finally:
        os.close(descriptor)
