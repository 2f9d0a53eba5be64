"""The API over a store-backed control plane, and a caller of it."""

import json
from typing import Any

import urllib3

TOKEN = "t0ken"
SECRET = "hunter2hunter2"
SPEC = {"run": "true", "ship": "never", "workdir": "/srv", "name": "a"}


class Api:
    def __init__(self, url: str) -> None:
        self.url = url
        self.pool = urllib3.PoolManager(retries=False, timeout=30)

    def __call__(self, method: str, path: str, body: Any = None, **headers: str) -> urllib3.BaseHTTPResponse:
        head = {"Authorization": f"Bearer {TOKEN}"} | {
            name.replace("_", "-"): value for name, value in headers.items()
        }
        if not isinstance(body, bytes):
            head["Content-Type"] = "application/json"
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        return self.pool.request(method, self.url + path, body=data, headers=head)

    def error(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, str, str]:
        answer = self(method, path, body, **headers)
        assert answer.headers["X-Orch-Api"] == "1"
        error = answer.json()["error"]
        assert "Traceback" not in answer.data.decode()
        return answer.status, error["code"], error["message"]


def submit(api: Api, **values: Any) -> str:
    answer = api("POST", "/jobs", {"spec": SPEC} | values)
    assert answer.status == 201, answer.data
    job: str = answer.json()["jobs"][0]["id"]
    return job
