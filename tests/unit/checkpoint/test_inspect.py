"""Looking at checkpoints: the list, the one that is meant, and whether they are what was committed."""

from __future__ import annotations

import numpy as np
import pytest

from orch_policies.retention import Rules
from orch_workers.checkpoint import Catalog, CheckpointError, Damaged, RestorePoint, content
from orch_workers.checkpoint.content import Content, stream
from orch_workers.checkpoint.listing import find_point, list_checkpoints
from orch_workers.checkpoint.verifying import PROBLEMS_MAX, verify
from support import saved


def state(step):
    return {"weights": np.full((100, 3), step, np.float32), "step": step, "nothing": np.zeros((0, 2))}


@pytest.fixture
def catalog(tmp_path) -> Catalog:
    return saved.save(tmp_path, {step: state(step) for step in (10, 20, 30)})


# the list


def test_the_list_says_of_each_what_is_known(catalog):
    catalog.pin(saved.point(catalog, 10), "the first")
    catalog.quarantine(saved.point(catalog, 20), "a test says so")
    newest, marked, pinned = list_checkpoints(catalog, Rules(last=1))
    assert [one.step for one in (newest, marked, pinned)] == [30, 20, 10]
    assert (newest.is_newest, newest.is_restorable, newest.epoch) == (True, True, 3)
    assert newest.metrics == {"loss": 1 / 31}
    assert "last 1" in newest.kept
    assert newest.size_bytes > 1200
    assert (marked.is_restorable, marked.quarantined, marked.is_newest) == (False, "a test says so", False)
    assert (pinned.pinned, pinned.kept, pinned.is_restorable) == ("the first", "pinned", True)


def test_without_rules_only_pins_keep(catalog):
    catalog.pin(saved.point(catalog, 20))
    assert [one.kept for one in list_checkpoints(catalog)] == [None, "pinned", None]


def test_what_no_rule_keeps_is_listed_so(catalog):
    assert [one.kept is None for one in list_checkpoints(catalog, Rules(last=1))] == [False, True, True]


def test_off_the_chain_is_said(catalog, tmp_path):
    catalog.pin(saved.point(catalog, 30))  # the sweep of the newer generation takes 20
    fork(tmp_path)
    assert [(one.step, one.on_chain, one.is_newest) for one in list_checkpoints(catalog)] == [
        (40, True, True),
        (30, False, False),
        (10, True, False),
    ]


def fork(tmp_path):
    """A second process goes on from step 10."""
    from orch_workers.checkpoint import Checkpointer

    with Checkpointer(tmp_path / saved.NAME, keep=100) as checkpoints:
        checkpoints.restore(step=10)
        checkpoints.save(40, state(40))


def test_a_manifest_that_does_not_read_is_listed_with_its_problem(catalog):
    saved.file(catalog, "manifests", 20).write_text("{")
    [_, broken, _] = list_checkpoints(catalog)
    assert broken.manifest is None
    assert "no JSON document" in broken.problem
    assert not broken.is_restorable


# the one that is meant


def test_the_newest_is_meant_unless_a_step_is_named(catalog):
    assert find_point(catalog).step == 30
    assert find_point(catalog, 20).step == 20
    catalog.quarantine(saved.point(catalog, 30), "bad")
    assert find_point(catalog).step == 20
    assert find_point(catalog, 30).step == 30


def test_a_step_that_is_not_there_is_refused_with_what_is(catalog):
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 7; it has steps 30, 20, 10"):
        find_point(catalog, 7)
    with pytest.raises(CheckpointError, match=r"generation 000009\.000001"):
        find_point(catalog, 10, (9, 1))


def test_an_empty_place_has_none(tmp_path):
    from orch_workers.checkpoint import open_storage

    with pytest.raises(CheckpointError, match="has no checkpoint"):
        find_point(Catalog(open_storage(str(tmp_path)), "nobody"))


def test_of_two_with_the_same_step_the_one_on_the_chain_is_meant(tmp_path):
    from orch_workers.checkpoint import Checkpointer

    catalog = saved.save(tmp_path, {10: state(1), 20: state(2)})
    catalog.pin(saved.point(catalog, 20))
    with Checkpointer(tmp_path / saved.NAME) as checkpoints:
        checkpoints.restore(step=10)
        checkpoints.save(20, state(9))
    assert find_point(catalog, 20).generation == (2, 1)
    assert find_point(catalog, 20, (1, 1)).generation == (1, 1)


# verify


def test_what_was_committed_is_good(catalog):
    for deep in (False, True):
        found = verify(catalog, saved.point(catalog, 20), deep=deep)
        assert (found.is_good, found.problems, found.tensors) == (True, (), len(tensors(catalog)))
    assert found.read_bytes == sum(ref.record.size_bytes for ref in tensors(catalog))


def tensors(catalog):
    return Content.open(catalog, saved.point(catalog, 20)).refs()


@pytest.mark.parametrize("what", saved.damages())
def test_damage_is_found(catalog, what):
    damage, says, quickly = saved.damages()[what]
    damage(catalog, 20)
    point = RestorePoint((1, 1), 20)
    assert verify(catalog, point).is_good is not quickly
    found = verify(catalog, point, deep=True)
    assert not found.is_good
    with pytest.raises(Damaged, match=says):
        raise Damaged(found.problems[0])
    assert verify(catalog, saved.point(catalog, 30), deep=True).is_good
    assert catalog.quarantined() == {}, "looking marks nothing"


def test_many_problems_are_counted(tmp_path):
    catalog = saved.save(tmp_path, {1: {f"t{n}": np.full(8, n, np.float32) for n in range(PROBLEMS_MAX + 5)}})
    for number in range(PROBLEMS_MAX + 5):
        saved.flip_tensor(catalog, 1, f"t{number}")
    found = verify(catalog, saved.point(catalog, 1), deep=True)
    assert (len(found.problems), found.more_problems) == (PROBLEMS_MAX, 5)


# the bytes


def test_the_stream_has_every_byte_once_whatever_the_sizes(catalog, tmp_path, monkeypatch):
    monkeypatch.setattr(content, "SEGMENT_BYTES", 1000)
    monkeypatch.setattr(content, "GAP_BYTES_MAX", 100)
    opened = Content.open(catalog, saved.point(catalog, 20))
    found: dict[str, bytearray] = {
        ref.record.name: bytearray(ref.record.size_bytes) for ref in opened.refs() if ref.record.size_bytes
    }
    for part in stream(opened.catalog, opened.refs()):
        found[part.ref.record.name][part.start : part.start + len(part.data)] = part.data
    assert bytes(found["weights"]) == state(20)["weights"].tobytes()
    assert bytes(found["~orch.random.numpy.state.key"]) != bytes(len(found["~orch.random.numpy.state.key"]))


def test_bytes_read_wrong_once_are_read_again(catalog, monkeypatch):
    from orch_workers.checkpoint.local import LocalStorage

    right, wrong = LocalStorage.read_into, []

    def once_wrong(storage, path, start, view):
        count = right(storage, path, start, view)
        if not wrong:
            wrong.append(path)
            view[0] ^= 1
        return count

    monkeypatch.setattr(LocalStorage, "read_into", once_wrong)
    assert verify(catalog, saved.point(catalog, 20), deep=True).is_good
    assert wrong


def test_what_a_newer_orch_wrote_is_told_apart_from_damage(catalog):
    from orch_workers.checkpoint.format import sealed

    path = saved.file(catalog, "manifests", 20)
    body, _, _ = path.read_bytes().rpartition(b',"digest":"')
    path.write_bytes(sealed(body.replace(b'"version":1', b'"version":2') + b"}"))
    found = verify(catalog, RestorePoint((1, 1), 20))
    assert (found.is_good, found.needs_version) == (False, 2)
    saved.file(catalog, "manifests", 10).write_text("{")
    assert verify(catalog, RestorePoint((1, 1), 10)).needs_version is None
