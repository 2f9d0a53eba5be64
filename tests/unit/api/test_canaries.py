"""A value that nothing else holds, put wherever a secret can be: the API neither repeats it nor writes it down."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from support.fake_control import FakeControlService
from support.live_api import SPEC, Api, submit

CANARY = "Kq7zCanary0fTheM1ne9xW"


def with_storage(url: str = "s3://bucket/x", **options: Any) -> dict[str, Any]:
    return SPEC | {"checkpoint": {"storage": {"url": url, "options": options}}}


REFUSED = (
    {"spec": with_storage(f"s3://AKIA:{CANARY}@bucket/x")},
    {"spec": with_storage(f"sftp://me:{CANARY}@host/x")},
    {"spec": with_storage(f"simplecache::s3://AKIA:{CANARY}@bucket")},
    {"spec": SPEC | {"checkpoint": {"storage": f"http://me:{CANARY}@host/x"}}},
    {"spec": with_storage(secret=CANARY)},
    {"spec": with_storage(token=CANARY)},
    {"spec": with_storage(client_kwargs={"aws_secret_access_key": CANARY})},
    {"spec": with_storage(client_kwargs={"endpoint_url": f"https://me:{CANARY}@example.org"})},
    {"spec": with_storage(a=[{"b": {"account_key": CANARY}}])},
    {"spec": SPEC | {"secrets": ["KEY"], "env": {"KEY": CANARY}}, "secrets": {"KEY": CANARY}},
    {"spec": SPEC | {"secrets": {"KEY": CANARY}}},
    {"spec": SPEC | {"secrets": ["KEY"]}, "secrets": {"KEY": [CANARY]}},
    {"spec": SPEC | {"secrets": ["KEY"]}, "secrets": {"KEY": CANARY, "OTHER": CANARY}},
    {"spec": SPEC, "secrets": {"KEY": 1}, "KEY": CANARY},
    {"spec": SPEC | {"secrets": ["KEY"], "priority": "x"}, "secrets": {"KEY": CANARY}},
)  # fmt: skip


def everything_below(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def test_what_is_refused_is_not_repeated(
    api: Api, control: FakeControlService, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    for body in REFUSED:
        for path in ("/jobs", "/check"):
            whole = body if path == "/jobs" else {"spec": body["spec"]}
            answer = api("POST", path, whole)
            if path == "/check" and answer.status == 200:
                continue  # what is wrong with it stands beside the spec
            assert answer.status == 400, (path, body)
            assert CANARY not in answer.data.decode(), (path, body)
    assert CANARY not in caplog.text
    assert CANARY.encode() not in everything_below(control.home.root)


def test_what_is_taken_is_sealed(
    api: Api, control: FakeControlService, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    keys = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "WANDB_API_KEY"]
    spec = with_storage(endpoint_url="http://127.0.0.1:9") | {"secrets": keys}
    job = submit(api, spec=spec, secrets=dict.fromkeys(keys, CANARY))
    assert api("PUT", f"/jobs/{job}/secrets", {"secrets": dict.fromkeys(keys, CANARY + "2")}).status == 200
    answers = [
        api("GET", path).data
        for path in (
            "/jobs", f"/jobs/{job}", f"/jobs/{job}/events", f"/jobs/{job}/wait", f"/jobs/{job}/logs", "/server"
        )
    ]  # fmt: skip
    control.store.close()
    for place in (*answers, caplog.text.encode(), everything_below(control.home.root)):
        assert CANARY.encode() not in place
