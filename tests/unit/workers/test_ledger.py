from __future__ import annotations

from orch_policies.restart import Budgets, Charges, Failure, History
from orch_workers.ledger import Ledger

KILLED = Failure("process_exit", signal=9, step=5)


def policy(**more):
    return {"budgets": Budgets(max_failures=2, backoff_initial_s=0.0).to_dict(), "seed": 7, **more}


def test_failures_are_booked_until_the_budget_is_used_up():
    ledger = Ledger(policy())
    actions = [ledger.decide(KILLED, f"000001.00000{n}").action for n in (1, 2, 3)]
    assert actions == ["restart", "restart", "fail"]


def test_it_goes_on_from_what_the_controller_had_booked():
    charged = Charges(failures=2).to_dict()
    ledger = Ledger(policy(charges=charged, history=History(highest_step=40, committed_step=30).to_dict()))
    assert ledger.highest_step == 40
    assert ledger.decide(KILLED, "000002.000001").action == "fail"


def test_a_checkpoint_beyond_what_was_reached_gives_a_charge_back():
    ledger = Ledger(policy())
    ledger.stepped(5)
    for n in range(4):
        assert ledger.decide(KILLED, f"mark {n}").action == "restart"
        ledger.committed(6 + n)
        ledger.stepped(6 + n)


def test_a_checkpoint_of_what_was_reached_before_gives_nothing_back():
    ledger = Ledger(policy())
    ledger.stepped(50)
    actions = []
    for n in range(3):
        actions.append(ledger.decide(KILLED, f"mark {n}").action)
        ledger.committed(50)
    assert actions == ["restart", "restart", "fail"]


def test_the_highest_step_never_goes_back():
    ledger = Ledger(policy())
    for step in (3, 8, 5):
        ledger.stepped(step)
    assert ledger.highest_step == 8


def test_the_jitter_differs_between_failures_and_repeats_for_the_same_one():
    history = History(fruitless=1).to_dict()  # the first restart does not wait
    slow = policy(budgets=Budgets(backoff_initial_s=60.0).to_dict(), history=history)
    delays = [Ledger(slow).decide(KILLED, mark).delay_s for mark in ("one", "one", "two")]
    assert delays[0] == delays[1] != delays[2]


def test_without_a_policy_the_defaults_hold():
    ledger = Ledger({})
    assert ledger.highest_step == 0
    assert ledger.decide(KILLED, "one").action == "restart"
