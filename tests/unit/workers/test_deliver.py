from __future__ import annotations

import pytest

from orch.model.generation import Generation
from orch_workers.checkpoint.catalog import Catalog
from orch_workers.checkpoint.errors import StorageRefused
from orch_workers.shipping import deliver, outputs
from orch_workers.shipping.deliver import Delivery
from support.workers import JOB, Failing, good

HERE = "outputs/000001.000002"


@pytest.fixture
def delivery(machine):
    def make(*patterns):
        return Delivery(Catalog(machine.storage, JOB), machine.workdir, patterns, Generation(1, 2))

    return make


def test_what_the_patterns_name_is_brought_into_storage_once(machine, delivery):
    (machine.workdir / "plots").mkdir()
    for name in ("model.bin", "plots/a.png", "plots/b.png", "other"):
        (machine.workdir / name).write_text(name)
    sent = delivery("model.bin", "plots/**")
    assert sent.attempt(0)
    assert sent.problems == []
    assert machine.files(HERE) == ["model.bin", "plots/a.png", "plots/b.png"]
    machine.storage.mood = Failing()
    assert sent.attempt(0)  # nothing is left to be sent


def test_a_storage_error_that_passes_is_tried_again_for_what_is_missing_only(machine, delivery):
    for name in ("a.bin", "b.bin"):
        (machine.workdir / name).write_text(name)
    machine.storage.mood = Failing("a.bin", times=1)
    sent = delivery("*.bin")
    assert not sent.attempt(0)
    assert [problem.split(":")[0] for problem in sent.problems] == ["a.bin"]
    machine.storage.mood = Failing("b.bin")
    assert sent.attempt(0)
    assert sent.problems == []
    assert machine.files(HERE) == ["a.bin", "b.bin"]


def test_what_can_never_be_sent_is_a_problem_and_not_tried_again(machine, delivery, monkeypatch):
    monkeypatch.setattr(deliver, "OUTPUT_BYTES_MAX", 4)
    for name in ("gone", "large", "refused", "taken"):
        (machine.workdir / name).write_text("four")
    (machine.workdir / "large").write_text("more than four")
    machine.storage.create(f"{JOB}/{HERE}/taken", b"something else")
    machine.storage.mood = Failing("refused", error=StorageRefused)
    sent = delivery("gone", "large", "refused", "taken")
    (machine.workdir / "gone").unlink()
    assert sent.attempt(0)
    assert [problem.split(":")[0] for problem in sent.problems] == ["gone", "large", "refused", "taken"]
    machine.storage.mood = good
    assert sent.attempt(0)
    assert machine.files(HERE) == ["taken"]


def test_a_delivery_can_be_made_again(machine, delivery):
    (machine.workdir / "model.bin").write_text("the same")
    for _ in range(2):
        sent = delivery("model.bin")
        assert sent.attempt(0)
        assert sent.problems == []


def test_a_folder_with_too_much_in_it_is_refused_in_words(machine, delivery, monkeypatch):
    monkeypatch.setattr(outputs, "FILES_MAX", 0)
    with pytest.raises(outputs.OutputsError, match="outputs are not looked for in it"):
        delivery("*")


def test_no_outputs_and_no_folder_are_nothing_to_do(machine, delivery):
    assert delivery().attempt(0)
    (machine.workdir / "trainee.py").unlink()
    machine.workdir.rmdir()
    assert delivery("*").attempt(0)
