"""NumPy in the typed tree, where NumPy is there: arrays are entries, scalars small nodes."""

from __future__ import annotations

import base64
import sys
from typing import Any, Callable

from .errors import UnsupportedStateError
from .tree import TAG, Codec, Fill, Leaf

# NumPy's name (kind and item size, native order) → the name of the element type in slots and checkpoints
_DTYPES = {
    "f8": "F64", "f4": "F32", "f2": "F16", "i8": "I64", "i4": "I32", "i2": "I16", "i1": "I8",
    "u8": "U64", "u4": "U32", "u2": "U16", "u1": "U8", "b1": "BOOL", "c8": "C64", "c16": "C128",
}  # fmt: skip


def numpy_module() -> Any:
    """The user's numpy if it has been imported, else None. Never imports it: that costs time."""
    return sys.modules.get("numpy")


class ArrayCodec(Codec):
    tags = ("ndarray", "numpy")

    def __init__(self, numpy: Any) -> None:
        self._numpy = numpy

    def leaf(self, value: Any, path: str) -> Leaf | None:
        if type(value) is not self._numpy.ndarray:
            return None
        dtype = value.dtype
        if dtype.hasobject or dtype.fields is not None or dtype.subdtype is not None:
            raise UnsupportedStateError(f"{path}: a checkpoint cannot hold a NumPy array of dtype {dtype}")
        plain = _DTYPES.get(dtype.str[1:]) if dtype.isnative else None
        node = {TAG: "ndarray", "dtype": dtype.str, "shape": list(value.shape)}
        plain_bytes = self._plain_bytes(value) if value.flags.c_contiguous and value.nbytes else None
        if plain is None:  # dates, strings, foreign byte order: the bytes as they are
            return Leaf("U8", (value.nbytes,), value.nbytes, None, node, self._copier(value), plain_bytes)
        identity = None
        if value.nbytes:
            identity = ("numpy", value.__array_interface__["data"][0], dtype.str, value.shape, value.strides)
        return Leaf(plain, value.shape, value.nbytes, identity, node, self._copier(value), plain_bytes)

    def node(self, value: Any) -> dict[str, Any] | None:
        if not isinstance(value, self._numpy.generic) or value.dtype.hasobject:
            return None
        if value.dtype.fields is not None:
            return None
        return {
            TAG: "numpy",
            "dtype": value.dtype.str,
            "v": base64.b64encode(value.tobytes()).decode("ascii"),
        }

    def make(
        self, node: dict[str, Any], data: memoryview | None, dtype: str, shape: tuple[int, ...], fill: Fill
    ) -> Any:
        numpy = self._numpy
        if data is None:
            raw = base64.b64decode(node["v"])
            return numpy.frombuffer(raw, dtype=node["dtype"], count=1)[0]
        made = numpy.empty(tuple(node["shape"]), dtype=numpy.dtype(node["dtype"]))
        if made.nbytes:
            assert data is not None
            fill(made.reshape(-1).view(numpy.uint8), data)
        return made

    def borrow(self, node: dict[str, Any], data: memoryview, dtype: str, shape: tuple[int, ...]) -> Any:
        kind = self._numpy.dtype(node["dtype"])
        if node[TAG] != "ndarray" or not kind.itemsize:
            return None
        return self._numpy.frombuffer(data, dtype=kind).reshape(tuple(node["shape"]))

    def _plain_bytes(self, value: Any) -> Callable[[], Any]:
        return lambda: value.reshape(-1).view(self._numpy.uint8)

    def _copier(self, value: Any) -> Callable[[memoryview], None]:
        def copy_to(target: memoryview) -> None:
            if value.nbytes:
                flat = self._numpy.ascontiguousarray(value).reshape(-1).view(self._numpy.uint8)
                self._numpy.copyto(self._numpy.frombuffer(target, self._numpy.uint8), flat)

        return copy_to
