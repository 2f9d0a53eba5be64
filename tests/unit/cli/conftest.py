"""The real program against the real API, with a controller behind it that places nothing."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner, Result

from orch.api.serve import ApiServer
from orch.cli.main import app
from orch.control.home import Home, ServerRecord
from orch.control.store import now_us
from support.fake_control import FakeControlService

if TYPE_CHECKING:
    from orch.model.errors import OrchError

VERSION = "0.1.0"


class Api:
    """A home whose server answers, and the controller behind it."""

    def __init__(self, home: Home) -> None:
        self.home = home.ensure()
        self.service = FakeControlService(home)
        self._serve()

    def _serve(self) -> None:
        self._server = ApiServer(self.service, self.home.ensure_token())
        self.url = self._server.start()
        self.record()

    def restart(self) -> None:
        """On the same store, and at another address."""
        self._server.stop()
        self.service = FakeControlService(self.home)
        self._serve()

    def record(self, ray_address: str = "127.0.0.1:6379") -> None:
        self.home.write_server(
            ServerRecord(url=self.url, pid=os.getpid(), version=VERSION, ray_address=ray_address)
        )

    def close(self) -> None:
        self._server.stop()

    def job(self, name: str = "digits", **spec) -> str:
        """A job that is QUEUED."""
        from orch.control.service import Submission
        from orch.model.spec import JobSpec

        whole = JobSpec.model_validate({"run": "true", "name": name, "workdir": "/", **spec})
        return self.service.submit(Submission(spec=whole))["id"]

    def edit(self, job: str, **changes) -> None:
        """Gives the job's state other values, as an event would."""
        from dataclasses import replace

        with self.service.store.transaction() as transaction:
            transaction.save(replace(transaction.lifecycle(job), **changes, seen_us=now_us()))
        self.service.bell.ring(job)


@dataclass
class Cli:
    """Runs verbs in this process."""

    def __call__(self, *arguments: str, stdin: bytes | None = None) -> Result:
        result = CliRunner().invoke(app, list(arguments), input=stdin)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    def ok(self, *arguments: str, **options) -> str:
        result = self(*arguments, **options)
        assert result.exit_code == 0, result.output
        return result.stdout

    def json(self, *arguments: str) -> dict:
        return json.loads(self.ok(*arguments, "-o", "json"))

    def refused(self, error: type[OrchError], *arguments: str, **options) -> str:
        """What stderr says; stdout must be empty and no traceback shown."""
        result = self(*arguments, **options)
        assert result.exit_code == error.exit_code, result.output
        assert result.stdout == ""
        assert "Traceback" not in result.stderr
        return result.stderr


@pytest.fixture(autouse=True)
def home(monkeypatch):
    # Not tmp_path: homes are closed to others, all the way.
    with tempfile.TemporaryDirectory(prefix="orch-cli-") as folder:
        for name in ("ORCH_URL", "ORCH_TOKEN", "ORCH_CLUSTER", "ORCH_STORE", "FORCE_COLOR", "COLUMNS"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("ORCH_HOME", folder)
        yield Home(Path(folder))


@pytest.fixture
def cli() -> Cli:
    return Cli()


@pytest.fixture
def api(home):
    running = Api(home)
    yield running
    running.close()


@pytest.fixture
def workdir(tmp_path) -> Path:
    """A folder that can be submitted: `orch submit workdir/job.yaml`."""
    folder = tmp_path / "digits"
    folder.mkdir()
    (folder / "job.yaml").write_text("run: python train.py\noutputs: [model.ckpt]\n")
    (folder / "train.py").write_text("print('trained')\n")
    return folder
