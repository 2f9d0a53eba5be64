"""`orch submit --from`: what of another job's checkpoint the server is told."""

from __future__ import annotations

import numpy as np
import pytest

from orch.model.errors import OrchError, WrongUse
from orch_workers.checkpoint import Checkpointer


@pytest.fixture
def old(tmp_path):
    url = tmp_path / "old-x1"
    with Checkpointer(str(url), keep=9) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, {"weights": np.zeros(2)})
    return str(url)


def started(api):
    (job,) = api.service.jobs(_all())
    return api.service.job(job["id"])["spec"]["start_from"]


def _all():
    from orch.control.service import JobQuery

    return JobQuery()


def test_the_checkpoint_is_named_exactly(cli, api, workdir, old):
    options = ("--only", "model", "--map", "encoder.*=backbone.*", "--map", "a=b")
    cli.ok("submit", str(workdir / "job.yaml"), "--from", f"{old}@1", *options)
    assert started(api) == {
        "url": old,
        "options": {},
        "step": 1,
        "generation": "000001.000001",
        "only": ["model"],
        "map": {"encoder.*": "backbone.*", "a": "b"},
    }


def test_without_a_step_it_is_the_newest(cli, api, workdir, old):
    cli.ok("submit", str(workdir / "job.yaml"), "--from", old)
    assert started(api)["step"] == 2


def test_what_cannot_be_is_said_before_anything_is_sent(cli, api, workdir, old):
    file = str(workdir / "job.yaml")
    assert "name it with --from" in cli.refused(WrongUse, "submit", file, "--only", "model")
    assert "is no OLD=NEW" in cli.refused(WrongUse, "submit", file, "--from", old, "--map", "x")
    assert "too many *" in cli.refused(WrongUse, "submit", file, "--from", old, "--map", "*.*=x")
    assert "no checkpoint of step 9" in cli.refused(OrchError, "submit", file, "--from", f"{old}@9")
    (workdir / "job.yaml").write_text("run: python train.py\ncheckpoint: {files: [m.pt]}\n")
    assert "keeps its own files" in cli.refused(WrongUse, "submit", file, "--from", old)
    assert not api.service.jobs(_all())
