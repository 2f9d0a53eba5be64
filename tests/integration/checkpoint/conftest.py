"""A storage in the session's SeaweedFS for each test, under a prefix of its own."""

from __future__ import annotations

import pytest

from orch_workers.checkpoint import Storage, open_storage


@pytest.fixture
def s3(seaweed, request) -> Storage:
    name = request.node.name.replace("[", "-").replace("]", "")
    return open_storage(seaweed.url(f"checkpoint/{name}"), seaweed.options, seaweed.env)
