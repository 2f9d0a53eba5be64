"""When an agent that cannot hear its cluster gives up: on an injected clock."""

from __future__ import annotations

import random

import pytest

from orch.model.lease import LEASE_MAX_S, LEASE_MIN_S, LEASE_S
from orch_policies.lease import Contact, judge, limit_s, pause_s


class Asker:
    """Asks as the agent does; each question takes all the time it may."""

    def __init__(self, lease_s: float) -> None:
        self.lease_s, self.now_s = lease_s, 1000.0
        self.contact = Contact(self.now_s)

    def ask(self, answer: str, slept_s: float = 0.0) -> str:
        turn_s = pause_s(self.contact, self.lease_s) + limit_s(self.lease_s)
        self.now_s += turn_s + slept_s
        self.contact = self.contact.heard(answer, self.now_s, turn_s)
        return judge(self.contact, self.lease_s)


@pytest.mark.parametrize("lease_s", [LEASE_MIN_S, 5.0, LEASE_S, LEASE_MAX_S])
def test_it_ends_after_the_lease_and_within_a_fifth_more(lease_s):
    asker = Asker(lease_s)
    assert asker.ask("alive") == "held"
    since_s = asker.now_s
    while asker.ask("silent") == "held":
        assert asker.now_s - since_s < 2 * lease_s
    assert lease_s < asker.now_s - since_s <= lease_s * 1.3 + 1


def test_any_answer_renews_it():
    rng = random.Random(1)
    asker = Asker(20.0)
    for _ in range(1000):
        silent = asker.contact.out_s < 10.0 and rng.random() < 0.9
        assert asker.ask("silent" if silent else "alive") == "held"
    assert asker.now_s > 2000


@pytest.mark.parametrize("slept_s", [60.0, 86400.0])
def test_time_that_was_slept_is_not_time_without_an_answer(slept_s):
    asker = Asker(20.0)
    asker.ask("alive")
    assert asker.ask("silent", slept_s=slept_s) == "held"
    assert asker.ask("silent") == "held"
    assert asker.ask("alive") == "held"
    assert asker.contact.out_s == 0


def test_one_that_wakes_and_hears_that_it_is_dead_goes_at_the_second_word():
    asker = Asker(120.0)
    asker.ask("alive")
    assert asker.ask("dead", slept_s=300.0) == "held"
    assert asker.ask("dead") == "void"


def test_a_word_of_its_death_that_is_taken_back_counts_for_nothing():
    asker = Asker(120.0)
    for _ in range(10):
        assert asker.ask("dead") == "held"
        assert asker.ask("alive") == "held"


def test_a_clock_that_stands_still_or_goes_back_ends_nobody():
    contact = Contact(100.0)
    for _ in range(50):
        contact = contact.heard("silent", 90.0, 5.0)
    assert judge(contact, 2.0) == "held"


def test_few_silences_are_never_enough():
    contact = Contact(0.0).heard("silent", 1000.0, 1000.0).heard("silent", 2000.0, 1000.0)
    assert judge(contact, 2.0) == "held"
    assert judge(contact.heard("silent", 2001.0, 1000.0), 2.0) == "expired"
