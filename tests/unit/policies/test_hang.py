from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from orch_policies.hang import CAP_S, FACTOR, FLOOR_S, Learned, action, limit

SECONDS = st.floats(0, 10_000, allow_nan=False)


def learned_from(start_s, *pauses_s):
    found = Learned().paused(start_s, starting=True)
    for pause_s in pauses_s:
        found = found.paused(pause_s, starting=False)
    return found


@given(st.lists(SECONDS, min_size=1), st.integers(0, 10), st.integers(0, 10))
def test_a_learned_limit_lies_between_floor_and_cap_and_above_every_pause_below_the_cap(
    pauses_s, hangs, looks
):
    learned = learned_from(1.0, *pauses_s)
    for _ in range(hangs):
        learned = learned.hung()
    for _ in range(looks):
        learned = learned.busy()
    found = limit("auto", learned, "stepping")
    assert found.seconds is not None
    assert FLOOR_S <= found.seconds <= CAP_S
    assert found.seconds > max(pauses_s) or found.seconds == CAP_S


def test_a_long_first_step_says_nothing_about_the_others():
    learned = learned_from(300.0, 0.1, 0.1)  # a compilation
    assert limit("auto", learned, "stepping").seconds == FLOOR_S
    assert limit("auto", learned, "starting").seconds == 300.0 * FACTOR


def test_an_evaluation_is_a_pause_like_others():
    assert limit("auto", learned_from(1.0, 0.1, 60.0, 0.1), "stepping").seconds == 60.0 * FACTOR


def test_the_first_start_has_all_the_time():
    found = limit("auto", Learned(), "starting")
    assert (found.seconds, found.final) == (CAP_S, True)


def test_each_hang_and_each_look_that_finds_it_busy_doubles_the_time():
    learned = learned_from(1.0, 0.1)
    assert limit("auto", learned.hung(), "stepping").seconds == 2 * FLOOR_S
    assert limit("auto", learned.busy(), "stepping").seconds == 2 * FLOOR_S
    assert limit("auto", learned.busy().paused(0.1, starting=False), "stepping").seconds == FLOOR_S


def test_at_the_cap_the_stacks_do_not_matter():
    learned = learned_from(1.0, 0.1)
    found = limit("auto", learned, "stepping")
    assert action(found, FLOOR_S - 1) == "wait"
    assert action(found, FLOOR_S) == "look"
    for _ in range(10):
        learned = learned.busy()
    assert action(limit("auto", learned, "stepping"), CAP_S) == "kill"


def test_a_limit_of_the_job_file_is_taken_as_it_is():
    assert limit(90.0, learned_from(1.0, 500.0), "stepping").seconds == 90.0
    assert action(limit(90.0, Learned(), "stepping"), 90.0) == "kill"
    assert limit(90.0, Learned(), "starting").seconds == CAP_S, "it is about steps; a start may take longer"
    assert limit(7200.0, Learned(), "starting").seconds == 7200.0


def test_waiting_for_storage_is_no_hang_and_off_is_off():
    for found in (
        limit("auto", Learned(), "saving"),
        limit(5.0, Learned(), "saving"),
        limit("off", Learned(), "stepping"),
    ):
        assert found.seconds is None
        assert action(found, 1e9) == "wait"
