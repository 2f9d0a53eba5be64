"""A record of what a program asks of the file system, and what a crash may leave of it.

After ALICE (Pillai et al., OSDI 2014) and CrashMonkey (Mohan et al., OSDI 2018): the calls of one run are recorded,
and for every boundary between two of them the states that a power loss may leave are made. Whatever was not synced
may be there or not, each thing on its own: a write whole, cut short, as zeros, or without the one before it; a name
in a folder made or removed. Syncing a file keeps its content, not its name; syncing a folder keeps the names in it.
That is weaker than any real file system, so what survives here survives there.
"""

from __future__ import annotations

import itertools
import os
import signal
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator

SUBSETS_MAX = 64
"""Combinations looked at for one inode; more are sampled."""

Tree = dict[str, bytes | None]
"""Path → content; None: a folder."""


@dataclass(frozen=True)
class Op:
    """One call. `handle` names an open file; paths are relative to the recorder's root."""

    kind: str
    path: str = ""
    handle: int = 0
    offset: int = 0
    data: bytes = b""
    flags: int = 0
    to: str = ""

    def __str__(self) -> str:
        what = f"{len(self.data)} bytes at {self.offset}" if self.kind == "write" else self.to
        return f"{self.kind} {self.path or self.handle} {what}".rstrip()


@dataclass(eq=False)
class Inode:
    """`kept`: what is safe; `pending`: what was done since, in order."""

    kept: Any
    pending: list[tuple[Any, ...]] = field(default_factory=list)

    @property
    def is_folder(self) -> bool:
        return isinstance(self.kept, dict)


class Model:
    """A file system after some operations: what is safe, and what hangs in the air."""

    def __init__(self) -> None:
        self.root = Inode({})
        self._handles: dict[int, Inode] = {}

    def apply(self, op: Op) -> None:
        getattr(self, f"_do_{op.kind}")(op)

    def _do_open(self, op: Op) -> None:
        if op.path == "":
            inode = Inode(b"") if op.flags & os.O_TMPFILE == os.O_TMPFILE else self.root
        else:
            folder, name = self._place(op.path)
            inode = _names(folder).get(name)
            if inode is None:
                inode = Inode(b"")
                folder.pending.append(("add", name, inode))
        self._handles[op.handle] = inode
        if op.flags & os.O_TRUNC and _content(inode):
            inode.pending.append(("truncate", 0))

    def _do_write(self, op: Op) -> None:
        self._handles[op.handle].pending.append(("write", op.offset, op.data))

    def _do_truncate(self, op: Op) -> None:
        self._handles[op.handle].pending.append(("truncate", op.offset))

    def _do_sync(self, op: Op) -> None:
        inode = self._handles[op.handle]
        inode.kept = dict(_names(inode)) if inode.is_folder else _content(inode)
        inode.pending = []

    def _do_link(self, op: Op) -> None:
        inode = self._handles[op.handle] if op.handle else self._find(op.path)
        folder, name = self._place(op.to)
        folder.pending.append(("add", name, inode))

    def _do_unlink(self, op: Op) -> None:
        folder, name = self._place(op.path)
        folder.pending.append(("remove", name))

    _do_rmdir = _do_unlink

    def _do_mkdir(self, op: Op) -> None:
        folder, name = self._place(op.path)
        folder.pending.append(("add", name, Inode({})))

    def _do_rename(self, op: Op) -> None:
        inode = self._find(op.path)
        (old, old_name), (new, new_name) = self._place(op.path), self._place(op.to)
        if old is new:  # one entry of the journal: both or neither
            old.pending.append(("rename", old_name, new_name, inode))
        else:
            old.pending.append(("remove", old_name))
            new.pending.append(("add", new_name, inode))

    def _do_spoil(self, op: Op) -> None:
        """Damage done by a test: it is on the disk."""
        self._find(op.path).kept = op.data

    def _find(self, path: str) -> Inode:
        inode = self.root
        for part in Path(path).parts:
            inode = _names(inode)[part]
        return inode

    def _place(self, path: str) -> tuple[Inode, str]:
        where = Path(path)
        return self._find(str(where.parent)), where.name

    def visible(self) -> Tree:
        """What everybody sees, and a kill leaves."""
        return _tree(self.root, _names, _content)

    def after_power_loss(self, rng: random.Random, limit: int) -> Iterator[Tree]:
        """What a power loss may leave: all of it when that is at most `limit`, else so many, by `rng`."""
        inodes = [inode for inode in self._inodes() if inode.pending]
        options = [_outcomes(inode, rng) for inode in inodes]
        total = 1
        for found in options:
            total *= len(found)
        if total <= limit:
            choices: Any = itertools.product(*options)
        else:
            choices = ([rng.choice(found) for found in options] for _ in range(limit))
        for choice in choices:
            outcome = dict(zip(map(id, inodes), choice, strict=True))
            yield _tree(
                self.root,
                lambda inode, outcome=outcome: outcome.get(id(inode), inode.kept),
                lambda inode, outcome=outcome: outcome.get(id(inode), inode.kept),
            )

    def _inodes(self) -> list[Inode]:
        """All that a name leads to, safe or not."""
        found: dict[int, Inode] = {}
        todo = [self.root]
        while todo:
            inode = todo.pop()
            if id(inode) in found:
                continue
            found[id(inode)] = inode
            if inode.is_folder:
                todo += inode.kept.values()
                todo += [step[-1] for step in inode.pending if step[0] != "remove"]
        return list(found.values())


def _names(inode: Inode, pending: Any = None) -> dict[str, Inode]:
    """Entries of a folder after `pending` (all of it when not given)."""
    names = dict(inode.kept)
    for step in inode.pending if pending is None else pending:
        if step[0] == "add":
            names[step[1]] = step[2]
        elif step[0] == "remove":
            names.pop(step[1], None)
        else:
            names.pop(step[1], None)
            names[step[2]] = step[3]
    return names


def _content(inode: Inode, pending: Any = None) -> bytes:
    content = bytearray(inode.kept)
    for step in inode.pending if pending is None else pending:
        if step[0] == "truncate":
            del content[step[1] :]
            content += bytes(step[1] - len(content))
        else:
            _, offset, data = step
            content += bytes(max(0, offset - len(content)))
            content[offset : offset + len(data)] = data
    return bytes(content)


def _outcomes(inode: Inode, rng: random.Random) -> list[Any]:
    """What may be left of one inode: of a folder its names, of a file its content."""
    steps = inode.pending
    if 2 ** len(steps) <= SUBSETS_MAX:
        subsets = [
            list(chosen) for count in range(len(steps) + 1) for chosen in itertools.combinations(steps, count)
        ]
    else:
        subsets = [[], steps, *([s for s in steps if rng.random() < 0.5] for _ in range(SUBSETS_MAX))]
    if inode.is_folder:
        return [_names(inode, subset) for subset in subsets]
    found = {_content(inode, subset) for subset in subsets}
    whole = _content(inode)
    found.add(bytes(len(whole)))  # the size was written, the content was not
    for kind, offset, *rest in steps:
        if kind == "write" and len(rest[0]) > 1:
            cut = rng.randrange(1, len(rest[0]))
            found.add(_content(inode, [("write", offset, rest[0][:cut])]))
            found.add(whole[: offset + cut] + bytes(len(whole) - offset - cut))
    return sorted(found)


def _tree(root: Inode, names: Callable[[Inode], dict[str, Inode]], content: Callable[[Inode], bytes]) -> Tree:
    tree: Tree = {}

    def walk(inode: Inode, path: str) -> None:
        for name, entry in names(inode).items():
            here = f"{path}/{name}" if path else name
            if entry.is_folder:
                tree[here] = None
                walk(entry, here)
            else:
                tree[here] = content(entry)

    walk(root, "")
    return tree


def read_tree(folder: Path) -> Tree:
    return {
        path.relative_to(folder).as_posix(): None if path.is_dir() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
    }


def write_tree(tree: Tree, folder: Path) -> None:
    folder.mkdir(parents=True)
    for path, content in sorted(tree.items()):
        if content is None:
            (folder / path).mkdir()
        else:
            (folder / path).write_bytes(content)


class Recorder:
    """While it is entered, records every call of `os` that changes something below `root`.

    `kill_at`: the process ends itself by SIGKILL before it makes that operation. What it does not know (another
    call, another library) shows when the model is compared with the disk (`assert_complete`).
    """

    def __init__(self, root: Path, *, kill_at: int | None = None) -> None:
        self.root = root
        self.ops: list[Op] = []
        self.marks: list[tuple[int, tuple[Any, ...]]] = []
        self._kill_at = kill_at
        self._lock = threading.RLock()
        self._open: dict[int, tuple[int, int]] = {}  # descriptor → handle, position
        self._handles = itertools.count(1)
        self._real: dict[str, Any] = {}

    def mark(self, *what: Any) -> None:
        """Something that a test wants to know the moment of: between the operations so far and the next."""
        self.marks.append((len(self.ops), what))

    def spoil(self, path: Path, data: bytes) -> None:
        """Damages a file behind everybody's back."""
        path.write_bytes(data)
        self.ops.append(Op("spoil", path.relative_to(self.root).as_posix(), data=data))

    def model(self, count: int | None = None) -> Model:
        """The file system after so many operations."""
        model = Model()
        for op in self.ops[:count]:
            model.apply(op)
        return model

    def models(self) -> Iterator[tuple[int, Model]]:
        """The file system before the first operation, and after each. It is the same one, that goes on."""
        model = Model()
        yield 0, model
        for count, op in enumerate(self.ops, 1):
            model.apply(op)
            yield count, model

    def assert_complete(self) -> None:
        on_disk, known = read_tree(self.root), self.model().visible()
        assert on_disk == known, (
            "the recorder has missed an operation: "
            f"{sorted(path for path in on_disk.keys() | known.keys() if on_disk.get(path) != known.get(path))}"
        )

    def __enter__(self) -> Self:
        for name in [name for name in dir(self) if name.startswith("_os_")]:
            call = name.removeprefix("_os_")
            self._real[call] = getattr(os, call)
            setattr(os, call, getattr(self, name))
        self._real["remove"] = os.remove
        os.remove = self._os_unlink  # type: ignore[assignment]
        return self

    def __exit__(self, *_: object) -> None:
        for call, real in self._real.items():
            setattr(os, call, real)

    def _before(self) -> None:
        if self._kill_at == len(self.ops):
            os.kill(os.getpid(), signal.SIGKILL)

    def _below(self, path: Any, dir_fd: int | None = None) -> str | None:
        """Relative to the root; None for what lies elsewhere."""
        if isinstance(path, int):
            return None
        where = Path(os.fsdecode(path))
        if dir_fd is not None:
            where = Path(self._real.get("readlink", os.readlink)(f"/proc/self/fd/{dir_fd}")) / where
        where = where if where.is_absolute() else Path.cwd() / where
        if where == self.root:
            return ""
        return where.relative_to(self.root).as_posix() if self.root in where.parents else None

    # the calls

    def _os_open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        below = self._below(path, dir_fd)
        if below is None:
            return self._real["open"](path, flags, mode, dir_fd=dir_fd)  # type: ignore[no-any-return]
        with self._lock:
            self._before()
            descriptor: int = self._real["open"](path, flags, mode, dir_fd=dir_fd)
            handle = next(self._handles)
            self._open[descriptor] = (handle, 0)
            anonymous = flags & os.O_TMPFILE == os.O_TMPFILE
            self.ops.append(Op("open", "" if anonymous else below, handle, flags=flags))
            return descriptor

    def _os_close(self, descriptor: int) -> None:
        with self._lock:
            self._open.pop(descriptor, None)
            self._real["close"](descriptor)

    def _written(self, descriptor: int, call: Callable[[], int], buffers: Any, offset: int | None) -> int:
        with self._lock:
            if descriptor not in self._open:
                return call()
            handle, position = self._open[descriptor]
            data = b"".join(bytes(memoryview(buffer).cast("B")) for buffer in buffers)
            at = position if offset is None else offset
            self._before()
            count = call()
            self.ops.append(Op("write", handle=handle, offset=at, data=data[:count]))
            if offset is None:
                self._open[descriptor] = (handle, position + count)
            return count

    def _os_write(self, descriptor: int, data: Any) -> int:
        return self._written(descriptor, lambda: self._real["write"](descriptor, data), [data], None)

    def _os_writev(self, descriptor: int, buffers: Any) -> int:
        return self._written(descriptor, lambda: self._real["writev"](descriptor, buffers), buffers, None)

    def _os_pwrite(self, descriptor: int, data: Any, offset: int) -> int:
        return self._written(
            descriptor, lambda: self._real["pwrite"](descriptor, data, offset), [data], offset
        )

    def _os_pwritev(self, descriptor: int, buffers: Any, offset: int, flags: int = 0) -> int:
        return self._written(
            descriptor, lambda: self._real["pwritev"](descriptor, buffers, offset, flags), buffers, offset
        )

    def _on_handle(self, kind: str, descriptor: int, call: Callable[[], Any], offset: int = 0) -> Any:
        with self._lock:
            if descriptor not in self._open:
                return call()
            self._before()
            found = call()
            self.ops.append(Op(kind, handle=self._open[descriptor][0], offset=offset))
            return found

    def _os_fsync(self, descriptor: int) -> None:
        self._on_handle("sync", descriptor, lambda: self._real["fsync"](descriptor))

    def _os_fdatasync(self, descriptor: int) -> None:
        self._on_handle("sync", descriptor, lambda: self._real["fdatasync"](descriptor))

    def _os_ftruncate(self, descriptor: int, length: int) -> None:
        self._on_handle("truncate", descriptor, lambda: self._real["ftruncate"](descriptor, length), length)

    def _os_posix_fallocate(self, descriptor: int, offset: int, length: int) -> None:
        with self._lock:
            size = max(os.fstat(descriptor).st_size, offset + length)
            self._on_handle(
                "truncate",
                descriptor,
                lambda: self._real["posix_fallocate"](descriptor, offset, length),
                size,
            )

    def _named(self, kind: str, call: Callable[[], None], path: Any, dir_fd: int | None = None) -> None:
        below = self._below(path, dir_fd)
        if below is None:
            call()
            return
        with self._lock:
            self._before()
            call()
            self.ops.append(Op(kind, below))

    def _os_unlink(self, path: Any, *, dir_fd: int | None = None) -> None:
        self._named("unlink", lambda: self._real["unlink"](path, dir_fd=dir_fd), path, dir_fd)

    def _os_rmdir(self, path: Any, *, dir_fd: int | None = None) -> None:
        self._named("rmdir", lambda: self._real["rmdir"](path, dir_fd=dir_fd), path, dir_fd)

    def _os_mkdir(self, path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        self._named("mkdir", lambda: self._real["mkdir"](path, mode, dir_fd=dir_fd), path, dir_fd)

    def _two(self, kind: str, call: Callable[[], None], source: Any, to: Any, handle: int = 0) -> None:
        below, target = self._below(source), self._below(to)
        if target is None:
            call()
            return
        with self._lock:
            self._before()
            call()
            self.ops.append(Op(kind, below or "", handle, to=target))

    def _os_link(self, source: Any, to: Any, **more: Any) -> None:
        handle = 0
        if os.fsdecode(source).startswith("/proc/self/fd/"):  # of a file without a name (O_TMPFILE)
            handle = self._open[int(os.fsdecode(source).rsplit("/", 1)[1])][0]
        self._two("link", lambda: self._real["link"](source, to, **more), source, to, handle)

    def _os_rename(self, source: Any, to: Any, **more: Any) -> None:
        self._two("rename", lambda: self._real["rename"](source, to, **more), source, to)

    def _os_replace(self, source: Any, to: Any, **more: Any) -> None:
        self._two("rename", lambda: self._real["replace"](source, to, **more), source, to)
