"""Pickles, looked at without being loaded: is one whole, and which plain values does it hold?

Nothing of a pickle is ever called or imported here. Its operations are read one after the other
(`pickletools.genops`), and a small machine follows them as far as plain values go: numbers, texts, lists, dicts.
Everything else is opaque.
"""

from __future__ import annotations

import io
import os
import pickletools
from typing import IO, Any, NamedTuple

OPERATIONS_MAX = 2_000_000
"""Of one pickle; one with more is only known by its end."""
TORCH_MAGIC = 0x1950A86A20F9469CFC6C
"""The first of the pickles that `torch.save` wrote before it wrote zip files."""
_TORCH_PICKLES = 5
"""Magic number, version, system, the object, the keys of its storages."""
_STOP = b"."

_ELEMENT_BYTES = {
    **dict.fromkeys(("DoubleStorage", "LongStorage", "ComplexFloatStorage"), 8),
    **dict.fromkeys(("FloatStorage", "IntStorage", "QInt32Storage"), 4),
    **dict.fromkeys(("HalfStorage", "BFloat16Storage", "ShortStorage"), 2),
    **dict.fromkeys(("ByteStorage", "CharStorage", "BoolStorage", "UntypedStorage", "QUInt8Storage"), 1),
    "ComplexDoubleStorage": 16,
    "QInt8Storage": 1,
}


class Opaque:
    """What is no plain value. `name` of a class or function that is only named."""

    def __init__(self, name: str = "") -> None:
        self.name = name


class TooLongError(Exception):
    """More operations than are looked at."""


class Walked(NamedTuple):
    """One pickle: its plain values, and what its persistent ids stand for."""

    value: Any
    persistent: list[Any]


_MARK = Opaque("mark")


def walk(stream: IO[bytes]) -> Walked:
    """Reads one pickle up to its end. ValueError when it is none, or ends before."""
    machine = _Machine()
    try:
        for number, (operation, argument, _) in enumerate(pickletools.genops(stream)):
            if number >= OPERATIONS_MAX:
                raise TooLongError
            machine.follow(operation.name, argument)
    except (TooLongError, ValueError):
        raise
    except Exception as error:  # what is no pickle fails in many ways
        raise ValueError(f"{type(error).__name__}: {error}") from error
    return Walked(machine.stack[-1] if machine.stack else None, machine.persistent)


def examine(stream: IO[bytes]) -> tuple[str, Any]:
    """A file of pickles, one after the other: what is wrong with it ("": nothing), and the first one's plain values
    (of a file by torch those of its object).
    """
    end = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    found: list[Walked] = []
    try:
        while stream.tell() < end:
            found.append(walk(stream))
            if len(found) == _TORCH_PICKLES and found[0].value == TORCH_MAGIC:
                problem = _storages_problem(stream, found[3].persistent, found[4].value, end)
                return problem, found[3].value
    except TooLongError:
        return _end_problem(stream, end), None
    except ValueError as error:
        return f"it is no whole pickle ({error})", None
    if not found:
        return "it is empty", None
    if found[0].value == TORCH_MAGIC:
        return "it ends before its tensors", None
    return "", found[0].value


def _end_problem(stream: IO[bytes], end: int) -> str:
    stream.seek(max(0, end - 1))
    return "" if stream.read(1) == _STOP else "it is no whole pickle (its end is missing)"


def _storages_problem(stream: IO[bytes], persistent: list[Any], keys: Any, end: int) -> str:
    """What `torch.save` wrote before version 1.6: behind the pickles, each storage with its number of elements."""
    sizes = {}
    for entry in persistent:
        if isinstance(entry, tuple) and len(entry) >= 5 and isinstance(entry[1], Opaque):
            kind = entry[1].name.rpartition(" ")[2]
            sizes[entry[2]] = (_ELEMENT_BYTES.get(kind), entry[4])
    for key in keys if isinstance(keys, list) else ():
        size, elements = sizes.get(key, (None, None))
        count = int.from_bytes(stream.read(8), "little")
        if size is None or count != elements:
            return "" if size is None else "its tensors do not fit what it says of them"
        if stream.seek(count * size, os.SEEK_CUR) > end:
            return "it ends before its tensors"
    return ""


class _Machine:
    """Follows the operations of one pickle (the comments of Lib/pickletools.py describe each)."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.persistent: list[Any] = []
        self._memo: dict[int, Any] = {}

    def follow(self, name: str, argument: Any) -> None:
        handler = getattr(self, f"_{name.lower()}", None)
        if handler is not None:
            handler(argument)
        elif name in _PLAIN:
            self.stack.append(argument)
        elif name in _OPAQUE:
            self.stack.append(Opaque(str(argument) if name == "GLOBAL" else ""))
        elif name in _POPS:
            self._opaque_of(_POPS[name])
        elif name not in _NOTHING:
            raise ValueError(f"unknown operation {name}")

    def _opaque_of(self, count: int) -> None:
        del self.stack[len(self.stack) - count :]
        self.stack.append(Opaque())

    def _to_mark(self) -> list[Any]:
        at = len(self.stack) - 1
        while self.stack[at] is not _MARK:
            at -= 1
            if at < 0:
                raise ValueError("a mark is missing")
        found = self.stack[at + 1 :]
        del self.stack[at:]
        return found

    def _mark(self, _argument: Any) -> None:
        self.stack.append(_MARK)

    def _none(self, _argument: Any) -> None:
        self.stack.append(None)

    def _newtrue(self, _argument: Any) -> None:
        self.stack.append(True)

    def _newfalse(self, _argument: Any) -> None:
        self.stack.append(False)

    def _pop(self, _argument: Any) -> None:
        self.stack.pop()

    def _pop_mark(self, _argument: Any) -> None:
        self._to_mark()

    def _dup(self, _argument: Any) -> None:
        self.stack.append(self.stack[-1])

    def _empty_dict(self, _argument: Any) -> None:
        self.stack.append({})

    def _empty_list(self, _argument: Any) -> None:
        self.stack.append([])

    def _empty_tuple(self, _argument: Any) -> None:
        self.stack.append(())

    def _dict(self, _argument: Any) -> None:
        items = self._to_mark()
        self.stack.append({})
        self._put_all(items)

    def _list(self, _argument: Any) -> None:
        self.stack.append(self._to_mark())

    def _tuple(self, _argument: Any) -> None:
        self.stack.append(tuple(self._to_mark()))

    def _tuple1(self, _argument: Any) -> None:
        self.stack[-1:] = [(self.stack[-1],)]

    def _tuple2(self, _argument: Any) -> None:
        self.stack[-2:] = [tuple(self.stack[-2:])]

    def _tuple3(self, _argument: Any) -> None:
        self.stack[-3:] = [tuple(self.stack[-3:])]

    def _frozenset(self, _argument: Any) -> None:
        self._to_mark()
        self.stack.append(Opaque())

    _inst = _obj = _frozenset

    def _setitem(self, _argument: Any) -> None:
        items = self.stack[-2:]
        del self.stack[-2:]
        self._put_all(items)

    def _setitems(self, _argument: Any) -> None:
        self._put_all(self._to_mark())

    def _put_all(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, dict):
            for key, value in zip(items[::2], items[1::2], strict=True):
                if isinstance(key, (str, int)):
                    target[key] = value

    def _append(self, _argument: Any) -> None:
        value = self.stack.pop()
        if isinstance(self.stack[-1], list):
            self.stack[-1].append(value)

    def _appends(self, _argument: Any) -> None:
        values = self._to_mark()
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(values)

    def _additems(self, _argument: Any) -> None:
        self._to_mark()

    def _build(self, _argument: Any) -> None:
        self.stack.pop()

    def _reduce(self, _argument: Any) -> None:
        self.stack.pop()
        what = self.stack.pop()
        is_dict = isinstance(what, Opaque) and what.name in {"collections OrderedDict", "builtins dict"}
        self.stack.append({} if is_dict else Opaque())

    def _stack_global(self, _argument: Any) -> None:
        module, name = self.stack[-2:]
        self.stack[-2:] = [Opaque(f"{module} {name}")]

    def _binpersid(self, _argument: Any) -> None:
        self.persistent.append(self.stack.pop())
        self.stack.append(Opaque())

    def _memoize(self, _argument: Any) -> None:
        self._memo[len(self._memo)] = self.stack[-1]

    def _put(self, argument: Any) -> None:
        self._memo[int(argument)] = self.stack[-1]

    _binput = _long_binput = _put

    def _get(self, argument: Any) -> None:
        self.stack.append(self._memo[int(argument)])

    _binget = _long_binget = _get


_PLAIN = frozenset(
    (
        "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
        "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    )
)  # fmt: skip
_OPAQUE = frozenset(
    (
        "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "EMPTY_SET", "GLOBAL", "PERSID", "EXT1", "EXT2",
        "EXT4", "NEXT_BUFFER",
    )
)  # fmt: skip
_POPS = {"NEWOBJ": 2, "NEWOBJ_EX": 3}
_NOTHING = frozenset(("PROTO", "FRAME", "STOP", "READONLY_BUFFER"))


def of_bytes(data: bytes) -> tuple[str, Any]:
    """`examine` of what is in memory."""
    return examine(io.BytesIO(data))
