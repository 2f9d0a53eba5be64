"""The typed tree: Python values as JSON that come back as exactly what they were.

JSON alone loses int keys, tuples, Counter, OrderedDict, sets, bytes, inf and nan (a MultiStepLR silently lost
its milestones that way). Here a value is written as plain JSON where JSON keeps it (None, bool, str, int up
to 2**53, finite float, list, dict with str keys) and otherwise as a node ``{"~": tag, …}``:

============  =======================================  ==============================================
tag           other keys                               value
============  =======================================  ==============================================
int           v: hexadecimal                           an int beyond 2**53
float         v: "nan", "inf", "-inf"                  what JSON numbers cannot say
complex       v: [real, imag] (trees)                  complex
bytes         v: base64, or entry                      bytes; long ones are an entry of the data region
bytearray     v: base64                                bytearray
tuple, set,   v: [trees]                               of exactly that type; sets are ordered by their JSON
frozenset
dict          v: [[key, value], …]                     dict with other than plain str keys
OrderedDict,  v: [[key, value], …], attributes         of exactly that type; attributes: instance attributes
Counter                                                (PyTorch keeps a state dict's `_metadata` there)
defaultdict   v: …, factory: name of a built-in type   collections.defaultdict
deque         v: [trees], maxlen                       collections.deque
range, slice  v: [start, stop, step]
============  =======================================  ==============================================

Adapters add tags for arrays (``tensor``, ``ndarray``, …), whose bytes are entries of the slot's data region.
Any other type is refused with its path: a checkpoint never holds a pickle, and restoring never runs code.
"""

from __future__ import annotations

import base64
import json
import math
from abc import ABC, abstractmethod
from collections import Counter, OrderedDict, defaultdict, deque
from typing import Any, Callable, Dict, Hashable, NamedTuple, Sequence

from .errors import UnsupportedStateError

TAG = "~"
DEPTH_MAX = 100
BYTES_INLINE_MAX = 256
NAME_CHARACTERS_MAX = 2_000
"""Longer names of entries are cut (and told apart by a number)."""
_INT_PLAIN_MAX = 1 << 53
_FACTORIES = {t.__name__: t for t in (int, float, str, list, dict, set, tuple, bool, bytes)}

_PLAIN_NODE = (TAG, "entry")
"""Keys of a node that says nothing but which entry it is."""

Json = Any
Make = Callable[[Dict[str, Any], "Decoder"], Any]
Fill = Callable[[Any, memoryview], None]
"""Copies bytes into a flat, writable array of bytes (of NumPy or torch) of the same length."""


class Leaf(NamedTuple):
    """A value whose bytes go to the data region. Equal identities are the same memory and are stored once."""

    dtype: str
    shape: tuple[int, ...]
    size_bytes: int
    identity: Hashable | None
    node: dict[str, Any]
    copy_to: Callable[[memoryview], None]
    plain: Callable[[], Any] | None = None
    """Gives the bytes as one NumPy array that shares the value's memory; None where they are not one run."""
    whole: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    """Of a rank's piece of a larger tensor: that one's shape, and where in it the piece begins."""


class Entry(NamedTuple):
    name: str
    leaf: Leaf


class Codec(ABC):
    """What an adapter adds to the tree. `leaf` and `node` return None for values that are not theirs."""

    tags: tuple[str, ...] = ()

    def leaf(self, value: Any, path: str) -> Leaf | None:
        return None

    def node(self, value: Any) -> dict[str, Any] | None:
        return None

    @abstractmethod
    def make(
        self, node: dict[str, Any], data: memoryview | None, dtype: str, shape: tuple[int, ...], fill: Fill
    ) -> Any:
        """A value with memory of its own; `fill` may run after this has returned."""

    def borrow(self, node: dict[str, Any], data: memoryview, dtype: str, shape: tuple[int, ...]) -> Any:
        """The same value as a view of `data`, laid out in C order; None for what cannot be one."""
        return None


class Encoder:
    """Writes values of one snapshot; `entries` collects what goes to the data region, in order. `base`: an
    encoder whose entries are in the snapshot too.
    """

    def __init__(self, codecs: Sequence[Codec] = (), base: Encoder | None = None) -> None:
        self.entries: list[Entry] = []
        self._codecs = codecs
        self._base = base
        self._by_identity: dict[Hashable, str] = {}
        self._names: set[str] = set()

    def encode(self, value: Any, path: str, depth: int = 0) -> Json:
        """Raises UnsupportedStateError, naming `path` and below, for what no checkpoint can hold."""
        if depth > DEPTH_MAX:
            raise UnsupportedStateError(
                f"{path[:200]}: nested deeper than {DEPTH_MAX} levels, or a value that contains itself"
            )
        kind = type(value)
        scalar = _SCALARS.get(kind)
        if scalar is not None:
            return scalar(value)
        if kind is bytes:
            return self._bytes(value, path)
        if kind is list:
            return self._items(value, path, depth)
        if kind is dict and all(type(key) is str and not key.startswith(TAG) for key in value):
            return {key: self.encode(item, f"{path}.{key}", depth + 1) for key, item in value.items()}
        container = self._container(kind, value, path, depth)
        if container is not None:
            return container
        for codec in self._codecs:
            leaf = codec.leaf(value, path)
            if leaf is not None:
                return {**leaf.node, "entry": self._entry(path, leaf)}
            node = codec.node(value)
            if node is not None:
                return node
        raise UnsupportedStateError(
            f"{path}: a checkpoint cannot hold a value of type {kind.__module__}.{kind.__qualname__}; "
            "keep numbers, strings, bytes, tensors, arrays, and lists, tuples, sets and dicts of them"
        )

    def _items(self, values: Any, path: str, depth: int) -> list[Json]:
        return [self.encode(item, f"{path}.{index}", depth + 1) for index, item in enumerate(values)]

    def _pairs(self, values: Any, path: str, depth: int) -> list[Json]:
        return [
            [
                self.encode(key, f"{path}.(key {key!r:.50})", depth + 1),
                self.encode(item, f"{path}.{key}", depth + 1),
            ]
            for key, item in values.items()
        ]

    def _container(self, kind: type, value: Any, path: str, depth: int) -> Json | None:
        name = kind.__name__
        if kind is tuple:
            return {TAG: name, "v": self._items(value, path, depth)}
        if kind is set or kind is frozenset:
            items = self._items(value, path, depth)
            return {TAG: name, "v": sorted(items, key=json.dumps)}
        if kind is dict:
            return {TAG: name, "v": self._pairs(value, path, depth)}
        if kind is OrderedDict or kind is Counter:
            node: dict[str, Any] = {TAG: name, "v": self._pairs(value, path, depth)}
            if vars(value):
                node["attributes"] = self.encode(dict(vars(value)), f"{path}.(attributes)", depth + 1)
            return node
        if kind is deque:
            return {TAG: name, "v": self._items(value, path, depth), "maxlen": value.maxlen}
        if kind is defaultdict:
            factory = value.default_factory
            if factory is not None and _FACTORIES.get(getattr(factory, "__name__", "")) is not factory:
                allowed = ", ".join(sorted(_FACTORIES))
                raise UnsupportedStateError(
                    f"{path}: a defaultdict can be kept if its factory is one of {allowed}"
                )
            pairs = self._pairs(value, path, depth)
            return {TAG: name, "v": pairs, "factory": None if factory is None else factory.__name__}
        if kind is range or kind is slice:
            parts = [value.start, value.stop, value.step]
            return {TAG: name, "v": self._items(parts, path, depth)}
        return None

    def _bytes(self, value: bytes, path: str) -> Json:
        if len(value) <= BYTES_INLINE_MAX:
            return {TAG: "bytes", "v": base64.b64encode(value).decode("ascii")}
        leaf = Leaf("U8", (len(value),), len(value), None, {TAG: "bytes"}, _bytes_copier(value))
        return {TAG: "bytes", "entry": self._entry(path, leaf)}

    def _entry(self, path: str, leaf: Leaf) -> str:
        known = None if leaf.identity is None else self.known(leaf.identity)
        if known is not None:
            return known
        path = path[:NAME_CHARACTERS_MAX]
        name, number = path, 1
        while self.is_taken(name):  # keys with dots in them can make two paths read the same
            number += 1
            name = f"{path}~{number}"
        self._names.add(name)
        if leaf.identity is not None:
            self._by_identity[leaf.identity] = name
        self.entries.append(Entry(name, leaf))
        return name

    def known(self, identity: Hashable) -> str | None:
        """The entry that has this memory, if there is one."""
        found = self._by_identity.get(identity)
        return found if found is not None or self._base is None else self._base.known(identity)

    def is_taken(self, name: str) -> bool:
        return name in self._names or (self._base is not None and self._base.is_taken(name))


class Decoder:
    """Reads values back. `fetch(entry)` gives (bytes, dtype, shape) of an entry of the data region.

    An entry that is met twice gives the same object twice, so what shared memory shares it again. `fill` copies
    bytes from an entry to a value that was made for them. `borrow`: arrays are views of the entries where they
    can be.
    """

    def __init__(
        self,
        fetch: Callable[[str], tuple[memoryview, str, tuple[int, ...]]],
        codecs: Sequence[Codec] = (),
        *,
        fill: Fill | None = None,
        borrow: bool = False,
    ) -> None:
        self._fetch = fetch
        self._fill = fill or fill_now
        self._borrow = borrow
        self._by_tag = {tag: codec for codec in codecs for tag in codec.tags}
        self._made: dict[tuple[str, str], Any] = {}

    def decode(self, tree: Json) -> Any:
        """Raises ValueError for a tree that this version cannot read."""
        if isinstance(tree, list):
            return [self.decode(item) for item in tree]
        if not isinstance(tree, dict):
            return tree
        tag = tree.get(TAG)
        if tag is None:
            return {key: self.decode(item) for key, item in tree.items()}
        maker = _MAKERS.get(tag)
        if maker is not None:
            return maker(tree, self)
        codec = self._by_tag.get(tag)
        if codec is None:
            raise ValueError(f"the checkpoint holds a value of kind {tag!r}, and nothing here can read it")
        if "entry" not in tree:
            return codec.make(tree, None, "", (), self._fill)
        key = (tree["entry"], json.dumps(tree, sort_keys=True) if len(tree) > len(_PLAIN_NODE) else "")
        if key not in self._made:
            found = self._fetch(tree["entry"])
            made = codec.borrow(tree, *found) if self._borrow else None
            self._made[key] = codec.make(tree, *found, self._fill) if made is None else made
        return self._made[key]

    def forget(self) -> None:
        """Lets go of the values made so far; sharing is kept within what is decoded between two calls."""
        self._made.clear()

    def read_bytes(self, node: dict[str, Any]) -> bytes:
        if "entry" in node:
            return bytes(self._fetch(node["entry"])[0])
        return base64.b64decode(node["v"])


def fill_now(target: Any, data: memoryview) -> None:
    """A `Fill` that copies at once, one element after another."""
    memoryview(target)[:] = data


def _bytes_copier(value: bytes) -> Callable[[memoryview], None]:
    def copy_to(target: memoryview) -> None:
        target[:] = value

    return copy_to


def _same(value: Any) -> Json:
    return value


def _int(value: int) -> Json:
    return value if -_INT_PLAIN_MAX <= value <= _INT_PLAIN_MAX else {TAG: "int", "v": hex(value)}


def _float(value: float) -> Json:
    return value if math.isfinite(value) else {TAG: "float", "v": repr(value)}


_SCALARS: dict[type, Callable[[Any], Json]] = {
    type(None): _same,
    bool: _same,
    str: _same,
    int: _int,
    float: _float,
    complex: lambda value: {TAG: "complex", "v": [_float(value.real), _float(value.imag)]},
    bytearray: lambda value: {TAG: "bytearray", "v": base64.b64encode(value).decode("ascii")},
}


def _make_mapping(kind: Callable[[], Any]) -> Make:
    def make(node: dict[str, Any], decoder: Decoder) -> Any:
        made = kind()
        for key, item in node["v"]:
            made[decoder.decode(key)] = decoder.decode(item)
        for name, attribute in decoder.decode(node.get("attributes", {})).items():
            setattr(made, name, attribute)
        return made

    return make


def _make_defaultdict(node: dict[str, Any], decoder: Decoder) -> Any:
    factory = node["factory"]
    return _make_mapping(lambda: defaultdict(None if factory is None else _FACTORIES[factory]))(node, decoder)


_MAKERS: dict[str, Make] = {
    "int": lambda node, _: int(node["v"], 16),
    "float": lambda node, _: float(node["v"]),
    "complex": lambda node, decoder: complex(*decoder.decode(node["v"])),
    "bytes": lambda node, decoder: decoder.read_bytes(node),
    "bytearray": lambda node, _: bytearray(base64.b64decode(node["v"])),
    "tuple": lambda node, decoder: tuple(decoder.decode(node["v"])),
    "set": lambda node, decoder: set(decoder.decode(node["v"])),
    "frozenset": lambda node, decoder: frozenset(decoder.decode(node["v"])),
    "dict": _make_mapping(dict),
    "OrderedDict": _make_mapping(OrderedDict),
    "Counter": _make_mapping(Counter),
    "defaultdict": _make_defaultdict,
    "deque": lambda node, decoder: deque(decoder.decode(node["v"]), node["maxlen"]),
    "range": lambda node, decoder: range(*decoder.decode(node["v"])),
    "slice": lambda node, decoder: slice(*decoder.decode(node["v"])),
}
