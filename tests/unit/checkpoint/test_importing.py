"""A plain torch file out of a checkpoint, and a checkpoint out of a plain torch file."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from orch.cli.main import app
from orch_workers.checkpoint import Catalog, Checkpointer, CheckpointError, open_storage
from orch_workers.checkpoint.content import Content
from orch_workers.checkpoint.exporting import export
from orch_workers.checkpoint.importing_torch import read_torch
from orch_workers.checkpoint.reader import restore
from orch_workers.training.fitting import StartRules, put_what_fits
from orch_workers.training.objects import make_handler
from orch_workers.training.snapshot import Adapters, Stored


def trained(seed=1):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.25)
    model(torch.randn(8, 3)).sum().backward()
    optimizer.step()
    return model, optimizer


def plain_file(path, model, optimizer, **more):
    states = {"model_state_dict": model.state_dict(), "optimizer_state_dict": optimizer.state_dict()}
    torch.save({"epoch": 3, **states, "loss": 0.5, **more}, path)
    return path


def content_of(root, name):
    catalog = Catalog(open_storage(str(root), {}, {}), name)
    return Content.open(catalog, catalog.committed()[0])


def begin_with(root, name, **objects):
    """What a job that is submitted --from it does."""
    catalog = Catalog(open_storage(str(root), {}, {}), name)
    _, path = restore(catalog, catalog.committed()[0], 0, root / "slot")
    adapters = Adapters()
    stored = Stored(path, adapters.codecs())
    handlers = [make_handler(one, objects, adapters.active(), {}) for one in objects]
    report = put_what_fits(handlers, stored, StartRules())
    stored.close()
    return report


def equal(one, other):
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(name == other_name and torch.equal(a, b) for (name, a), (other_name, b) in pairs)


def test_a_checkpoint_leaves_as_the_file_of_the_tutorials(tmp_path):
    model, optimizer = trained()
    with Checkpointer(str(tmp_path / "job-1")) as checkpoints:
        state = {"model": model, "optimizer": optimizer, "history": [1, 2]}
        checkpoints.save(7, state, epoch=3, metrics={"loss": 0.5})
    (done,) = export(content_of(tmp_path, "job-1"), "torch-plain", tmp_path / "out")
    assert done.path == tmp_path / "out" / "checkpoint.pth"
    found = torch.load(done.path, weights_only=True)
    assert {name: found[name] for name in ("epoch", "step", "loss", "history")} == {
        "epoch": 3, "step": 7, "loss": 0.5, "history": [1, 2],
    }  # fmt: skip
    fresh, fresh_optimizer = trained(2)
    fresh.load_state_dict(found["model_state_dict"])
    fresh_optimizer.load_state_dict(found["optimizer_state_dict"])
    assert equal(fresh, model)
    kept, wanted = fresh_optimizer.state_dict()["state"], optimizer.state_dict()["state"]
    assert all(torch.equal(kept[number]["exp_avg"], wanted[number]["exp_avg"]) for number in wanted)


def test_such_a_file_becomes_a_checkpoint_that_a_job_begins_with(tmp_path):
    model, optimizer = trained()
    file = plain_file(tmp_path / "checkpoint.pth", model, optimizer)
    done = CliRunner().invoke(
        app, ["checkpoints", "import", str(file), str(tmp_path / "imported"), "--step", "12"]
    )
    assert done.exit_code == 0, done.output
    assert done.stdout.endswith("imported@12: model, optimizer\n")
    content = content_of(tmp_path, "imported")
    assert (content.manifest.epoch, content.manifest.metrics) == (3, {"loss": 0.5})
    fresh, fresh_optimizer = trained(2)
    report = begin_with(tmp_path, "imported", model=fresh, optimizer=fresh_optimizer)
    assert report.is_whole
    assert equal(fresh, model)
    kept, wanted = fresh_optimizer.state_dict()["state"], optimizer.state_dict()["state"]
    assert all(torch.equal(kept[number]["exp_avg_sq"], wanted[number]["exp_avg_sq"]) for number in wanted)


def test_a_bare_state_dict_is_the_model_s(tmp_path):
    model, _ = trained()
    torch.save(model.state_dict(), tmp_path / "model.pt")
    found = read_torch(tmp_path / "model.pt")
    assert list(found.state) == ["model"]
    assert (found.step, found.epoch, found.notes) == (None, None, ())


def test_an_optimizer_whose_parameters_cannot_be_told_apart_is_left_out_and_said(tmp_path):
    model, _ = trained()
    half = torch.optim.SGD(model[0].parameters(), lr=0.1)
    found = read_torch(plain_file(tmp_path / "half.pth", model, half, step=9))
    assert list(found.state) == ["model"]
    assert found.step == 9
    assert found.notes == ("optimizer: its parameters could not be told apart, so it is left out",)


def test_what_is_no_weights_is_refused_and_never_executed(tmp_path):
    torch.save({"model": nn.Linear(2, 2)}, tmp_path / "whole.pth")
    with pytest.raises(CheckpointError, match="does not load as weights alone"):
        read_torch(tmp_path / "whole.pth")
    torch.save({"epoch": 1}, tmp_path / "empty.pth")
    with pytest.raises(CheckpointError, match="no state dict of a module in it; it has epoch"):
        read_torch(tmp_path / "empty.pth")
