"""TensorFlow's eager tensors in the typed tree, read from the memory that they lie in.

What NumPy has an element type for is written as a NumPy array (arrays.py), so that every reader of checkpoints knows
it. What it has none for (bfloat16, the eight-bit floats, strings) has a tag of its own. All of it comes back as NumPy
arrays, which TensorFlow's variables take.
"""

from __future__ import annotations

import importlib
from typing import Any

from .arrays import ArrayCodec
from .errors import UnsupportedStateError
from .tree import TAG, Codec, Fill, Leaf

# TensorFlow's name → the name of the element type in slots and checkpoints, where NumPy itself has neither
_DTYPES = {
    "bfloat16": "BF16", "float8_e5m2": "F8_E5M2", "float8_e4m3fn": "F8_E4M3",
}  # fmt: skip
_NATIVE_KINDS = "fiubc"
_STRING = "string"


class EagerTensorCodec(Codec):
    tags = ("tf.Tensor",)

    def __init__(self, tensorflow: Any, numpy: Any) -> None:
        self._tf = tensorflow
        self._numpy = numpy
        self._arrays = ArrayCodec(numpy)
        # Not the type of a tensor made here: that would start TensorFlow, or add to a graph of TensorFlow 1.
        self._eager = importlib.import_module("tensorflow.python.framework.ops").EagerTensor

    def leaf(self, value: Any, path: str) -> Leaf | None:
        if not isinstance(value, self._eager):
            return None
        name = value.dtype.name
        if name == _STRING:
            return self._string(value)
        if name not in _DTYPES and self._numpy.dtype(value.dtype.as_numpy_dtype).kind not in _NATIVE_KINDS:
            raise UnsupportedStateError(
                f"{path}: a checkpoint cannot hold a TensorFlow tensor of dtype {name}; keep a plain dense "
                "tensor of numbers, booleans or strings instead"
            )
        array = self._host_array(value)
        if name not in _DTYPES:
            return self._arrays.leaf(array, path)
        flat = array.reshape(-1).view(self._numpy.uint8)
        identity = ("tf", array.__array_interface__["data"][0], name, array.shape) if array.nbytes else None
        return Leaf(
            _DTYPES[name],
            tuple(array.shape),
            array.nbytes,
            identity,
            {TAG: "tf.Tensor", "dtype": name},
            _copier(flat),
            (lambda: flat) if array.nbytes else None,
        )

    def _string(self, value: Any) -> Leaf:
        packed = self._tf.io.serialize_tensor(value).numpy()
        flat = self._numpy.frombuffer(packed, self._numpy.uint8)
        node = {TAG: "tf.Tensor", "dtype": _STRING}
        return Leaf("U8", (len(packed),), len(packed), None, node, _copier(flat), lambda: flat)

    def _host_array(self, value: Any) -> Any:
        """The tensor's own memory where it lies in this process (twice as fast as a copy by `numpy()`)."""
        if value.dtype.name not in _DTYPES and "CPU" in (value.backing_device or ""):
            return self._numpy.asarray(memoryview(value))
        return value.numpy() if value.shape.rank else self._numpy.asarray(value.numpy())

    def make(
        self, node: dict[str, Any], data: memoryview | None, dtype: str, shape: tuple[int, ...], fill: Fill
    ) -> Any:
        assert data is not None
        if node["dtype"] == _STRING:
            return self._tf.io.parse_tensor(bytes(data), self._tf.string).numpy()
        kind = self._tf.as_dtype(node["dtype"]).as_numpy_dtype
        made = self._numpy.empty(tuple(shape), dtype=kind)
        if made.nbytes:
            fill(made.reshape(-1).view(self._numpy.uint8), data)
        return made

    def borrow(self, node: dict[str, Any], data: memoryview, dtype: str, shape: tuple[int, ...]) -> Any:
        if node["dtype"] == _STRING:
            return None
        kind = self._tf.as_dtype(node["dtype"]).as_numpy_dtype
        return self._numpy.frombuffer(data, dtype=self._numpy.uint8).view(kind).reshape(tuple(shape))


def _copier(flat: Any) -> Any:
    def copy_to(target: memoryview) -> None:
        target[:] = memoryview(flat)

    return copy_to
