"""The Hugging Face example, in an environment that orch builds for it: killed, it ends as a run that was not."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch
import yaml

from support.estimators import share_environments
from support.files import EXAMPLES, restored
from support.integrations import as_job, flat
from support.workers import Machine


@pytest.fixture
def machines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Two, with the same environments; the second one's shared memory counts from when it is asked for."""
    made = []

    def make() -> Machine:
        made.append(Machine(Path(tempfile.mkdtemp(prefix="orch-")), monkeypatch))
        share_environments(made[-1], tmp_path / "environments")
        return made[-1]

    yield make
    for machine in made:
        machine.close()


def test_killed_it_ends_as_undisturbed(machines):
    python = yaml.safe_load((EXAMPLES / "huggingface/job.yaml").read_text())["python"]
    ends = []
    for hold_at in ([], [17]):
        machine = machines()
        one = as_job(machine, "huggingface", *hold_at, python=python)
        ends.append(flat(torch.load(machine.workdir / "final.pt")))
    assert ends[0] == ends[1]
    assert [step for step, _ in restored(one)] == [16]
    log = one.paths.log.read_text()
    assert "done after 30 steps" in log
