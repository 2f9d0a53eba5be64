from __future__ import annotations

import pytest

from unit.training import harness


@pytest.fixture
def agents(tmp_path):
    with harness.fake_agents(tmp_path) as make:
        yield make
