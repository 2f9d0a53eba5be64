"""What a restart cost: steps, and how long they had taken."""

from __future__ import annotations

from orch.model.generation import Generation
from orch_workers import recovery
from orch_workers.ledger import Ledger
from orch_workers.recovery import Recovery
from orch_workers.training.page import Progress

G1, G2 = Generation(1, 1), Generation(1, 2)
S = 1_000_000_000


def at(step, seconds):
    return Progress(step, 0, 0, 0, 0)._replace(step=step, monotonic_ns=int(seconds * S))


def ran(*seen, died_s):
    """A start from nothing that was seen at (step, seconds) and died."""
    books = Recovery(Ledger({}))
    books.began()
    books.restored(0)
    for step, seconds in seen:
        books.look(at(step, seconds), G1)
    books.exited(int(died_s * S))
    books.began()
    return books


def test_the_time_of_lost_steps_is_counted_from_the_restored_one():
    books = ran((1, 1.0), (10, 2.0), (20, 4.0), died_s=5.0)
    books.restored(15)
    assert books.look(at(15, 6.0), G2) is None, "no new step yet"
    recovered = books.look(at(16, 7.0), G2)
    assert recovered is not None
    assert (recovered.lost_steps, recovered.lost_s, recovered.recovery_s) == (5, 2.0, 2.0)


def test_what_was_restored_is_what_was_done_last():
    books = ran((1, 1.0), (10, 2.0), died_s=2.5)
    books.restored(10)
    recovered = books.look(at(11, 3.0), G2)
    assert recovered is not None
    assert (recovered.lost_steps, recovered.lost_s) == (0, None)


def test_a_start_that_dies_before_its_first_step_adds_nothing_to_the_lost_work():
    books = ran((1, 1.0), (10, 2.0), died_s=2.5)
    books.exited(30 * S)
    books.began()
    books.restored(1)
    recovered = books.look(at(2, 40.0), G2)
    assert recovered is not None
    assert (recovered.lost_steps, recovered.lost_s, recovered.recovery_s) == (9, 1.5, 10.0)


def test_steps_committed_since_the_start_are_not_lost_ones():
    """A fast job may have committed its last step by the time somebody looks at its first new one."""
    ledger = Ledger({})
    books = Recovery(ledger)
    books.began()
    books.restored(0)
    books.look(at(13, 1.0), G1)
    books.exited(2 * S)
    books.began()
    ledger.committed(12)
    books.restored(12)
    ledger.committed(20)
    recovered = books.look(at(20, 3.0), G2)
    assert recovered is not None
    assert recovered.lost_steps == 1


def test_a_long_life_is_remembered_coarsely(monkeypatch):
    monkeypatch.setattr(recovery, "SEEN_MAX", 8)
    books = ran(*((step, float(step)) for step in range(1, 1001)), died_s=1000.0)
    assert len(books._seen) <= 8
    books.restored(900)
    recovered = books.look(at(901, 1001.0), G2)
    assert recovered is not None
    assert recovered.lost_s == 100.0, "steps of equal length are found again exactly"
