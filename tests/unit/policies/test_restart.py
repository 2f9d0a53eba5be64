from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orch_policies.classification import error_line, startup_error
from orch_policies.restart import (
    BACKOFF_JITTER,
    MARKS_MAX,
    OWN_EXITS_MAX,
    Budgets,
    Charges,
    Decision,
    Failure,
    History,
    committed,
    decide,
    describe,
    record,
    stepped,
)

TRACEBACK = """epoch 1
Traceback (most recent call last):
  File "train.py", line 3, in <module>
    {line}
{error}
"""
KILLED = Failure("process_exit", signal=9, step=50)


def traceback(error: str) -> str:
    return TRACEBACK.format(line="whatever()", error=error)


def run(budgets, failures, history=None):
    """Decisions one after the other, as the leader takes them."""
    charges, history = Charges(), history or History()
    decisions = []
    for failure in failures:
        decision = decide(budgets, charges, history, failure, "seed")
        charges, history = record(charges, history, failure, decision)
        decisions.append(decision)
    return decisions, charges, history


def test_a_kill_restarts_in_place_at_once_and_is_charged_to_failures():
    decision = decide(Budgets(), Charges(), History(), KILLED, "seed")
    assert decision == Decision(
        "restart", "failures", 0.0, "killed by SIGKILL at step 50; restarting, failures 1 of 3"
    )


def test_the_fourth_failure_without_progress_fails_the_job_with_the_numbers():
    decisions, charges, _ = run(Budgets(), [KILLED] * 4)
    assert [d.action for d in decisions] == ["restart"] * 3 + ["fail"]
    assert decisions[-1].charge_to is None
    assert decisions[-1].reason.startswith(
        "killed by SIGKILL at step 50; the budget for failures is used up (3 of 3); something outside orch"
    )
    assert charges.failures == 3


def test_a_budget_of_nothing_fails_at_once():
    assert decide(Budgets(max_failures=0), Charges(), History(), KILLED, "s").action == "fail"


@pytest.mark.parametrize(
    ("failure", "action", "budget"),
    [
        (KILLED, "restart", "failures"),
        (Failure("process_exit", exit_code=1, step=4), "restart", "failures"),
        (Failure("process_exit", exit_code=0), "restart", "failures"),
        (Failure("hang", step=3), "restart", "hangs"),
        (Failure("agent_lost", message="actor died"), "replace", "failures"),
        (Failure("node_lost", message="node dead"), "replace", "preemptions"),
        (Failure("preempted"), "replace", "preemptions"),
    ],
)
def test_who_pays(failure, action, budget):
    decision = decide(Budgets(), Charges(), History(), failure, "seed")
    assert (decision.action, decision.charge_to) == (action, budget)
    _, charges, _ = run(Budgets(), [failure])
    assert charges.spent(budget) == 1
    assert charges.failures + charges.hangs + charges.preemptions == 1


def test_preemptions_do_not_eat_the_budget_of_failures():
    decisions, charges, _ = run(Budgets(max_failures=1), [Failure("node_lost", step=5)] * 50 + [KILLED])
    assert {d.action for d in decisions[:50]} == {"replace"}
    assert decisions[-1].action == "restart"
    assert (charges.failures, charges.preemptions) == (1, 50)


def test_a_state_that_can_never_be_loaded_stops_the_job_at_once():
    failure = Failure("fatal", exit_code=1, message="layer.weight is 10 stored, 20 expected", step=8)
    decision = decide(Budgets(), Charges(), History(highest_step=8), failure, "seed")
    assert decision.action == "fail"
    assert decision.charge_to is None
    assert "layer.weight is 10 stored, 20 expected" in decision.reason


STARTUP = [
    Failure("process_exit", exit_code=127),
    Failure("process_exit", exit_code=126),
    Failure("process_exit", exit_code=1, output_tail=traceback("ModuleNotFoundError: No module named 'x'")),
    Failure("process_exit", exit_code=1, output_tail=traceback("ImportError: cannot import name 'x'")),
    Failure("process_exit", exit_code=1, output_tail='  File "t.py", line 1\n    a b\nSyntaxError: bad\n'),
    Failure("process_exit", exit_code=2, output_tail="usage: train.py [-h]\ntrain.py: error: no\n"),
    Failure("process_exit", exit_code=2, output_tail="Usage: train [OPTIONS]\nError: No such option: --x\n"),
    Failure("process_exit", exit_code=2, output_tail="python: can't open file '/x/train.py': [Errno 2]\n"),
    Failure("process_exit", exit_code=2, output_tail="sh: 1: Syntax error: Unterminated quoted string\n"),
]


@pytest.mark.parametrize("failure", STARTUP)
def test_a_command_that_cannot_begin_fails_at_once_when_nothing_ever_stepped(failure):
    decision = decide(Budgets(), Charges(), History(), failure, "seed")
    assert decision.action == "fail"
    assert "before the first step" in decision.reason
    assert "restarting cannot help" in decision.reason


@pytest.mark.parametrize("failure", STARTUP)
def test_the_same_later_in_the_life_of_the_job_accuses_the_machine(failure):
    decision = decide(Budgets(), Charges(), stepped(History(), 7), failure, "seed")
    assert (decision.action, decision.charge_to, decision.accuses_node) == ("restart", "failures", True)
    assert "the machine is suspected" in decision.reason


@pytest.mark.parametrize(
    "failure",
    [
        Failure("process_exit", exit_code=2, output_tail="loss went up"),
        Failure("process_exit", exit_code=1, output_tail=traceback("ValueError: no")),
        Failure("process_exit", exit_code=1, output_tail="ImportError is only mentioned"),
        Failure("process_exit", signal=11, output_tail=traceback("ImportError: x")),
        Failure("agent_lost", output_tail=traceback("ImportError: x")),
    ],
)
def test_what_is_no_startup_error_is_charged_and_tried_again(failure):
    assert startup_error(failure) is None
    decision = decide(Budgets(), Charges(), History(), failure, "seed")
    assert decision.action != "fail"
    assert not decision.accuses_node


def test_an_import_error_in_a_generation_that_has_stepped_is_no_startup_error():
    failure = Failure("process_exit", exit_code=1, step=3, output_tail=traceback("ImportError: x"))
    assert decide(Budgets(), Charges(), History(), failure, "s").action == "restart"


def test_its_own_exit_twice_at_the_same_step_is_a_crash_loop():
    crash = Failure("process_exit", exit_code=1, step=57, output_tail=traceback("ValueError: bad batch"))
    decisions, charges, _ = run(Budgets(max_failures=None), [crash, crash])
    assert [d.action for d in decisions] == ["restart", "fail"]
    assert decisions[1].reason == (
        "crash loop: exited with code 1 at step 57 (ValueError: bad batch), "
        "for the second time at this step; restarting cannot help"
    )
    assert charges.failures == 1


def test_a_crash_loop_is_seen_through_other_failures_in_between():
    crash = Failure("process_exit", exit_code=1, step=57)
    between = [Failure("node_lost", step=40), Failure("process_exit", signal=9, step=30)]
    decisions, _, _ = run(Budgets(), [crash, *between, crash])
    assert [d.action for d in decisions] == ["restart", "replace", "restart", "fail"]


@pytest.mark.parametrize(
    "second",
    [
        Failure("process_exit", exit_code=1, step=58),
        Failure("process_exit", signal=11, step=57),
        Failure("process_exit", exit_code=1, step=None),
    ],
)
def test_what_is_no_crash_loop(second):
    decisions, _, _ = run(Budgets(), [Failure("process_exit", exit_code=1, step=57), second])
    assert decisions[1].action == "restart"


def test_a_step_that_was_passed_in_between_is_no_crash_loop():
    crash = Failure("process_exit", exit_code=1, step=57)
    past = Failure("process_exit", signal=9, step=90)
    decisions, _, history = run(Budgets(), [crash, past, crash])
    assert [d.action for d in decisions] == ["restart"] * 3
    _, history = committed(Charges(), history, 91)
    assert history.own_exits == ()


def test_unknown_steps_never_make_a_crash_loop_but_spend_the_budget():
    decisions, _, _ = run(Budgets(max_failures=2), [Failure("process_exit", exit_code=3)] * 3)
    assert [d.action for d in decisions] == ["restart", "restart", "fail"]
    assert "budget" in decisions[-1].reason


def test_a_checkpoint_beyond_the_failure_gives_one_charge_back_once():
    _, charges, history = run(Budgets(), [KILLED, KILLED])
    same, history_same = committed(charges, history, 50)
    assert same == charges
    assert history_same.fruitless == 2
    charges, history = committed(charges, history, 51)
    assert (charges.failures, charges.given_back, history.fruitless) == (1, 1, 0)
    again, _ = committed(charges, history, 51)
    assert again == charges
    charges, history = committed(charges, history, 60)
    assert (charges.failures, charges.given_back, charges.marks) == (0, 2, ())
    charges, _ = committed(charges, history, 70)
    assert (charges.failures, charges.given_back) == (0, 2)


def test_the_charge_goes_back_to_the_budget_that_paid():
    _, charges, history = run(Budgets(), [KILLED, Failure("hang", step=40), Failure("node_lost", step=45)])
    assert (charges.failures, charges.hangs, charges.preemptions) == (1, 1, 1)
    charges, history = committed(charges, history, 51)
    assert (charges.failures, charges.hangs, charges.preemptions) == (1, 1, 0)
    charges, history = committed(charges, history, 52)
    assert (charges.failures, charges.hangs, charges.preemptions) == (1, 0, 0)


def test_the_highest_step_counts_not_the_one_of_the_failing_generation():
    history = stepped(History(), 80)
    _, charges, history = run(Budgets(), [KILLED], history=history)
    kept, history = committed(charges, history, 70)
    assert kept.failures == 1
    charges, _ = committed(kept, history, 81)
    assert charges.failures == 0


def test_delays_double_without_progress_up_to_the_limit_and_start_anew_with_it():
    budgets = Budgets(max_failures=None, backoff_initial_s=2.0, backoff_max_s=10.0)
    decisions, charges, history = run(budgets, [KILLED] * 6)
    delays = [d.delay_s for d in decisions]
    assert delays[0] == 0
    for delay_s, nominal_s in zip(delays[1:], [2, 4, 8, 10, 10], strict=True):
        assert nominal_s * (1 - BACKOFF_JITTER) <= delay_s <= nominal_s
    charges, history = committed(charges, history, 51)
    assert decide(budgets, charges, history, KILLED, "seed").delay_s == 0


def test_each_budget_has_its_own_backoff():
    """Machines that come and go do not make a crash wait, nor the other way round."""
    budgets = Budgets(max_failures=None, max_hangs=None, backoff_initial_s=2.0, backoff_max_s=64.0)
    lost, hang = Failure("node_lost", step=50), Failure("hang", step=50)
    decisions, charges, history = run(budgets, [lost, lost, lost, KILLED, hang, hang])
    assert [d.delay_s > 0 for d in decisions] == [False, True, True, False, False, True]
    assert (history.fruitless, history.fruitless_hangs, history.fruitless_preemptions) == (1, 2, 3)
    _, history = committed(charges, history, 51)
    assert (history.fruitless, history.fruitless_hangs, history.fruitless_preemptions) == (0, 0, 0)


def test_what_an_older_version_stored_is_read():
    """Fields that it did not have take their defaults."""
    budgets = {"max_failures": 1, "max_hangs": 3, "max_preemptions": None, "backoff_initial_s": 1.0}
    assert Budgets.from_dict({**budgets, "backoff_max_s": 9.0}) == Budgets(max_failures=1, backoff_max_s=9.0)
    history = History.from_dict({"highest_step": 4, "committed_step": 2, "fruitless": 1, "own_exits": [3]})
    assert history == History(highest_step=4, committed_step=2, fruitless=1, own_exits=(3,))
    failure = {"kind": "process_exit", "signal": 9, "step": 50, "exit_code": None, "output_tail": ""}
    assert Failure.from_dict(failure) == KILLED


STOP = Budgets(stop_codes=(2, 3), restart_codes=(42,))


def test_a_code_that_is_to_stop_the_job_stops_it_whatever_is_left():
    decision = decide(
        STOP, Charges(), stepped(History(), 9), Failure("process_exit", exit_code=3, step=9), "s"
    )
    assert (decision.action, decision.charge_to) == ("fail", None)
    assert (
        decision.reason
        == "exited with code 3 at step 9; stopped, as `restart.on_exit_codes` says of this code"
    )
    assert decide(STOP, Charges(), History(), Failure("process_exit", signal=3), "s").action == "restart"


def test_a_restart_that_the_command_asks_for_is_free_as_long_as_it_makes_new_steps():
    asked = [Failure("process_exit", exit_code=42, step=step) for step in (5, 5, 9, 20)]
    decisions, charges, _ = run(STOP, asked)
    assert [d.charge_to for d in decisions] == [None, "failures", None, None]
    assert [d.action for d in decisions] == ["restart"] * 4
    assert "charged to nothing" in decisions[0].reason
    assert "second time without a new step" in decisions[1].reason
    assert charges.failures == 1
    assert {d.delay_s for d in decisions} == {0.0}


def test_a_command_that_asks_for_restarts_and_never_steps_is_stopped_by_its_budget():
    decisions, _, _ = run(STOP, [Failure("process_exit", exit_code=42)] * 5)
    assert [d.charge_to for d in decisions] == [None, "failures", "failures", "failures", None]
    assert decisions[-1].action == "fail"


def test_a_machine_that_is_accused_makes_no_crash_loop():
    ecc = traceback("RuntimeError: CUDA error: uncorrectable ECC error encountered")
    failure = Failure("process_exit", exit_code=1, step=57, output_tail=ecc)
    decisions, _, _ = run(Budgets(), [failure] * 4)
    assert [d.action for d in decisions] == ["restart"] * 3 + ["fail"]
    assert all(d.accuses_node for d in decisions[:3])
    assert "the machine is suspected" in decisions[0].reason
    assert "the budget for failures is used up" in decisions[-1].reason


NAN = Failure("bad_numbers", step=57, message="loss is nan; step 56 was the last good one")


def test_bad_numbers_stop_the_job_unless_it_says_otherwise():
    decision = decide(Budgets(), Charges(), stepped(History(), 57), NAN, "seed")
    assert (decision.action, decision.charge_to) == ("fail", None)
    assert decision.reason == (
        "bad numbers at step 57: loss is nan; step 56 was the last good one; stopped, as `restart.on_nan` "
        "says; lower the learning rate, clip gradients, or look at the batch"
    )


def test_bad_numbers_roll_back_so_many_times_and_no_more():
    budgets = Budgets(max_failures=None, on_nan="rollback", max_rollbacks=2)
    decisions, charges, history = run(budgets, [NAN, KILLED, NAN, NAN])
    assert [d.action for d in decisions] == ["restart"] * 3 + ["fail"]
    assert "rolling back (1 of 2)" in decisions[0].reason
    assert "rolled back 2 times already" in decisions[3].reason
    assert (charges.failures, history.rollbacks) == (3, 2)


def test_the_jitter_comes_from_the_seed_alone():
    history = replace(History(), fruitless=3)
    delays = {decide(Budgets(), Charges(), history, KILLED, seed).delay_s for seed in "abcdefgh"}
    assert len(delays) > 1
    one = decide(Budgets(), Charges(), history, KILLED, "a")
    assert one == decide(Budgets(), Charges(), history, KILLED, "a")


def test_a_thousand_fruitless_failures_do_not_overflow():
    history = replace(History(), fruitless=100_000)
    decision = decide(Budgets(max_failures=None), Charges(), history, KILLED, "s")
    assert decision.delay_s <= Budgets().backoff_max_s


def test_the_memory_of_the_policy_is_limited():
    failures = [Failure("process_exit", exit_code=1, step=step) for step in range(500, 0, -1)]
    _, charges, history = run(Budgets(max_failures=None), failures)
    assert len(charges.marks) == MARKS_MAX
    assert len(history.own_exits) == OWN_EXITS_MAX


@pytest.mark.parametrize(
    ("output", "line"),
    [
        (traceback("ValueError: bad\n  hint: x"), "ValueError: bad"),
        (traceback("my.lib.Broken: so\n"), "my.lib.Broken: so"),
        (traceback("KeyboardInterrupt"), "KeyboardInterrupt"),
        (traceback("A: 1") + "During handling\n\n" + traceback("B: 2"), "B: 2"),
        ("no traceback\nValueError: printed", ""),
        ("", ""),
        ("Traceback (most recent call last):", ""),
    ],
)
def test_the_error_line(output, line):
    assert error_line(output) == line


def test_describe_says_what_is_known():
    assert describe(Failure("process_exit", signal=9)) == "killed by SIGKILL"
    assert describe(Failure("process_exit", signal=250)) == "killed by signal 250"
    assert describe(Failure("agent_lost", message="killed")) == "the agent died: killed"


failures = st.builds(
    Failure,
    kind=st.sampled_from(
        ["process_exit", "hang", "agent_lost", "node_lost", "preempted", "fatal", "bad_numbers"]
    ),
    exit_code=st.one_of(st.none(), st.integers(0, 255)),
    signal=st.one_of(st.none(), st.integers(1, 64)),
    step=st.one_of(st.none(), st.integers(0, 50)),
    output_tail=st.text(max_size=50),
    message=st.text(max_size=20),
)
happenings = st.lists(st.one_of(failures, st.integers(0, 60)), max_size=40)


@given(happenings, st.integers(0, 3), st.text(max_size=5))
def test_any_history_keeps_the_books_in_order_and_travels_as_json(happened, limit, seed):
    budgets = Budgets(
        max_failures=limit, max_hangs=limit, stop_codes=(7,), restart_codes=(8, 9), on_nan="rollback"
    )
    charges, history = Charges(), History()
    for item in happened:
        if isinstance(item, int):
            charges, history = committed(charges, history, item)
        else:
            decision = decide(budgets, charges, history, item, seed)
            assert decision.reason
            asked = item.kind == "process_exit" and item.signal is None and item.exit_code in {8, 9}
            assert asked or (decision.charge_to is None) == (decision.action == "fail")
            assert Decision.from_dict(json.loads(json.dumps(decision.to_dict()))) == decision
            assert Failure.from_dict(json.loads(json.dumps(item.to_dict()))) == item
            charges, history = record(charges, history, item, decision)
        assert 0 <= charges.failures <= limit
        assert 0 <= charges.hangs <= limit
        assert history.rollbacks <= budgets.max_rollbacks
        for budget in ("failures", "hangs", "preemptions"):
            assert sum(mark.budget == budget for mark in charges.marks) <= charges.spent(budget)
        assert Charges.from_dict(json.loads(json.dumps(charges.to_dict()))) == charges
        assert History.from_dict(json.loads(json.dumps(history.to_dict()))) == history
    assert Budgets.from_dict(json.loads(json.dumps(budgets.to_dict()))) == budgets
