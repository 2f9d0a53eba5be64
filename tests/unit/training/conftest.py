from __future__ import annotations

import pytest
from fake_agent import FakeAgent


@pytest.fixture
def agents(tmp_path):
    """Makes agents, each with a folder of its own."""
    made: list[FakeAgent] = []

    def make(**options) -> FakeAgent:
        folder = tmp_path / f"agent-{len(made)}"
        folder.mkdir()
        made.append(FakeAgent(folder, **options))
        return made[-1]

    yield make
    for agent in made:
        agent.close()
