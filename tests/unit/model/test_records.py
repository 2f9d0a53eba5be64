"""States, events and commands survive JSON; nothing else is taken for one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orch.model import commands, events
from orch.model.commands import COMMANDS, CloseJob, StartAgents, command_from_dict, command_to_dict
from orch.model.events import EVENTS, Adopted, ProcessExited, WorkerEnded, event_from_dict, event_to_dict
from orch.model.generation import Generation
from orch.model.states import AgentState, AgentStatus, Ending, JobState, State, StoryEntry

counts = st.integers(min_value=1, max_value=999_999)
st.register_type_strategy(float, st.floats(allow_nan=False, allow_infinity=False))
st.register_type_strategy(Generation, st.builds(Generation, counts, counts))
documents = st.dictionaries(st.text(max_size=5), st.none() | st.integers() | st.text(max_size=5), max_size=3)
MAPPINGS = {
    Mapping[str, Any]: documents,
    Mapping[str, Any] | None: st.none() | documents,
    Mapping[int, int]: st.dictionaries(counts, counts, max_size=3),
}


def some(kind):
    """Any instance of it, every field drawn by its annotation (hypothesis alone leaves the defaults)."""
    hints = get_type_hints(kind)
    fields = {
        name: MAPPINGS[hint] if hint in MAPPINGS else st.from_type(hint) for name, hint in hints.items()
    }
    if kind is WorkerEnded:
        fields["outcome"] = st.sampled_from(events.OUTCOMES)
    return st.builds(kind, **fields)


@pytest.mark.parametrize("name", EVENTS)
@given(data=st.data())
def test_every_event_survives_json(name, data):
    event = data.draw(some(EVENTS[name]))
    assert event_from_dict(json.loads(json.dumps(event_to_dict(event)))) == event


@pytest.mark.parametrize("name", COMMANDS)
@given(data=st.data())
def test_every_command_survives_json(name, data):
    command = data.draw(some(COMMANDS[name]))
    assert command_from_dict(json.loads(json.dumps(command_to_dict(command)))) == command


def test_a_job_survives_json():
    job = JobState(
        job="digits-x1",
        state=State.STOPPING,
        attempt=3,
        restart=2,
        agents={
            0: AgentState(placed=2, status=AgentStatus.ENDED, started=Generation(3, 2), outcome="stopped")
        },
        ending=Ending(state=State.CANCELLED, reason="cancelled on request", exit_code=75),
        merged=(Generation(1, 2), Generation(3, 2)),
        down=Generation(3, 1),
        removing=(1, 2),
        charges={"failures": 2, "marks": [["failures", 10]]},
        spent_us={"QUEUED": 5},
        story=(
            StoryEntry(t_us=1, event="TurnCame()", before=State.QUEUED, after=State.QUEUED, decision="…"),
        ),
    )
    assert JobState.from_dict(json.loads(json.dumps(job.to_dict()))) == job


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({}, "None is no event"),
        ({"type": "Exploded"}, "'Exploded' is no event"),
        ({"type": "GangGranted"}, "'attempt' is missing"),
        ({"type": "GangGranted", "attempt": "1"}, "GangGranted.attempt: '1' is no int"),
        ({"type": "GangGranted", "attempt": True}, "True is no int"),
        ({"type": "GangGranted", "attempt": None}, "None is no int"),
        ({"type": "GangGranted", "attempt": 1, "colour": "red"}, "unknown field 'colour'"),
        ({"type": "Recovered", "generation": "1.2", "step": 3}, "'1.2' is no generation"),
        ({"type": "Recovered", "generation": [1, 2], "step": 3}, "is no str"),
        ({"type": "Adopted", "found": [1]}, "is no dict"),
        ({"type": "WorkerEnded", "attempt": 1, "rank": 0, "outcome": "exploded"}, "none of succeeded"),
    ],
)
def test_what_is_no_event_is_refused_by_name(document, said):
    with pytest.raises(ValueError, match=said):
        event_from_dict(document)


def test_what_is_no_command_is_refused_by_name():
    with pytest.raises(ValueError, match="'Shout' is no command"):
        command_from_dict({"type": "Shout"})
    with pytest.raises(ValueError, match="is no list"):
        command_from_dict({"type": "StartAgents", "attempt": 1, "ranks": 0, "gang_attempt": 1})


def test_the_form_is_plain():
    event = ProcessExited(generation=Generation(1, 2), rank=0, signal=9)
    assert event_to_dict(event) == {
        "type": "ProcessExited",
        "generation": "000001.000002",
        "rank": 0,
        "code": None,
        "signal": 9,
        "step": None,
        "evidence": "",
        "cause": "",
        "what": "",
        "advice": "",
        "detect_s": None,
    }
    assert event_to_dict(Adopted(found={0: 3}, gang=2))["found"] == {"0": 3}
    assert command_to_dict(CloseJob(attempt=2)) == {"type": "CloseJob", "attempt": 2, "sweep": True}
    assert command_to_dict(StartAgents(attempt=2, ranks=(0, 1), gang_attempt=1))["ranks"] == [0, 1]


def test_the_tables_are_complete():
    """A new record that is not in its union could be stored and never read again."""
    for module, table in ((events, EVENTS), (commands, COMMANDS)):
        own = [
            value for value in vars(module).values() if getattr(value, "__module__", "") == module.__name__
        ]
        records = {value.__name__ for value in own if hasattr(value, "__dataclass_fields__")}
        assert records == set(table)


@given(counts, counts)
def test_a_generation_sorts_as_its_text_does(attempt, restart):
    generation = Generation(attempt, restart)
    assert Generation.parse(str(generation)) == generation
    following = Generation(attempt, restart + 1)
    assert generation < following
    assert str(generation) < str(following) or restart == 999_999


@pytest.mark.parametrize("text", ["", "1.2", "000001", "000001.000002 ", "000001.-00002", "٠٠٠٠٠١.٠٠٠٠٠٢"])
def test_what_is_no_generation_is_refused(text):
    with pytest.raises(ValueError, match="is no generation"):
        Generation.parse(text)
