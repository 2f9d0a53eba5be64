"""Runs in the test's own process, against an agent with a real socket; no hooks, no signals."""

from __future__ import annotations

from contextlib import contextmanager

from orch_workers.training import protocol, session
from unit.training.fake_agent import FakeAgent


@contextmanager
def fake_agents(folder):
    """Makes agents, each with a folder of its own below `folder`."""
    made: list[FakeAgent] = []

    def make(**options) -> FakeAgent:
        own = folder / f"agent-{len(made)}"
        own.mkdir()
        made.append(FakeAgent(own, **options))
        return made[-1]

    try:
        yield make
    finally:
        for agent in made:
            agent.close()


def begin(agent, monkeypatch, **objects):
    """What `orch.training(**objects)` does, without watching for the interpreter's end."""
    agent.wait_idle()
    monkeypatch.setenv(protocol.ENV_SOCKET, agent.socket_path)
    known = {"skip": "replay", "restore": True, "seed": None, "local_folder": None, "local_every_s": 600.0}
    known["strict"] = False
    options = {name: objects.pop(name, default) for name, default in known.items()}
    return session.begin(objects, session.Options(**options))


def saved(run):
    """Counts a step, saves it and ends the process's part of the run."""
    run.step()
    run.save()
    run.give_up()


def saves(agent):
    """(step, reason) of each save, in order."""
    agent.wait_idle()
    return [(message["step"], message["reason"]) for message in agent.of("saved")]
