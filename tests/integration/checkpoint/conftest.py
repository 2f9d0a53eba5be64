"""A storage in the session's SeaweedFS for each test, under a prefix of its own."""

from __future__ import annotations

import pytest

from orch_workers.checkpoint import Storage, open_storage

ONLY_S3FS = {"default_block_size": 8 << 20}
"""An option that only s3fs knows, so that s3fs serves."""


def _open(seaweed, request, more) -> Storage:
    name = request.node.name.replace("[", "-").replace("]", "")
    return open_storage(seaweed.url(f"checkpoint/{name}"), seaweed.options | more, seaweed.env)


@pytest.fixture
def s3(seaweed, request) -> Storage:
    return _open(seaweed, request, {})


@pytest.fixture(params=["botocore", "s3fs"])
def either(seaweed, request) -> Storage:
    """Both clients, for what both must do."""
    return _open(seaweed, request, ONLY_S3FS if request.param == "s3fs" else {})
