"""Lives of a job in which the controller is killed at chosen places (`orch.control.killpoints`)."""

from __future__ import annotations

import json
import os
import random
import secrets
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from orch.control.killpoints import COMMAND_MOMENTS, EVENT_MOMENTS, FILE_NAME, STRUCK_NAME
from orch.model.commands import COMMANDS
from support.accounts import assert_accounts
from support.recovery import STEPS, Held, Victim, starts
from support.server import Server, wait_for

ONCE = frozenset({"Submitted", "Closed", "GangRemoved"})
"""Events that a job of these lives has once at most. (A request that broke off is repeated by the client.)"""
TOLD = frozenset(
    {
        "ProcessStarted",
        "Restored",
        "Recovered",
        "ProcessExited",
        "RestartDecided",
        "CheckpointCommitted",
        "WorkerEnded",
    }
)
"""Events that agents tell: the same one twice was applied twice."""


class Life:
    """What happens to a job, and the places that the controller passes while it does, in their order."""

    def __init__(
        self,
        names: Sequence[str],
        act: Callable[[Any], object] = lambda victim: None,
        *,
        restarts: int = 0,
        ends: str = "SUCCEEDED",
        at_once: int = 4,
        slow: bool = False,
        begin: Callable[..., Victim] = Victim,
        then: Callable[[Any], object] = lambda victim: None,
        takes_a_minute: bool = False,
    ) -> None:
        """`at_once`: kills in one such life; 1 where a kill at one place may leave the others out. `slow`: it must
        not be over by itself while nobody takes the request that the life makes. `begin`: makes the job; `then`:
        done once all the kills have struck.
        """
        self.act, self.restarts, self.ends, self.at_once = act, restarts, ends, at_once
        self.begin, self.then, self.takes_a_minute = begin, then, takes_a_minute
        self.options = ("--set=env.PRODUCTS=30",) if slow else ()
        self.places = [
            f"{name}:{moment}"
            for name in names
            for moment in (COMMAND_MOMENTS if name in COMMANDS else EVENT_MOMENTS)
        ]


def _trained(victim: Victim) -> None:
    victim.wait_event("CheckpointCommitted", lambda data: data["step"] > 1)
    victim.wait_step(STEPS // 5)


def _crash(victim: Victim) -> None:
    _trained(victim)
    assert victim.kill_training()


def _lose_agent(victim: Victim) -> None:
    _trained(victim)
    assert victim.kill_agent()


def _preempt(victim: Victim) -> None:
    _trained(victim)
    victim.server.cli("preempt", victim.id, "--no-wait")


def _resume(victim: Victim) -> None:
    _trained(victim)
    victim.server.cli("resume", victim.id, "--set", "env.RESUMED=1")


def _cancel(victim: Victim) -> None:
    _trained(victim)
    victim.server.cli("cancel", victim.id, "--no-wait")


def _kill_controller(victim: Victim) -> None:
    _trained(victim)
    assert victim.kill_controller()


def _crash_and_stand_still(victim: Held) -> None:
    """Its state is restored and told of, and no new step comes: Progressed says so again and again."""
    _trained(victim)
    victim.hold()
    assert victim.kill_training()


def _preempt_what_does_not_answer(victim: Victim) -> None:
    """The agent is frozen, so nobody leaves; its time is over half a minute after its grace."""
    _trained(victim)
    os.kill(victim.events("AgentUp")[-1]["pid"], signal.SIGSTOP)
    victim.server.cli("preempt", victim.id, "--grace", "1s", "--no-wait")


class Stored(Victim):
    """A job with a secret that its storage knows and the store does not."""

    def __init__(self, server: Server, *_options: str) -> None:
        pattern = next((server.home / "storage").glob("chaos-*/job.json"))
        super().__init__(server, job=f"chaos-{secrets.token_hex(3)}")
        self.storage = server.home / f"given-{self.id}"
        shutil.copytree(pattern.parent / "code", self.storage / self.id / "code")
        record = json.loads(pattern.read_text())
        record |= {"job": self.id, "spec": {**record["spec"], "secrets": ["KEY"]}}
        (self.storage / self.id / "job.json").write_text(json.dumps(record))


def _recover_and_set_secrets(victim: Stored) -> None:
    server = victim.server
    server.cli("recover", str(victim.storage), victim.id)
    server.env["KEY"] = "known again"
    server.cli("secrets", victim.id)


LIVES = {
    "calm": Life(
        [
            "Submitted",
            "TurnCame",
            "RequestGang",
            "StartAgents",
            "AgentUp",
            "ProcessStarted",
            "CheckpointCommitted",
            "WorkerEnded",
        ]
    ),
    "granted": Life(["GangGranted"], at_once=1),
    "over": Life(["CloseJob", "Closed", "RecordEnd"], at_once=1),
    "crash": Life(["ProcessExited", "RestartDecided", "Restored", "Recovered"], _crash, restarts=1),
    "agent lost": Life(["AgentLost"], _lose_agent, restarts=1, at_once=1),
    "preempted": Life(["PreemptRequested", "StopAgents"], _preempt, restarts=1, slow=True),
    "placed again": Life(["RemoveGang", "GangRemoved"], _preempt, restarts=1, at_once=1, slow=True),
    "resumed": Life(["ResumeRequested", "RecordResume"], _resume, restarts=1, slow=True),
    "cancelled": Life(["CancelRequested"], _cancel, ends="CANCELLED", slow=True),
    "controller killed": Life(["Adopted"], _kill_controller, slow=True),
    "noticed": Life(["PreemptionNoticed"], _preempt, restarts=1, at_once=1, slow=True),
    "restored and standing still": Life(
        ["Progressed"], _crash_and_stand_still, restarts=1, begin=Held, then=Held.let_go
    ),
    "blocked": Life(["BlockedBecause", "Unblocked"], _recover_and_set_secrets, at_once=2, begin=Stored),
    "overdue": Life(
        ["StopOverdue"], _preempt_what_does_not_answer, restarts=1, at_once=1, slow=True, takes_a_minute=True
    ),
}

NO_LIFE = {
    "WarmStarted": "needs a second job, whose checkpoint this one begins with",
    "GangLost": "needs a gang that is taken away while its agents are there",
    "TurnLost": "needs a second job that goes first",
    "RaiseAttempt": "needs several ranks",
    "KillAgents": "needs an agent that nobody expects",
}
"""Events and commands that none of these lives comes to, each with the reason."""


def pick(rng: random.Random, life: str, count: int) -> list[str]:
    """At most `count` places of a life, in their order, of as many events and commands."""
    places, count = LIVES[life].places, min(count, LIVES[life].at_once)
    names = list(dict.fromkeys(place.partition(":")[0] for place in places))
    chosen = sorted(rng.sample(range(len(names)), min(count, len(names))))
    return [rng.choice([p for p in places if p.partition(":")[0] == names[number]]) for number in chosen]


class Struck:
    """The files by which a controller is told where to die, and tells that it did."""

    def __init__(self, server: Server) -> None:
        self._told, self._file = server.home / STRUCK_NAME, server.home / FILE_NAME
        self._told.write_text("")

    def arm(self, places: Sequence[str]) -> None:
        self._told.write_text("")
        self._file.write_text("".join(f"{place}\n" for place in places))
        wait_for("the controller has seen where it is to die", lambda: self.lines("armed"))

    def lines(self, what: str) -> list[tuple[str, int]]:
        """(place, microseconds) of what was armed, or has struck."""
        found = [line.split() for line in self._told.read_text().splitlines()]
        return [(words[1], int(words[3])) for words in found if words[0] == what]

    def clear(self) -> None:
        for path in (self._file, self._told):
            Path(path).unlink(missing_ok=True)


def live(server: Server, name: str, places: Sequence[str], undisturbed: bytes) -> dict[str, Any]:
    """One life with kills at `places`, checked; what it cost."""
    life, struck = LIVES[name], Struck(server)
    # A place that a request passes is passed by the request that the life makes; all others come by themselves.
    struck.arm(places)
    try:
        victim = life.begin(server, *life.options)
        life.act(victim)
        wait_for(
            f"{name}: the controller has died at {places}",
            lambda: [place for place, _ in struck.lines("struck")] == list(places),
        )
        life.then(victim)
        found = server.client().wait(victim.id, timeout_s=90)
        assert found["state"] == life.ends, found["reason"]
        events = server.client().events(victim.id).events
        assert_accounts(server, victim.id)
        assert_nothing_twice(events)
        # An attempt whose agent nobody saw is made anew by the next controller: its row has no start.
        began = [start for start in starts(found) if start["started"]]
        assert len(began) == 1 + life.restarts, starts(found)
        if life.ends == "SUCCEEDED":
            assert victim.final_bytes() == undisturbed, f"{name}, {places}: the final bytes differ"
        victim.assert_nothing_left()
        return {"adopted_s": _adopted_s(events, struck), "found": found, "victim": victim}
    finally:
        struck.clear()


def assert_nothing_twice(events: list[dict[str, Any]]) -> None:
    kinds = Counter(event["type"] for event in events)
    again = {kind: kinds[kind] for kind in ONCE if kinds[kind] > 1}
    told = Counter(json.dumps(event["data"], sort_keys=True) for event in events if event["type"] in TOLD)
    assert not again, again
    assert set(told.values()) <= {1}, [event for event, count in told.items() if count > 1]
    generations = [event["data"]["generation"] for event in events if event["type"] == "ProcessStarted"]
    assert len(generations) == len(set(generations)), f"a generation was started twice: {generations}"
    assert [event["seq"] for event in events] == sorted(event["seq"] for event in events)


def _adopted_s(events: list[dict[str, Any]], struck: Struck) -> list[float]:
    """From each kill until the next controller had adopted the job, where it had been placed by then."""
    from orch.control.views import parse_time_us

    adopted = [parse_time_us(event["time"]) for event in events if event["type"] == "Adopted"]
    found = []
    for _, killed_us in struck.lines("struck"):
        after = [at_us for at_us in adopted if at_us > killed_us]
        if after:
            found.append(round((min(after) - killed_us) / 1e6, 2))
    return found
