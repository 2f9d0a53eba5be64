"""Whatever a training has in hand comes back from storage bit for bit, through the same engine as a job's."""

from __future__ import annotations

import tempfile
from collections import Counter, OrderedDict
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orch_workers.checkpoint import Checkpointer
from orch_workers.training.errors import UnsupportedStateError

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
SMALL_FLOATS = [
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz,
    torch.float8_e8m0fnu,
]
INTEGERS = [
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.uint8,
    torch.uint16,
    torch.uint32,
    torch.uint64,
]
DTYPES = [*FLOATS, *SMALL_FLOATS, *INTEGERS, torch.bool, torch.complex64, torch.complex128]

shapes = st.lists(st.integers(0, 5), max_size=4).map(tuple)


@st.composite
def tensors(draw):
    """Any bits of any dtype (NaNs with their payload too), as a view of any kind."""
    dtype, shape = draw(st.sampled_from(DTYPES)), draw(shapes)
    plain = torch.empty(shape, dtype=dtype)
    raw = draw(st.binary(min_size=plain.nbytes, max_size=plain.nbytes))
    if dtype == torch.bool:
        raw = bytes(byte & 1 for byte in raw)
    if plain.nbytes:
        plain = torch.frombuffer(bytearray(raw), dtype=torch.uint8).view(dtype).reshape(shape)
    how = draw(st.sampled_from(["whole", "transposed", "every other", "expanded"]))
    if how == "transposed" and plain.dim() >= 2:
        return plain.transpose(0, 1)
    if how == "every other" and plain.dim() >= 1:
        return plain[::2]
    if how == "expanded" and plain.dim() >= 1 and len(plain):
        return plain[:1].expand(3, *plain.shape[1:])
    return plain


keys = (
    st.text(min_size=1, max_size=8)
    | st.integers()
    | st.booleans()
    | st.tuples(st.integers(), st.text(max_size=3))
)
leaves = (
    tensors()
    | st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=8)
    | st.complex_numbers()
)
trees = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(keys, inner, max_size=3)
        | st.dictionaries(keys, inner, max_size=3).map(OrderedDict)
        | st.sets(st.integers(), max_size=3)
        | st.frozensets(st.text(max_size=3), max_size=3)
        | st.dictionaries(st.text(max_size=3), st.integers(), max_size=3).map(Counter)
    ),
    max_leaves=8,
)


def same(found, expected):
    if isinstance(expected, torch.Tensor):
        assert type(found) is type(expected)
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        return bits(found) == bits(expected)
    assert type(found) is type(expected)
    if isinstance(expected, (list, tuple)):
        return len(found) == len(expected) and all(map(same, found, expected))
    if isinstance(expected, dict):
        return list(found) == list(expected) and all(same(found[key], expected[key]) for key in expected)
    if isinstance(expected, (float, complex)):
        return repr(found) == repr(expected)
    return bool(found == expected)


def bits(tensor):
    flat = torch.empty(tensor.shape, dtype=tensor.dtype)
    if tensor.numel():
        # Element by element and not by `contiguous`, which is what is tried.
        size = tensor.element_size()
        stored = bytes(tensor.untyped_storage())
        steps = [()]
        for length in tensor.shape:
            steps = [(*place, number) for place in steps for number in range(length)]
        offsets = [
            tensor.storage_offset() + sum(a * b for a, b in zip(s, tensor.stride(), strict=True))
            for s in steps
        ]
        return b"".join(stored[offset * size : (offset + 1) * size] for offset in offsets)
    return bytes(flat.nbytes)


def there_and_back(values):
    with tempfile.TemporaryDirectory(prefix="orch-") as folder:
        with Checkpointer(str(Path(folder) / "fuzz"), env={}) as checkpoints:
            checkpoints.save(1, values)
        with Checkpointer(str(Path(folder) / "fuzz"), env={}) as checkpoints:
            found = checkpoints.restore()
        assert found is not None
        return found.values


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.from_regex(r"[a-z]{1,5}", fullmatch=True), trees, min_size=1, max_size=4))
def test_any_state_comes_back_bit_for_bit(values):
    found = there_and_back(values)
    assert list(found) == list(values)
    for name, value in values.items():
        assert same(found[name], value), name


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(tensors(), st.integers(2, 4))
def test_what_is_tied_stays_tied(tensor, count):
    found = there_and_back({"tied": [tensor] * count, "apart": tensor.clone()})
    first = found["tied"][0]
    for other in found["tied"]:
        assert same(other, tensor)
        assert other.data_ptr() == first.data_ptr()
    if tensor.nbytes:
        assert found["apart"].data_ptr() != first.data_ptr()


REFUSED = {
    "sparse": lambda: torch.eye(3).to_sparse(),
    "csr": lambda: torch.eye(3).to_sparse_csr(),
    "quantised": lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
    "without data": lambda: torch.empty(3, device="meta"),
}


@pytest.mark.filterwarnings("ignore::UserWarning:torch", "ignore:Sparse CSR", "ignore:.*quantiz")
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_stored_is_refused_with_its_place(name):
    tensor = REFUSED[name]()
    with pytest.raises(UnsupportedStateError, match="model"):
        there_and_back({"model": {"layer": tensor}})
