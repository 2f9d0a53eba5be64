"""A new job that begins with another's checkpoint: what fits is loaded by name, and the rest is listed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from orch_workers.training.errors import MismatchError
from orch_workers.training.fitting import mapped
from unit.training.harness import begin, saved

SHAPE = (3, 4)


class Old(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
        self.head = nn.Linear(3, 10)
        self.extra = nn.Parameter(torch.ones(2))


class New(nn.Module):
    """The encoder under another name, a head of another shape, a layer more."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
        self.head = nn.Linear(3, 5)
        self.norm = nn.LayerNorm(3)


@pytest.fixture
def source(agents, monkeypatch):
    """What a job with an optimizer, a counter and seven steps has saved."""
    agent = agents()
    torch.manual_seed(1)
    model = Old()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.5)
    run = begin(agent, monkeypatch, model=model, optimizer=optimizer, seen=[1, 2])
    for _ in range(6):
        optimizer.zero_grad()
        model.head(model.encoder(torch.randn(8, 4))).sum().backward()
        optimizer.step()
        run.step()
    saved(run)
    agent.wait_idle()
    return agent.snapshots[7], model, optimizer


def start(agent, path, only=(), maps=()):
    agent.start = {
        "path": str(path),
        "label": "old-x1@7",
        "only": list(only),
        "maps": [list(one) for one in maps],
    }


def report(agent):
    agent.wait_idle()
    (told,) = agent.of("started")
    assert told["from"] == "old-x1@7"
    return told


def test_the_same_script_takes_everything_with_its_counters(source, agents, monkeypatch):
    path, old, old_optimizer = source
    agent = agents()
    start(agent, path)
    model, values = Old(), []
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    run = begin(agent, monkeypatch, model=model, optimizer=optimizer, seen=values)
    assert (run.step_count, run.values["seen"]) == (7, [1, 2])
    pairs = zip(model.state_dict().values(), old.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    assert optimizer.param_groups[0]["lr"] == 0.5
    assert len(optimizer.state_dict()["state"]) == len(old_optimizer.state_dict()["state"])
    run.give_up()
    told = report(agent)
    assert (told["skipped"], told["missing"], told["reshaped"]) == ([], [], [])
    assert told["counts"]["loaded"] == len(model.state_dict()) + 2
    (restored,) = agent.of("restored")
    assert (restored["step"], restored["source"]) == (7, "start")


def test_only_the_model_leaves_out_optimizer_and_counters(source, agents, monkeypatch):
    path, old, _ = source
    agent = agents()
    start(agent, path, only=["model"])
    model = Old()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = begin(agent, monkeypatch, model=model, optimizer=optimizer, seen=[])
    assert (run.step_count, run.values["seen"], optimizer.param_groups[0]["lr"]) == (0, [], 0.1)
    assert torch.equal(model.head.weight, old.head.weight)
    run.give_up()
    told = report(agent)
    assert (told["skipped"], told["missing"], told["reshaped"]) == ([], [], [])


def test_every_tensor_that_is_not_loaded_is_listed(source, agents, monkeypatch, capfd):
    path, old, _ = source
    agent = agents()
    start(agent, path, maps=[("encoder.*", "backbone.*")])
    model = New()
    head, norm = model.head.weight.clone(), model.norm.weight.clone()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    run = begin(agent, monkeypatch, model=model, optimizer=optimizer)
    assert torch.equal(model.backbone[0].weight, old.encoder[0].weight)
    assert torch.equal(model.backbone[1].running_mean, old.encoder[1].running_mean)
    assert torch.equal(model.head.weight, head)
    assert torch.equal(model.norm.weight, norm)
    run.give_up()
    told = report(agent)
    assert told["reshaped"] == [
        "model.head.weight ([10, 3] there, [5, 3] here)",
        "model.head.bias ([10] there, [5] here)",
    ]
    assert told["missing"] == ["model.norm.weight", "model.norm.bias"]
    assert told["skipped"] == [
        "seen (not given to orch.training)",
        "model.extra",
        "optimizer (not all of the model was loaded under its own names)",
    ]
    assert told["counts"]["loaded"] == len(old.encoder.state_dict())
    log = capfd.readouterr().err
    for name in (*told["reshaped"], *told["missing"], *told["skipped"]):
        assert name in log
    assert optimizer.state_dict()["state"] == {}


def test_what_fits_nowhere_ends_the_job_instead_of_training_from_nothing(source, agents, monkeypatch):
    path, _, _ = source
    agent = agents()
    start(agent, path, only=["model"])
    with pytest.raises(MismatchError, match="nothing of it has a name and a shape of this script's"):
        begin(agent, monkeypatch, model=nn.Bilinear(9, 9, 9))
    agent.wait_idle()
    assert len(agent.of("mismatch")) == 1


def test_an_argument_that_is_not_there_is_named_with_those_that_are(source, agents, monkeypatch):
    path, _, _ = source
    agent = agents()
    start(agent, path, only=["net"])
    with pytest.raises(MismatchError, match="--only net: it has model, optimizer, seen"):
        begin(agent, monkeypatch, model=Old())


def test_weights_of_another_precision_are_cast(source, agents, monkeypatch):
    path, old, _ = source
    agent = agents()
    start(agent, path, only=["model"])
    model = Old().double()
    run = begin(agent, monkeypatch, model=model)
    assert torch.equal(model.head.weight, old.head.weight.double())
    run.give_up()


@pytest.mark.parametrize(
    ("name", "old", "new", "found"),
    [
        ("encoder.0.weight", "encoder.*", "backbone.*", "backbone.0.weight"),
        ("encoder.0.weight", "model.encoder.*", "model.backbone.*", "backbone.0.weight"),
        ("encoder.0.weight", "*.weight", "*.w", "encoder.0.w"),
        ("encoder.0.weight", "encoder.0.weight", "first", "first"),
        ("encoder.0.weight", "coder.*", "x.*", "encoder.0.weight"),
        ("a", "a.*a", "b", "a"),
        ("module.fc.bias", "module.*", "*", "fc.bias"),
    ],
)
def test_names_are_mapped_by_the_first_pattern_that_fits(name, old, new, found):
    assert mapped("model", name, [(old, new), ("*", "never.*")]) == (
        found if found != name else "never." + name
    )
