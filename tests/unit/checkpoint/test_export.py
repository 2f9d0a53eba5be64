"""Exports: what other programs load is what was saved."""

from __future__ import annotations

import json
from collections import Counter, OrderedDict, defaultdict, deque

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from orch_workers.checkpoint import CheckpointError, Damaged
from orch_workers.checkpoint.content import Content
from orch_workers.checkpoint.exporting import export, file_stem, tree_size_bytes
from orch_workers.checkpoint.whole import Whole, whole_tensors
from support import saved


class Tied(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inside = torch.nn.Embedding(5, 4)
        self.outside = torch.nn.Linear(4, 5, bias=False)
        self.outside.weight = self.inside.weight
        self.norm = torch.nn.BatchNorm1d(5).to(torch.bfloat16)


def trained():
    torch.manual_seed(1)
    model = Tied()
    optimizer = torch.optim.AdamW(
        [{"params": [model.inside.weight]}, {"params": list(model.norm.parameters())}]
    )
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[2, 4])
    return {"model": model, "optimizer": optimizer, "scheduler": scheduler, "history": [1, 2.5]}


@pytest.fixture
def content(tmp_path):
    def act(state) -> Content:
        catalog = saved.save(tmp_path / "storage", {7: state})
        return Content.open(catalog, saved.point(catalog, 7))

    return act


def same_state(one, other):
    assert list(one) == list(other)
    for name, value in one.items():
        assert torch.equal(value, other[name]), name
        assert value.dtype == other[name].dtype


def test_safetensors_is_a_complete_state_dict_for_each_argument(content, tmp_path):
    state = trained()
    files = export(content(state), "safetensors", tmp_path / "out")
    assert sorted(file.path.name for file in files) == [
        "history.json", "model.safetensors", "optimizer.safetensors", "scheduler.json",
    ]  # fmt: skip
    loaded = load_file(tmp_path / "out" / "model.safetensors")
    fresh = Tied()
    assert fresh.load_state_dict(loaded).missing_keys == []
    same_state(state["model"].state_dict(), fresh.state_dict())
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as opened:
        described = json.loads(opened.metadata()["orch"])
        assert opened.metadata()["format"] == "pt"
    assert (described["step"], described["epoch"], described["metrics"]) == (7, 0, {"loss": 0.125})
    assert described["tied"] == {"outside.weight": "inside.weight"}
    assert json.loads((tmp_path / "out" / "history.json").read_text())["arguments"] == {"history": [1, 2.5]}


def test_one_file_in_all_has_the_arguments_in_its_names(content, tmp_path):
    [file] = export(content(trained()), "safetensors", tmp_path / "all.safetensors")
    names = set(load_file(file.path))
    assert {
        "model.inside.weight",
        "model.outside.weight",
        "optimizer.state.model.inside.weight.exp_avg",
    } <= names
    assert not any(name.startswith("~") for name in names)


def test_one_argument_in_one_file_keeps_its_own_names(content, tmp_path):
    opened = content(trained())
    for to, name in (("safetensors", "m.safetensors"), ("torch", "m.pt")):
        [file] = export(opened, to, tmp_path / name, only=["model"])
        loaded = load_file(file.path) if to == "safetensors" else torch.load(file.path, weights_only=True)
        Tied().load_state_dict(loaded)


def test_torch_files_load_into_the_objects_they_came_from(content, tmp_path):
    state = trained()
    files = export(content(state), "torch", tmp_path / "out")
    assert sorted(file.path.name for file in files) == [
        "history.pt",
        "model.pt",
        "optimizer.pt",
        "scheduler.pt",
    ]

    def load(name):
        return torch.load(tmp_path / "out" / f"{name}.pt", weights_only=True)

    fresh = trained()
    with torch.no_grad():
        for parameter in fresh["model"].parameters():
            parameter.zero_()
    fresh["model"].load_state_dict(load("model"))
    same_state(state["model"].state_dict(), fresh["model"].state_dict())
    assert list(load("optimizer")) == list(state["optimizer"].state_dict())
    groups = [group["params"] for group in load("optimizer")["param_groups"]]
    assert groups == [group["params"] for group in state["optimizer"].state_dict()["param_groups"]]
    fresh["optimizer"].load_state_dict(load("optimizer"))
    for number, entry in state["optimizer"].state_dict()["state"].items():
        same_state(entry, fresh["optimizer"].state_dict()["state"][number])
    fresh["scheduler"].load_state_dict(load("scheduler"))
    assert fresh["scheduler"].state_dict() == state["scheduler"].state_dict()
    assert load("history") == [1, 2.5]


def test_ties_survive_in_torch_files(content, tmp_path):
    [file] = export(content(trained()), "torch", tmp_path / "m.pt", only=["model"])
    loaded = torch.load(file.path, weights_only=True)
    assert loaded["inside.weight"].data_ptr() == loaded["outside.weight"].data_ptr()


def test_what_weights_only_refuses_becomes_its_nearest_kin_and_is_noted(content, tmp_path):
    state = {
        "many": {
            "deque": deque([1, 2], 5),
            "default": defaultdict(int, a=1),
            "frozen": frozenset({3}),
            "range": range(2),
            "slice": slice(1, None),
            "array": np.arange(3.0),
            "scalar": np.float32(1.5),
            "kept": (
                1,
                "two",
                b"3",
                4j,
                {5},
                OrderedDict(six=6),
                Counter("aab"),
                torch.Size([1]),
                torch.float16,
            ),
            "big": 1 << 80,
        }
    }
    [file] = export(content(state), "torch", tmp_path / "out")
    loaded = torch.load(file.path, weights_only=True)
    kept = loaded.pop("kept")
    assert kept == state["many"]["kept"]
    assert [type(item) for item in kept] == [type(item) for item in state["many"]["kept"]]
    assert torch.equal(loaded.pop("array"), torch.arange(3.0, dtype=torch.float64))
    assert loaded == {
        "deque": [1, 2], "default": {"a": 1}, "frozen": {3}, "range": [0, 1], "slice": (1, None, None),
        "scalar": 1.5, "big": 1 << 80,
    }  # fmt: skip
    assert "many.deque: a deque became a list" in file.notes
    assert len(file.notes) == 7


def test_what_torch_cannot_hold_at_all_is_refused_with_its_path(content, tmp_path):
    with pytest.raises(CheckpointError, match=r"dates.when: .*datetime64"):
        export(content({"dates": {"when": np.array(["2026-01-01"], "M8[D]")}}), "torch", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_what_safetensors_lacks_is_bytes_with_its_type_beside(content, tmp_path):
    value = torch.tensor([[1 + 2j]], dtype=torch.complex128)
    [file] = export(content({"c": value}), "safetensors", tmp_path / "out")
    assert file.notes
    with safe_open(file.path, "pt") as opened:
        assert json.loads(opened.metadata()["orch"])["dtypes"] == {"c": {"dtype": "C128", "shape": [1, 1]}}
        assert opened.get_tensor("c").numpy().tobytes() == value.numpy().tobytes()


def test_nothing_is_replaced_unless_asked(content, tmp_path):
    opened = content({"w": np.arange(3.0), "x": 1})
    export(opened, "safetensors", tmp_path / "out")
    (tmp_path / "out" / "w.safetensors").write_bytes(b"mine")
    with pytest.raises(FileExistsError, match=r"w\.safetensors"):
        export(opened, "safetensors", tmp_path / "out")
    assert (tmp_path / "out" / "w.safetensors").read_bytes() == b"mine"
    export(opened, "safetensors", tmp_path / "out", replace=True)
    assert load_file(tmp_path / "out" / "w.safetensors")["w"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("to", ["safetensors", "torch"])
def test_a_damaged_checkpoint_gives_no_file(tmp_path, to):
    catalog = saved.save(tmp_path / "storage", {7: {"w": np.arange(30.0)}})
    saved.flip_tensor(catalog, 7, "w", 9)
    with pytest.raises(Damaged, match="'w'"):
        export(Content.open(catalog, saved.point(catalog, 7)), to, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_an_argument_that_is_not_there_is_refused_with_those_that_are(content, tmp_path):
    with pytest.raises(CheckpointError, match="no other; it holds w, x"):
        export(content({"w": np.arange(3.0), "x": 1}), "torch", tmp_path / "out", only=["other"])


def test_no_argument_leaves_the_folder(content, tmp_path):
    names = ["../../escaped", ".hidden", "a/b", "ok name"]
    assert [file_stem(name) for name in names] == ["%2E.%2F..%2Fescaped", "%2Ehidden", "a%2Fb", "ok name"]
    export(content({name: np.arange(2.0) for name in names}), "safetensors", tmp_path / "deep" / "out")
    assert {path.parent for path in tmp_path.rglob("*.safetensors") if "storage" not in path.parts} == {
        tmp_path / "deep" / "out"
    }


def test_progress_adds_up(content, tmp_path):
    opened = content({"w": np.arange(1000.0), "v": np.arange(7)})
    for to in ("safetensors", "torch"):
        moved: list[int] = []
        export(opened, to, tmp_path / to, moved=moved.append)
        assert sum(moved) == tree_size_bytes(opened) == 8 * 1007


def test_a_divided_tensor_is_put_together(tmp_path):
    """Rank 0 has the left half of the columns, rank 1 the right one."""
    from orch_workers.checkpoint import Catalog, Chain, commit_step, open_storage, write_rank
    from support import snapshots

    catalog = Catalog(open_storage(str(tmp_path)), "digits")
    catalog.begin(Chain.root((1, 1)))
    whole = np.arange(24, dtype=np.float32).reshape(4, 6)
    for rank, columns in enumerate((slice(0, 4), slice(4, 6))):
        piece = np.ascontiguousarray(whole[:, columns])
        tree = {"w": {"~": "tensor", "entry": "w"}}
        slot = snapshots.make(
            tmp_path / "slot", snapshots.State({"w": piece}, tree), step=3, generation=(1, 1)
        )
        header, meta = slot.read()
        meta["entries"][0] |= {"global_shape": [4, 6], "offsets": [0, columns.start]}
        rewrite(tmp_path / "slot", header, meta)
        slot.close()
        slot = type(slot)(str(tmp_path / "slot"))
        write_rank(catalog, slot, rank=rank, world_size=2)
        slot.close()
    commit_step(catalog, (1, 1), 3, world_size=2)
    content = Content.open(catalog, saved.point(catalog, 3))
    [file] = export(content, "safetensors", tmp_path / "out.safetensors")
    assert load_file(file.path)["w"].tolist() == whole.tolist()
    lost = Content(content.catalog, content.point, content.manifest, content.ranks[:1])
    with pytest.raises(CheckpointError, match="cannot be put together"):
        whole_tensors(lost, {"w"})
    assert isinstance(whole_tensors(content, {"w"})["w"], Whole)


def rewrite(path, header, meta):
    from orch_workers.training.slots import Slot

    slot = Slot(str(path), writable=True)
    data = bytes(slot.data()[: header.data_bytes])
    slot.begin(header.generation, header.step)
    slot.data()[: header.data_bytes] = data
    slot.finish(header.generation, header.step, header.data_bytes, meta)
    slot.close()
