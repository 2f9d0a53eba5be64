"""What the description of the API allows, and what it does not: no request is answered with a 5xx."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings, strategies
from schemathesis import GenerationMode

from orch.api.app import openapi_document
from orch.api.serve import ApiServer
from orch.control.home import Home
from support.fake_control import FakeControlService
from support.live_api import TOKEN, Api, submit

EXAMPLES = 8
"""For each route and kind: requests as described, and requests that are not."""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ApiServer, str]]:
    control = FakeControlService(Home(Path(tmp_path_factory.mktemp("openapi")) / "home"))
    server = ApiServer(control, TOKEN)
    server.start()
    api = Api(f"{server.url}/api/v1")
    job = submit(api)
    api.pool.clear()
    yield server, job
    server.stop()
    control.store.close()


def operations() -> list[tuple[str, str]]:
    found = openapi_document()["paths"]
    return [(method.upper(), path) for path, methods in found.items() for method in methods]


@pytest.mark.parametrize(
    "mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=lambda mode: mode.value
)
@pytest.mark.parametrize(("method", "path"), operations())
def test_no_request_breaks_it(
    method: str, path: str, mode: GenerationMode, served: tuple[ApiServer, str]
) -> None:
    server, job = served
    schema = schemathesis.openapi.from_dict(openapi_document())
    schema.config.update(base_url=server.url)

    @settings(
        max_examples=EXAMPLES, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=schema[path][method].as_strategy(generation_mode=mode), known=strategies.booleans())
    def ask(case: Any, known: bool) -> None:
        if known and "job" in (case.path_parameters or {}):
            case.path_parameters["job"] = job  # past the look whether there is such a job
        if "wait_s" in (case.query or {}):
            case.query["wait_s"] = 0
        answer = case.call(headers={"Authorization": f"Bearer {TOKEN}"})
        assert answer.status_code < 500, (case.as_curl_command(), answer.text)
        assert TOKEN not in answer.text

    if mode is GenerationMode.NEGATIVE and not can_be_wrong(method, path):
        return
    ask()


def can_be_wrong(method: str, path: str) -> bool:
    """Any text may be asked for as a job: of a route that takes nothing else, no request is wrong."""
    described = openapi_document()["paths"][path][method.lower()]
    judged = [
        one for one in described.get("parameters", ()) if one["in"] != "path" or "pattern" in one["schema"]
    ]
    return bool(judged or described.get("requestBody"))
