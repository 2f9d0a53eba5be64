"""What goes into the typed tree comes out as exactly what it was, through real JSON."""

from __future__ import annotations

import json
import math
import struct
import warnings
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from enum import IntEnum

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from orch_workers.training.arrays import ArrayCodec
from orch_workers.training.errors import UnsupportedStateError
from orch_workers.training.pytorch import TensorCodec
from orch_workers.training.tree import DEPTH_MAX, Decoder, Encoder

CODECS = [TensorCodec(torch), ArrayCodec(np)]


def there_and_back(value):
    encoder = Encoder(CODECS)
    tree = json.loads(json.dumps(encoder.encode(value, "value"), allow_nan=False))
    held = {}
    for entry in encoder.entries:
        data = bytearray(entry.leaf.size_bytes)
        entry.leaf.copy_to(memoryview(data))
        held[entry.name] = (memoryview(bytes(data)), entry.leaf.dtype, entry.leaf.shape)
    return Decoder(held.__getitem__, CODECS).decode(tree)


def same(one, other):
    """Equal in value, type and order, NaN and the sign of zero included."""
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return struct.pack("d", one) == struct.pack("d", other) or (math.isnan(one) and math.isnan(other))
    if isinstance(one, complex):
        return same(one.real, other.real) and same(one.imag, other.imag)
    if isinstance(one, dict):
        pairs = zip(one.items(), other.items(), strict=True)
        return len(one) == len(other) and all(same(a, c) and same(b, d) for (a, b), (c, d) in pairs)
    if isinstance(one, (list, tuple, deque)):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return one == other


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters())
    | st.complex_numbers()
    | st.binary(max_size=600)
)
keys = st.recursive(
    st.integers() | st.text(max_size=5) | st.binary(max_size=5) | st.none() | st.booleans(),
    lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3),
    max_leaves=4,
)


def containers(inner):
    return (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(keys, inner, max_size=4)
        | st.dictionaries(keys, inner, max_size=4).map(OrderedDict)
        | st.dictionaries(st.text(max_size=3).map("~".__add__), inner, max_size=2)
        | st.lists(inner, max_size=4).map(lambda items: deque(items, 7))
    )


values = st.recursive(
    scalars | st.sets(keys, max_size=4) | st.dictionaries(keys, st.integers(), max_size=4).map(Counter),
    containers,
    max_leaves=20,
)


@given(values)
@settings(max_examples=300, deadline=None)
def test_anything_comes_back_as_it_was(value):
    assert same(there_and_back(value), value)


@pytest.mark.parametrize(
    "value",
    [
        1 << 200,
        -(1 << 53) - 1,
        10**5000,
        -0.0,
        "\ud800",
        Counter({2: 1, 4: 2}),
        {"~": "tuple", "v": []},
        {1: "a", "1": "b"},
        {(1, frozenset({2})): {3}},
        range(2, 9, 3),
        slice(None, 4),
        bytearray(b"abc"),
        deque([1, 2]),
        np.float32(0.1),
        np.int64(7),
        np.datetime64("2020-01-01"),
        torch.Size([2, 3]),
        torch.bfloat16,
        torch.device("cpu"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_that_json_would_change(value):
    assert same(there_and_back(value), value)


def test_a_defaultdict_keeps_its_factory():
    found = there_and_back(defaultdict(list, {1: [2]}))
    assert type(found) is defaultdict
    assert (found[1], found[5]) == ([2], [])


def test_attributes_of_a_state_dict_are_kept():
    state = torch.nn.BatchNorm1d(2).state_dict()
    found = there_and_back(state)
    assert type(found) is OrderedDict
    assert found._metadata == state._metadata == {"": {"version": 2}}


DTYPES = [
    dtype
    for dtype in vars(torch).values()
    if isinstance(dtype, torch.dtype) and str(dtype).split(".")[1] in TensorCodec(torch).names
]


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental:UserWarning")
@pytest.mark.parametrize("dtype", sorted(set(DTYPES), key=str), ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 2), (2, 3)], ids=str)
def test_tensors_of_every_dtype_come_back_bit_for_bit(dtype, shape):
    size = torch.empty(shape, dtype=dtype).element_size()
    count = math.prod(shape)
    raw = torch.arange(count * size, dtype=torch.int64).remainder(2).to(torch.uint8)
    value = torch.empty(shape, dtype=dtype)
    value.reshape(-1).view(torch.uint8).copy_(raw)
    found = there_and_back(value)
    assert found.dtype == dtype
    assert tuple(found.shape) == shape
    assert found.reshape(-1).view(torch.uint8).equal(raw)


def test_strides_views_and_conjugates():
    base = torch.arange(24.0).reshape(2, 3, 4)
    assert there_and_back(base.permute(2, 0, 1)).stride() == base.permute(2, 0, 1).stride()
    for view in (base[:, 1], base.expand(2, 2, 3, 4), base.t_() if base.dim() == 2 else base.flip(0)):
        assert there_and_back(view).equal(view)
    number = torch.tensor([1 + 2j, 3 - 1j])
    assert there_and_back(number.conj()).equal(number.conj())
    assert there_and_back(torch.imag(number.conj())).equal(torch.imag(number.conj()))


@pytest.mark.parametrize(
    "value",
    [
        np.arange(6, dtype=np.int16).reshape(2, 3)[:, ::2],
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.array(["a", "bc"]),
        np.array([1, 2], dtype=">i4"),
        np.array(["2020", "NaT"], dtype="datetime64[s]"),
        np.zeros((0, 2), np.complex128),
        np.array(3.0),
    ],
    ids=lambda value: type(value).__name__,
)
def test_arrays(value):
    found = there_and_back(value)
    assert (found.dtype, found.shape) == (value.dtype, value.shape)
    assert found.tobytes() == value.tobytes()


def test_what_shares_memory_is_stored_once_and_shares_it_again():
    tensor = torch.arange(4.0)
    encoder = Encoder(CODECS)
    encoder.encode({"a": tensor, "b": tensor.view(4), "c": tensor.clone()}, "value")
    assert [entry.name for entry in encoder.entries] == ["value.a", "value.c"]
    found = there_and_back({"a": tensor, "b": tensor.view(4), "c": tensor.clone()})
    found["a"][0] = 9
    assert found["b"][0] == 9
    assert found["c"][0] == 0


def test_names_that_read_the_same_are_told_apart():
    encoder = Encoder(CODECS)
    encoder.encode({"a": {"b.c": torch.zeros(1)}, "a.b": {"c": torch.ones(1)}}, "v")
    assert [entry.name for entry in encoder.entries] == ["v.a.b.c", "v.a.b.c~2"]


class Colour(IntEnum):
    RED = 1


class Odd(dict):
    pass


Point = namedtuple("Point", "x y")  # noqa: PYI024


def quantised():
    with warnings.catch_warnings():  # torch says that it will end one day
        warnings.simplefilter("ignore", UserWarning)
        return torch.quantize_per_tensor(torch.zeros(2), 1.0, 0, torch.qint8)


cycle: list = []
cycle.append(cycle)
deep: list = []
for _ in range(DEPTH_MAX + 1):
    deep = [deep]


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (object(), "builtins.object"),
        (lambda: 0, "function"),
        (Colour.RED, "Colour"),
        (Odd(), "Odd"),
        (Point(1, 2), "Point"),
        (defaultdict(lambda: 0), "defaultdict can be kept if"),
        (cycle, "contains itself"),
        (deep, "nested deeper"),
        (np.array([object()]), "dtype object"),
        (np.zeros(1, dtype=[("a", int)]), "NumPy array of dtype"),
        (torch.zeros(2).to_sparse(), "layout torch.sparse_coo"),
        (quantised(), "quantised"),
        (torch.zeros(2, device="meta"), "meta device"),
        (torch.nn.LazyLinear(2).weight, "lazy module"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_no_checkpoint_can_hold_is_refused_with_its_path(value, sentence):
    with pytest.raises(UnsupportedStateError, match=sentence) as refused:
        Encoder(CODECS).encode({"outer": [value]}, "model")
    assert str(refused.value).startswith("model.outer.0")


def test_an_unknown_tag_is_refused():
    with pytest.raises(ValueError, match="'eval'"):
        Decoder(dict.__getitem__, CODECS).decode({"~": "eval", "v": "1"})
