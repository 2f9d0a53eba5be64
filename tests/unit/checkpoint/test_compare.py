"""Two checkpoints beside each other: what differs, and by how much."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter, OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from orch_workers.checkpoint import Damaged, compare
from orch_workers.checkpoint import format as checkpoint_format
from orch_workers.checkpoint.compare import bytes_to_read, values_of
from orch_workers.checkpoint.content import Content
from orch_workers.checkpoint.trees import differences
from support import saved


@pytest.fixture
def compared(tmp_path):
    numbers = itertools.count()

    def act(before, after):
        """The state alone: what the random generators did meanwhile is left out."""
        catalog = saved.save(tmp_path / str(next(numbers)), {1: before, 2: after})
        one, other = (Content.open(catalog, saved.point(catalog, step)) for step in (1, 2))
        found = compare.compare(one, other)
        return (
            {change.name: change for change in found.changes if not change.name.startswith("~orch")},
            {d.path: (d.before, d.after) for d in found.tree if not d.path.startswith("~orch")},
            found,
        )

    return act


def test_equal_states_are_equal_bit_for_bit_and_nothing_is_read(tmp_path, monkeypatch):
    catalog = saved.save(tmp_path, {1: {"w": np.arange(5.0), "x": [1, None]}})
    content = Content.open(catalog, saved.point(catalog, 1))
    monkeypatch.setattr(type(catalog.storage), "read_into", None)
    found = compare.compare(content, content)
    assert found.is_equal
    assert found.tensors_equal == len(content.refs())
    assert bytes_to_read(content, content) == 0


def test_how_much_a_tensor_changed(compared):
    before = np.array([3.0, 4.0, 0.0, 1.0], np.float32)
    after = np.array([3.0, 4.0, 0.5, -1.0], np.float32)
    changes, tree, found = compared({"w": before}, {"w": after})
    assert list(changes) == ["w"]
    change = changes["w"]
    assert (change.how, change.before, change.differing, change.elements) == ("changed", "F32 [4]", 2, 4)
    assert change.max_abs == 2.0
    assert change.relative_norm == pytest.approx(np.linalg.norm(after - before) / np.linalg.norm(before))
    assert tree == {}
    assert not found.is_equal


def test_added_removed_reshaped_and_retyped(compared):
    changes, tree, _ = compared(
        {"gone": np.zeros(2), "shape": np.zeros((2, 3)), "type": np.zeros(2, np.float32), "same": np.ones(3)},
        {"shape": np.zeros((3, 2)), "type": np.zeros(2, np.float64), "same": np.ones(3), "new": np.zeros(1)},
    )
    assert {name: (change.how, change.before, change.after) for name, change in changes.items()} == {
        "gone": ("removed", "F64 [2]", None),
        "shape": ("reshaped", "F64 [2, 3]", "F64 [3, 2]"),
        "type": ("retyped", "F32 [2]", "F64 [2]"),
        "new": ("added", None, "F64 [1]"),
    }
    assert tree == {}, "told among the tensors, and not twice"


def test_values_differ_by_path(compared):
    before = {
        "scheduler": {"milestones": Counter({3: 1}), "lr": [0.1, 0.2]},
        "same": (1, 2),
        "flag": 1,
        "far": float("inf"),
    }
    after = {
        "scheduler": {"milestones": Counter({3: 2, 5: 1}), "lr": [0.1, 0.02, 7]},
        "same": (1, 2),
        "flag": True,
        "far": float("-inf"),
    }
    _, tree, _ = compared(before, after)
    assert tree == {
        "scheduler.milestones.3": ("1", "2"),
        "scheduler.milestones.5": (None, "1"),
        "scheduler.lr.1": ("0.2", "0.02"),
        "scheduler.lr.2": (None, "7"),
        "flag": ("1", "true"),
        "far": ("inf", "-inf"),
    }


def test_a_tie_that_was_cut_is_seen(compared):
    weight = np.arange(4.0)
    _, tree, _ = compared({"a": weight, "b": weight}, {"a": weight, "b": weight.copy()})
    assert tree == {"b": ("ndarray a", "ndarray b")}


def test_nan_beside_the_same_nan_is_equal_and_inf_is_reported(compared):
    nan, inf = float("nan"), float("inf")
    changes, _, _ = compared({"w": np.array([nan, inf, 1.0])}, {"w": np.array([nan, inf, 3.0])})
    assert (changes["w"].differing, changes["w"].max_abs) == (1, 2.0)
    changes, _, _ = compared({"v": np.array([1.0])}, {"v": np.array([nan])})
    assert math.isnan(changes["v"].max_abs)


@pytest.mark.parametrize(
    ("dtype", "plain"),
    [
        (torch.bfloat16, "BF16"),
        (torch.float16, "F16"),
        (torch.float8_e4m3fn, "F8_E4M3"),
        (torch.float8_e5m2, "F8_E5M2"),
        (torch.float64, "F64"),
        (torch.complex64, "C64"),
    ],
)
def test_element_types_mean_what_torch_says(dtype, plain):
    """Every pattern of bits there is (of the wide ones a sample)."""
    width = torch.empty(0, dtype=dtype).element_size()
    if width <= 2:
        raw = torch.arange(256**width).to(torch.uint8 if width == 1 else torch.uint16).view(torch.uint8)
    else:
        raw = torch.randint(0, 256, (800,), dtype=torch.uint8)
    wide = torch.complex128 if dtype.is_complex else torch.float64
    expected = raw.view(dtype).to(wide).numpy()
    np.testing.assert_array_equal(values_of(plain, memoryview(raw.numpy())), expected)


def test_an_unknown_element_type_is_counted_in_bytes_and_not_measured(compared):
    one = torch.zeros(4, dtype=torch.float8_e8m0fnu)
    other = one.view(torch.uint8).clone()
    other[2] = 9
    changes, _, _ = compared({"w": one}, {"w": other.view(torch.float8_e8m0fnu)})
    assert (changes["w"].differing, changes["w"].max_abs, changes["w"].relative_norm) == (1, None, None)


@pytest.mark.parametrize("group_bytes", [100, 2000, 1 << 20])
def test_large_and_many_tensors_are_compared_in_groups(compared, monkeypatch, group_bytes):
    monkeypatch.setattr(checkpoint_format, "DIGEST_CHUNK_BYTES", 64)
    for module in ("compare", "content"):
        monkeypatch.setattr(f"orch_workers.checkpoint.{module}.DIGEST_CHUNK_BYTES", 64)
    monkeypatch.setattr(compare, "GROUP_BYTES", group_bytes)
    before = {f"t{n}": np.arange(n * 10, dtype=np.float32) for n in range(8)}
    after = {name: array + (np.arange(len(array)) % 7 == 3) for name, array in before.items()}
    after = {name: array.astype(np.float32) for name, array in after.items()}
    changes, _, _ = compared(before, after)
    for name, array in before.items():
        expected = int(np.count_nonzero(array != after[name]))
        if expected:
            assert (changes[name].differing, changes[name].max_abs) == (expected, 1.0)
            norm = np.linalg.norm(after[name] - array) / np.linalg.norm(array)
            assert changes[name].relative_norm == pytest.approx(norm)
        else:
            assert name not in changes


def test_damaged_bytes_are_not_compared(tmp_path):
    catalog = saved.save(tmp_path, {1: {"w": np.zeros(9)}, 2: {"w": np.ones(9)}})
    saved.flip_tensor(catalog, 2, "w")
    one, other = (Content.open(catalog, saved.point(catalog, step)) for step in (1, 2))
    with pytest.raises(Damaged, match="'w'"):
        compare.compare(one, other)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text("ab", max_size=2), inner, max_size=3)
        | st.lists(inner, max_size=3).map(lambda items: {"~": "tuple", "v": items})
        | st.lists(st.tuples(st.integers(0, 3), inner).map(list), max_size=3).map(
            lambda v: {"~": "dict", "v": v}
        )
    ),
    max_leaves=12,
)


@given(JSON, JSON)
def test_trees_differ_exactly_when_they_are_written_differently(one, other):
    assert list(differences(one, one)) == []
    same = json.dumps(one) == json.dumps(other)
    unique = all(_keys_are_unique(tree) for tree in (one, other))
    if unique:
        assert (list(differences(one, other)) == []) == same


def _keys_are_unique(tree):
    """A mapping's pairs come from a dict, where a key is there once."""
    if isinstance(tree, list):
        return all(_keys_are_unique(item) for item in tree)
    if not isinstance(tree, dict):
        return True
    if tree.get("~") == "dict":
        keys = [pair[0] for pair in tree["v"]]
        return len(set(keys)) == len(keys) and all(_keys_are_unique(pair[1]) for pair in tree["v"])
    return all(_keys_are_unique(item) for item in tree.values())


def test_the_order_of_a_mapping_counts(compared):
    _, tree, _ = compared({"m": OrderedDict(a=1, b=2)}, {"m": OrderedDict(b=2, a=1)})
    assert tree == {"m": ("in the order a, b", "in the order b, a")}
