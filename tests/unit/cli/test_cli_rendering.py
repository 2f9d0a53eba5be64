from __future__ import annotations

import io
import re
from datetime import UTC, datetime

import pytest

from orch.cli import humans, output, story, tables
from orch.cli.following import outcome_sentence
from orch.model.events import EVENTS

SUMMARY = {
    "id": "digits-x7k2m",
    "name": "digits",
    "state": "RUNNING",
    "reason": "",
    "flags": ["UNPROTECTED"],
    "submitted": "2026-03-01T10:00:00.000000Z",
    "started": "2026-03-01T10:00:02.000000Z",
    "ended": "2026-03-01T10:03:12.000000Z",
    "priority": 0,
    "attempt": 2,
    "restarts": 2,
    "step": 900,
    "epoch": 3,
    "metrics": {"accuracy": 0.987654, "loss": 0.0123456, "lr": 1, "zeta": "nan"},
    "steps_per_s": 12.3456,
    "last_checkpoint": {"step": 890, "time": "2026-03-01T10:03:02.000000Z", "age_s": 10.0},
    "goodput": 0.9512,
}
DETAIL = SUMMARY | {
    "ledger": {"productive_s": 180.0, "queued_s": 0.0, "restarting_s": 4.5},
    "attempts": [
        {
            "attempt": 1,
            "started": "2026-03-01T10:00:01.000000Z",
            "ended": "2026-03-01T10:01:01.000000Z",
            "node": "node-a",
            "reason": "submitted",
            "outcome": "lost",
            "restarts": [
                {"restart": 1, "started": "2026-03-01T10:00:02.000000Z", "cause": None},
                {
                    "restart": 2,
                    "started": "2026-03-01T10:00:40.000000Z",
                    "ended": "2026-03-01T10:01:01.000000Z",
                    "cause": "the training process died",
                    "evidence": "wait: signal 9",
                    "decision": "restart in place",
                    "restored_step": 400,
                    "restored_from": "memory",
                    "lost_steps": 3,
                    "recovery_s": 0.84,
                    "exit_code": None,
                    "signal": 15,
                },
            ],
        },
        {"attempt": 2, "started": "2026-03-01T10:01:02.000000Z", "node": None, "restarts": []},
    ],
    "checkpoints": [
        {
            "generation": "000001.000002",
            "step": step,
            "time": f"2026-03-01T10:02:{step:02d}.000000Z",
            "size_bytes": 1 << 20,
            "duration_s": 0.2,
            "state": "quarantined" if step == 3 else "committed",
            "reason": "digest of shard 0 differs" if step == 3 else None,
        }
        for step in range(10)
    ],
    "charges": {"failures": 1},
    "budgets": {"max_failures": 3, "max_preemptions": None, "backoff_max_s": 300.0},
    "usage": {"rss_bytes": 1 << 30, "cpus": 1.98},
    "checkpointing": {"sentence": "every 84 s (auto: a save blocks 0.21 s)", "interval_s": 84.0},
    "code": {"digest": "ab" * 32, "git_commit": "cd" * 20, "git_dirty": True},
    "exit_code": 1,
    "error": "Traceback (most recent call last):\n  …\nValueError: \x1bno",
    "notes": [{"time": "2026-03-01T10:00:03.000000Z", "text": "a save was skipped"}],
}


def shown(renderable) -> str:
    stream = io.StringIO()
    output.console(stream).print(renderable)
    return stream.getvalue()


def test_one_job_says_how_often_it_is_saved_and_why():
    assert re.search(
        r"^Interval +every 84 s \(auto: a save blocks 0.21 s\)", shown(tables.job_view(DETAIL)), re.MULTILINE
    )
    for unknown in (None, {}):
        assert "Interval" not in shown(tables.job_view(DETAIL | {"checkpointing": unknown}))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (-1, "0s"),
        (0, "0s"),
        (0.25, "0.25s"),
        (9.999, "10s"),
        (59.6, "1m"),
        (192, "3m12s"),
        (3600, "1h"),
        (93784, "1d2h"),
        (86400 * 400, "400d"),
    ],
)
def test_spans(seconds, text):
    assert humans.span(seconds) == text


def test_times_are_shown_on_the_readers_clock(monkeypatch):
    assert humans.clock(None) == "-"
    assert humans.clock("yesterday") == "-"
    local = datetime(2026, 3, 1, 10, tzinfo=UTC).astimezone()
    assert humans.clock("2026-03-01T10:00:00.123456Z", with_ms=True) == f"{local:%Y-%m-%d %H:%M:%S}.123"
    assert humans.between_s("2026-03-01T10:00:00Z", "2026-03-01T10:00:01.5Z") == 1.5
    assert humans.between_s(None, None) is None


def test_numbers():
    assert [humans.number(value) for value in (None, 12, 0.123456, "nan", True)] == [
        "-", "12", "0.1235", "nan", "True",
    ]  # fmt: skip
    assert humans.percent(0.9512) == "95.1%"


def test_text_for_a_terminal_keeps_letters_and_loses_control_characters():
    assert humans.clean("naïve 漢字\t\n") == "naïve 漢字\t\n"
    assert humans.clean("a\x1b[31mb\x9b\r\u202e") == "a�[31mb���"
    assert humans.one_line("a\n b\t c") == "a b c"


def test_the_list():
    lines = shown(tables.jobs_table([SUMMARY], 1000)).splitlines()
    cells = [cell.strip() for cell in lines[1].split("  ") if cell.strip()]
    assert cells == [
        "digits-x7k2m",
        "RUNNING",
        "UNPROTECTED",
        "900",
        "3",
        "12.35",
        "loss=0.01235 accuracy=0.9877 lr=1 …",
        "step 890, 10s ago",
        "2",
        "3m12s",
    ]


def test_a_narrow_terminal_keeps_one_line_per_job():
    waiting = SUMMARY | {"id": "resnet-9zqwd", "flags": [], "state": "QUEUED", "reason": "waits for 4 GPUs"}
    wide = tables.jobs_table([waiting], 200)
    assert [column.header for column in wide.columns] == [
        "JOB", "STATE", "STEP", "EPOCH", "STEPS/S", "METRICS", "CHECKPOINT", "RESTARTS", "TIME", "REASON",
    ]  # fmt: skip
    narrow = tables.jobs_table([waiting], 70)
    assert [column.header for column in narrow.columns] == ["JOB", "STATE", "STEP", "CHECKPOINT", "REASON"]
    tiny = tables.jobs_table([SUMMARY, waiting], 10)
    assert [column.header for column in tiny.columns] == ["JOB", "STATE", "FLAGS", "STEP", "REASON"]


def test_one_job_tells_its_story():
    text = shown(tables.job_view(DETAIL))
    for part in (
        "step 900, epoch 3, 12.35 steps/s",
        "95.1%  (productive 3m, restarting 4.5s)",
        "failures 1 of 3, preemptions 0 of unlimited",
        "rss 1.0 GiB, cpus 1.98",
        "abababababab, git cdcdcdcdcdcd with changes",
        "nothing keeps this job's state",
        "the training process died; restart in place; restored step 400 from memory; 3 steps lost",
        "3 steps lost; first new step after 0.84s; ended with SIGTERM (wait: signal 9)",
        "Checkpoints (the newest 5 of 10)",
        "a save was skipped",
        "ValueError: �no",
    ):
        assert part in text
    generations = [line.split()[0] for line in text.splitlines() if line.startswith(("1.", "2."))]
    assert generations == ["1.1", "1.2", "2.0"]


def test_the_ranks_of_a_gang_and_the_one_that_is_slower_with_its_host():
    ranks = [
        {"rank": 0, "host": "node-a", "step": 900, "step_s": 0.1, "slower": None},
        {"rank": 1, "host": "node-b", "step": 899, "step_s": 0.25, "slower": 2.5},
        {"rank": 2, "host": "node-c", "step": None, "step_s": None, "slower": None},
    ]
    text = shown(tables.job_view(DETAIL | {"usage": {"ranks": ranks}}))
    lines = [line.split("Ranks")[-1].strip() for line in text.splitlines() if " on node-" in line]
    assert lines == [
        "rank 0 on node-a, step 900, 0.1 s a step",
        "rank 1 on node-b, step 899, 0.25 s a step: 2.5 times as long as the others",
        "rank 2 on node-c",
    ]


def test_a_job_that_has_just_been_submitted():
    bare = dict.fromkeys(DETAIL) | {"id": "x-1", "state": "QUEUED", "submitted": SUMMARY["submitted"]}
    text = shown(tables.job_view(bare))
    assert "QUEUED" in text
    assert "None" not in text


def test_outcomes():
    assert outcome_sentence(SUMMARY | {"state": "SUCCEEDED"}) == (
        "digits-x7k2m SUCCEEDED after 3m12s, at step 900, 2 restarts"
    )
    failed = SUMMARY | {"state": "FAILED", "reason": "crash\nloop", "restarts": 1, "step": None}
    assert outcome_sentence(failed) == "digits-x7k2m FAILED after 3m12s, 1 restart: crash loop"


@pytest.mark.parametrize("kind", sorted(EVENTS))
def test_every_event_has_words(kind):
    text = story.told({"type": kind, "data": {}})
    assert text
    assert "None" not in story.told(
        {"type": kind, "data": {"rank": 1, "step": 3, "generation": "1.1", "attempt": 2}}
    )


@pytest.mark.parametrize(
    ("event", "text"),
    [
        (
            {"type": "AgentLost", "data": {"rank": 0, "node_lost": True, "step": 7}, "evidence": "node dead"},
            "agent of rank 0 and its node are gone at step 7: node dead",
        ),
        (
            {
                "type": "RestartDecided",
                "data": {"generation": "1.2", "delay_s": 1.5, "charge_to": "failures"},
            },
            "restart in place as generation 1.2 in 1.5s, charged to failures",
        ),
        (
            {"type": "Recovered", "data": {"step": 46, "recovery_s": 0.84, "lost_steps": 5}},
            "first new step 46 after 0.84s, 5 steps lost",
        ),
        (
            {"type": "Recovered", "data": {"step": 46, "recovery_s": None, "down_s": 2.0, "lost_steps": 5}},
            "first new step 46 after 2s, 5 steps lost",
        ),
        (
            {"type": "Restored", "data": {"step": 40, "source": "memory"}, "decision": "noted"},
            "restored step 40 from memory",
        ),
        (
            {"type": "CheckpointCommitted", "data": {"step": 50, "size_bytes": 1 << 20}},
            "checkpoint of step 50, 1.0 MiB",
        ),
        (
            {"type": "CancelRequested", "data": {"now": True}, "decision": "stop the agents"},
            "cancel asked, without grace → stop the agents",
        ),
        ({"type": "SomethingNew", "data": {"reason": "who knows"}}, "something new: who knows"),
    ],
)
def test_events_in_sentences(event, text):
    assert story.told(event) == text


def test_signals_have_names():
    assert story.end_of(None, 9) == "SIGKILL"
    assert story.end_of(3, None) == "exit code 3"
    assert story.end_of(None, 200) == "signal 200"
    assert story.end_of(None, None) == ""


def test_progress_in_a_pipe_is_a_line_for_each_thing(capsys):
    with output.progress() as going:
        going.show("starting")
        going.show("starting")
        going.measure("uploading", 0.5)
        going.show("uploading")
    assert capsys.readouterr().err.splitlines() == ["starting …", "uploading …"]
    with output.progress(quiet=True) as going:
        going.show("starting")
    assert capsys.readouterr().err == ""
