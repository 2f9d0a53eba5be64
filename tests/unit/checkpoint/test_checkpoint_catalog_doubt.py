"""Lists that are behind, answers that are wrong, writers that slept: what is committed stays, and nothing torn does."""

from __future__ import annotations

import json
import threading

import pytest

from orch_workers.checkpoint import (
    Catalog,
    Damaged,
    NotFound,
    NothingRestorable,
    RestorePoint,
    StorageUnavailable,
    Superseded,
    WrittenByNewer,
    find_and_restore,
)
from orch_workers.checkpoint import records as record_module
from orch_workers.checkpoint.fencing import confirm
from orch_workers.checkpoint.local import LocalStorage
from orch_workers.checkpoint.records import quarantine_mark
from orch_workers.checkpoint.rereading import READS_MAX, Doubt
from orch_workers.checkpoint.sweeping import QUARANTINED_KEPT_MAX, SWEEP_COMMITS, Sweeper
from orch_workers.checkpoint.writer import write_rank
from support import snapshots

G1, G2 = (1, 1), (2, 1)


class Doubtful(LocalStorage):
    """A folder whose answers a test changes: `answer(path, data)` and `lists(entries)`."""

    def __init__(self, root):
        super().__init__(root)
        self.answer = lambda path, data: data
        self.lists = lambda entries: entries

    def read(self, path, start=None, end=None):
        return self.answer(path, super().read(path, start, end))

    def read_into(self, path, start, view):
        data = self.answer(path, super().read(path, start, start + len(view)))
        view[: len(data)] = data
        return len(data)

    def list(self, prefix=""):
        return self.lists(super().list(prefix))


@pytest.fixture
def catalog(tmp_path):
    made = Catalog(Doubtful(tmp_path / "storage"), "job")
    made.begin_generation(G1)
    return made


@pytest.fixture
def save(catalog, tmp_path):
    def save(generation, step, **more):
        state = snapshots.state(step)
        return snapshots.commit_state(
            catalog, tmp_path / "slot", state, generation=generation, step=step, **more
        )

    return save


def times(count, wrong):
    """Answers with `wrong(data)` so often, then right."""
    left = {}

    def answer(path, data):
        left[path] = left.get(path, count) - 1
        return wrong(data, left[path]) if left[path] >= 0 else data

    return answer


def corrupted(data, number):
    return bytes([data[0] ^ (number % 255 + 1)]) + data[1:] if data else data


PARTS = ("manifests", "ranks", "shards", "generations")


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(
    "wrong", [corrupted, lambda data, _: data[: len(data) // 2]], ids=["corrupted", "cut short"]
)
def test_wrong_answers_are_no_damage(catalog, save, tmp_path, part, wrong):
    save(G1, 5)
    often = times(10, wrong)
    catalog.storage.answer = lambda path, data: often(path, data) if f"/{part}/" in path else data
    found = find_and_restore(catalog, 0, tmp_path / "restored")
    assert (found.point.step, found.rejected) == (5, ())
    assert catalog.quarantined() == {}


def saving_on(catalog, save, part, *, until):
    """Somebody saves the next step, and removes the one before, whenever a `part` of that is read; up to a step."""
    one_at_a_time = threading.Lock()  # shards are read by several threads

    def answer(path, data):
        with one_at_a_time:
            newest = catalog.committed()[0]
            if f"/{part}/" not in path or f"/{newest.step:012d}" not in path or newest.step > until:
                return data
            save(G1, newest.step + 1)
            catalog.remove(newest)
            raise NotFound(path)

    return answer


@pytest.mark.parametrize("part", ["manifests", "ranks", "shards"])
@pytest.mark.parametrize("times_removed", [1, 3])
def test_what_is_removed_while_it_is_read_is_no_damage(catalog, save, tmp_path, part, times_removed):
    """By an agent of the generation before, which goes on saving and keeps only the last (seen in round 888 of 1,000:
    the job had no state any more, although it lost none).
    """
    save(G1, 1)
    catalog.storage.answer = saving_on(catalog, save, part, until=times_removed)
    found = find_and_restore(catalog, 0, tmp_path / "restored")
    assert (found.point.step, found.rejected) == (times_removed + 1, ())
    assert catalog.quarantined() == {}


def test_with_everything_removed_while_it_is_read_nothing_is_started_over(catalog, save, tmp_path):
    save(G1, 1)

    def removing(path, data):
        if "/shards/" in path:
            catalog.remove(RestorePoint(G1, 1))
            raise NotFound(path)
        return data

    catalog.storage.answer = removing
    with pytest.raises(NothingRestorable, match="was removed while it was read") as caught:
        find_and_restore(catalog, 0, tmp_path / "restored")
    assert caught.value.rejected == (), "another list may name others"


def test_storage_is_asked_again_later_where_everything_goes_while_it_is_read(catalog, save, tmp_path):
    save(G1, 1)
    catalog.storage.answer = saving_on(catalog, save, "shards", until=1000)
    with pytest.raises(StorageUnavailable, match="were removed, each while it was read"):
        find_and_restore(catalog, 0, tmp_path / "restored")


@pytest.mark.parametrize("part", PARTS)
def test_answers_that_never_agree_are_storage_in_trouble(catalog, save, tmp_path, part):
    save(G1, 5)
    often = times(10**6, corrupted)
    catalog.storage.answer = lambda path, data: often(path, data) if f"/{part}/" in path else data
    with pytest.raises(StorageUnavailable, match="cut short or differ"):
        find_and_restore(catalog, 0, tmp_path / "restored")
    catalog.storage.answer = lambda path, data: data
    assert catalog.quarantined() == {}


def test_the_same_wrong_answer_is_believed_the_third_time():
    doubt = Doubt("it")
    assert [doubt.is_settled(b"wrong") for _ in range(3)] == [False, False, True]
    doubt = Doubt("it")
    assert not any(doubt.is_settled(None) for _ in range(READS_MAX - 1))
    with pytest.raises(StorageUnavailable):
        doubt.is_settled(None)


def test_a_list_without_a_shard_is_no_damage(catalog, save, tmp_path):
    save(G1, 5)
    catalog.storage.lists = lambda entries: [e for e in entries if "/shards/" not in e.path]
    assert find_and_restore(catalog, 0, tmp_path / "restored").rejected == ()


# sweeping with lists that are behind


def test_the_sweep_takes_nothing_because_a_list_lacks_its_manifest(catalog, save, tmp_path):
    save(G1, 5)
    catalog.begin_generation(G2, G1, 5)
    catalog.storage.lists = lambda entries: [e for e in entries if "/manifests/" not in e.path]
    catalog.sweep()
    catalog.storage.lists = lambda entries: entries
    found = find_and_restore(catalog, 0, tmp_path / "restored")
    assert (found.point.step, found.rejected) == (5, ())


def test_the_sweep_does_nothing_for_who_is_not_the_newest(catalog, save):
    save(G1, 5)
    save(G1, 9)
    catalog.begin_generation(G2, G1, 5)
    save(G2, 6)
    before = catalog.storage.list()
    assert catalog.sweep(by=G1) == 0
    catalog.storage.lists = lambda entries: [e for e in entries if "generations/000002" not in e.path]
    assert catalog.sweep(by=G2) == 0
    catalog.storage.lists = lambda entries: entries
    assert catalog.storage.list() == before
    assert catalog.sweep(by=G2) == 1


def test_the_sweep_keeps_the_newest_few_in_quarantine_and_no_mark_of_what_is_gone(catalog, save):
    for step in range(1, 13):
        save(G1, step)
    points = {point.step: point for point in catalog.committed()}
    for step in range(2, 13):
        catalog.quarantine(points[step], "a test says so")
    catalog.begin_generation(G2, G1, 1)
    save(G2, 2)
    catalog.sweep()
    kept = sorted(point.step for point in catalog.quarantined())
    assert kept == list(range(13 - QUARANTINED_KEPT_MAX, 13))
    assert {point.step for point in catalog.committed() if point.generation == G1} == {1, *kept}
    catalog.storage.delete(catalog.manifest_path(G1, 12))
    catalog.sweep()
    assert 12 not in {point.step for point in catalog.quarantined()}


def test_a_generation_sweeps_at_first_and_then_from_time_to_time(catalog, save):
    sweeper = Sweeper(catalog)
    save(G1, 10)
    assert sweeper.after(G1, [], G1) == ""
    save(G1, 5, act=write_rank, rank=0, world_size=1)
    for _ in range(SWEEP_COMMITS - 1):
        sweeper.after(G1, [], G1)
    assert [place for _, place in catalog.places("ranks")] == [(G1, 5), (G1, 10)]
    sweeper.after(G1, [], G1)
    assert [place for _, place in catalog.places("ranks")] == [(G1, 10)]


# writers that slept


def test_a_writer_that_slept_until_its_parts_were_gone_takes_its_manifest_back(catalog, save, monkeypatch):
    create = LocalStorage._create

    def asleep(storage, path, buffers):
        if path.endswith("manifests/000001.000001/000000000005.json"):
            monkeypatch.setattr(LocalStorage, "_create", create)
            save(G1, 5)  # the successor has the same snapshot,
            catalog.begin_generation(G2, G1, 5)  # goes on from it,
            save(G2, 6)
            [old] = [point for point in catalog.restore_points() if point.step == 5]
            catalog.remove(old)  # and keeps only its newest
        create(storage, path, buffers)

    monkeypatch.setattr(LocalStorage, "_create", asleep)
    save(G1, 5)
    with pytest.raises(
        Superseded, match=r"was superseded by 000002\.000001 while step 5 was being committed"
    ):
        confirm(catalog, G1, 5, 1, by=G1)
    assert [point.step for point in catalog.restore_points()] == [6]


def test_a_writer_that_slept_leaves_a_whole_checkpoint_where_it_is(catalog, save):
    save(G1, 5)
    catalog.begin_generation(G2, G1, 5)
    with pytest.raises(Superseded):
        confirm(catalog, G1, 5, 1, by=G1)
    assert [point.step for point in catalog.restore_points()] == [5]
    confirm(catalog, G1, 5, 1, by=G2)


def test_a_manifest_that_comes_while_its_parts_are_being_removed_goes_with_them(catalog, save, monkeypatch):
    save(G1, 5)
    save(G1, 6)
    path = catalog.manifest_path(G1, 5)
    manifest = catalog.storage.read(path)
    [old] = [point for point in catalog.restore_points() if point.step == 5]
    delete = LocalStorage.delete

    def and_it_comes_back(storage, what):
        delete(storage, what)
        if what == path:
            monkeypatch.setattr(LocalStorage, "delete", delete)
            catalog.storage.create(path, manifest)

    monkeypatch.setattr(LocalStorage, "delete", and_it_comes_back)
    catalog.remove(old)
    assert [point.step for point in catalog.committed()] == [6]


# newer versions


def test_what_a_newer_orch_wrote_is_set_aside_until_one_reads_it(catalog, save, tmp_path, monkeypatch):
    save(G1, 5)
    save(G1, 10)
    path = catalog.storage.root / catalog.manifest_path(G1, 10)
    document = json.loads(path.read_text()) | {"version": 3}
    del document["digest"]
    path.write_text(json.dumps(document))
    found = find_and_restore(catalog, 0, tmp_path / "restored")
    assert found.point.step == 5
    assert "written by a newer orch (format version 3; this one reads up to 1)" in found.rejected[0].reason
    assert [point.step for point in catalog.restore_points()] == [5]
    monkeypatch.setattr(record_module, "VERSION_READ_MAX", 3)  # the newer orch again
    assert [point.step for point in catalog.restore_points()] == [10, 5]


def test_a_generation_that_a_newer_orch_began_is_not_guessed_at(catalog, save):
    save(G1, 5)
    path = catalog.storage.root / catalog.generation_path(G1)
    document = json.loads(path.read_text()) | {"version": 2}
    del document["digest"]
    path.write_text(json.dumps(document))
    with pytest.raises(WrittenByNewer):
        catalog.chain()


def test_a_mark_of_damage_never_ends(catalog, save, monkeypatch):
    save(G1, 5)
    catalog.quarantine(catalog.restore_points()[0], "x" * 100_000)
    monkeypatch.setattr(record_module, "VERSION_READ_MAX", 99)
    assert catalog.restore_points() == []
    [reason] = catalog.quarantined().values()
    assert len(reason) == record_module.REASON_CHARS_MAX
    assert len(quarantine_mark("x" * 10**6, 3)) < record_module.MARK_BYTES_MAX


def test_a_record_without_a_digest_was_written_before_and_is_read(catalog, save):
    path = catalog.storage.root / catalog.generation_path(G1)
    document = json.loads(path.read_text())
    del document["digest"]
    path.write_text(json.dumps(document))
    assert catalog.begin_generation(G1).generation == G1
    assert catalog.begin(catalog.chain()).generation == G1
    document["restored_step"] = 7
    path.write_text(json.dumps(document))
    with pytest.raises(Superseded):
        catalog.begin_generation(G1)


def test_a_flipped_digit_in_a_generations_record_admits_nothing(catalog, save):
    save(G1, 5)
    save(G1, 9)
    catalog.begin_generation(G2, G1, 5)
    path = catalog.storage.root / catalog.generation_path(G2)
    path.write_bytes(path.read_bytes().replace(b'"until_step":5', b'"until_step":9'))
    with pytest.raises(Damaged, match="does not match its own digest"):
        catalog.chain()
