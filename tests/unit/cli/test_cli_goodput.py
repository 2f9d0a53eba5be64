"""`orch goodput`: the books and the incidents of a job as people and programs read them."""

from __future__ import annotations

import io

from orch.cli import goodput, output
from orch.cli.goodput import BUCKETS
from orch_policies import goodput as policy

JOB = {
    "id": "digits-x7k2m",
    "state": "SUCCEEDED",
    "submitted": "2026-03-01T10:00:00.000000Z",
    "ended": "2026-03-01T10:01:40.000000Z",
    "goodput": 0.8,
    "ledger": {"queued_s": 0.0, "productive_s": 80.0, "restarting_s": 15.0, "newer_s": 5.0},
    "attempts": [
        {
            "attempt": 1,
            "restarts": [
                {"restart": 1, "ended": "2026-03-01T10:00:40.000000Z", "cause": None},
                {
                    "restart": 2,
                    "cause": "killed by SIGKILL at step 5; restarting, failures 1 of 3",
                    "seen": "signal 9, reported by wait",
                    "restored_step": 3,
                    "restored_from": "memory",
                    "lost_steps": 2,
                    "lost_s": 0.4,
                    "recovery_s": 1.5,
                },
            ],
        }
    ],
}


def shown(document) -> str:
    stream = io.StringIO()
    output.console(stream).print(goodput.view(document))
    return stream.getvalue()


def test_an_incident_says_what_happened_how_it_was_seen_what_was_decided_and_what_it_cost():
    (incident,) = goodput.incidents(JOB)
    assert (incident["time"], incident["generation"]) == ("2026-03-01T10:00:40.000000Z", "1.2")
    text = shown({**JOB, "incidents": [incident]})
    assert (
        "killed by SIGKILL at step 5; restarting, failures 1 of 3; seen by: signal 9, reported by wait; restored "
        "step 3 from memory; 2 steps lost (0.4s of work); first new step after 1.5s"
    ) in text
    assert "digits-x7k2m: goodput 80.0%, 1m40s from submit to its end" in text


def test_the_buckets_that_hold_something_are_shown_with_their_share():
    lines = [line.split() for line in shown({**JOB, "incidents": []}).splitlines()]
    assert [line[:3] for line in lines[1:]] == [
        ["productive", "1m20s", "80.0%"],
        ["restarting", "15s", "15.0%"],
        ["newer", "5s", "5.0%"],
    ]


def test_a_job_that_waits_has_nothing_to_show():
    text = shown({"id": "a-1", "ledger": {}, "incidents": []})
    assert "goodput -" in text


def test_every_bucket_has_words():
    assert set(BUCKETS) == {f"{name}_s" for name in policy.BUCKETS}
