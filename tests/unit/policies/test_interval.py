from __future__ import annotations

from orch_policies.interval import Every, Progress, next_save

EVERY = Every(seconds=100)


def test_the_default_is_ten_minutes_first_and_last():
    assert Every() == Every(steps=None, seconds=600, epochs=None, first=True, last=True)
    assert Every(steps=5).rules() == {"steps": 5, "epochs": None, "first": True, "last": True}


def test_not_due_says_when_to_look_again():
    due = next_save(EVERY, Progress(step=10, saved_s=1000), now_s=1030)
    assert (due.save_at, due.look_again_s) == (None, 70)


def test_due_asks_for_a_step_nobody_has_reached():
    assert next_save(EVERY, Progress(step=10, saved_s=1000), now_s=1100).save_at == 11
    due = next_save(EVERY, Progress(step=10, saved_s=1000), now_s=1200, lead_steps=4)
    assert due.save_at == 14
    assert due.reason == "the last snapshot is 200.0 s old, 100 s are asked for"


def test_any_snapshot_restarts_the_clock():
    assert next_save(EVERY, Progress(step=10, saved_s=1095, saved_step=10), now_s=1100).save_at is None


def test_a_pending_request_is_not_repeated_before_its_step_is_reached():
    progress = Progress(step=10, saved_s=1000, asked_step=11, asked_s=1100)
    assert next_save(EVERY, progress, now_s=5000).save_at is None


def test_a_request_that_led_to_nothing_is_repeated_after_a_while():
    progress = Progress(step=11, saved_s=1000, asked_step=11, asked_s=1100)
    assert next_save(EVERY, progress, now_s=1104).look_again_s == 6
    assert next_save(EVERY, progress, now_s=1110).save_at == 12


def test_a_request_that_was_met_does_not_hold_up_the_next():
    progress = Progress(step=50, saved_s=1101, saved_step=11, asked_step=11, asked_s=1100)
    assert next_save(EVERY, progress, now_s=1201).save_at == 51


def test_nothing_is_asked_before_the_first_step():
    assert next_save(EVERY, Progress(step=0, saved_s=0), now_s=1000).save_at is None


def test_without_seconds_the_clock_never_asks():
    due = next_save(Every(seconds=None, steps=5), Progress(step=10, saved_s=0), now_s=9999)
    assert (due.save_at, due.look_again_s) == (None, None)
