"""Files that belong together: folders of Hugging Face's Trainer, models in several files, Lightning's checkpoints."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from orch_workers.files.sets import examine_set


@pytest.fixture
def trainer(tmp_path):
    """What transformers.Trainer leaves below its output folder, the newest last."""
    for step in (500, 1000):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        save_file({"w": torch.arange(4.0)}, folder / "model.safetensors")
        torch.save({"state": {}, "param_groups": [{"lr": 0.1}]}, folder / "optimizer.pt")
        torch.save({"last_epoch": 3}, folder / "scheduler.pt")
        torch.save([1, 2], folder / "rng_state.pth")
        torch.save({"seed": 1}, folder / "training_args.bin")
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step, "epoch": step / 500}))
    return tmp_path


def look(folder):
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    newest_first = sorted(paths, key=lambda name: paths[name].stat().st_mtime_ns, reverse=True)
    return examine_set(paths, newest_first)


def test_a_trainer_s_folders(trainer):
    found = look(trainer)
    assert (found.problem, found.step, found.epoch, found.unknown) == ("", 1000, 2, [])


def test_a_trainer_s_folder_without_its_last_file(trainer):
    (trainer / "checkpoint-1000/trainer_state.json").unlink()
    assert "its trainer_state.json is missing" in look(trainer).problem


def test_a_folder_of_that_name_by_somebody_else(trainer):
    """accelerate.save_state writes no trainer_state.json."""
    folder = trainer / "checkpoint-1000"
    for name in ("trainer_state.json", "training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (folder / name).unlink()
    torch.save({"w": 1}, folder / "optimizer.bin")
    assert look(trainer).problem == ""


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "trainer_state.json"])
def test_a_trainer_s_file_that_is_cut(trainer, name):
    path = trainer / "checkpoint-1000" / name
    path.write_bytes(path.read_bytes()[:-3])
    assert look(trainer).problem.startswith(f"checkpoint-1000/{name}: ")


def test_a_model_in_several_files(tmp_path):
    for number in (1, 2):
        save_file({f"w{number}": torch.zeros(2)}, tmp_path / f"model-{number:05d}-of-00002.safetensors")
    index = {
        "weight_map": {"w1": "model-00001-of-00002.safetensors", "w2": "model-00002-of-00002.safetensors"}
    }
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert look(tmp_path).problem == ""
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    assert "its part model-00002-of-00002.safetensors is missing" in look(tmp_path).problem


def test_lightning_s_checkpoint(tmp_path):
    state = {
        "epoch": 4,
        "global_step": 1250,
        "pytorch-lightning_version": "2",
        "state_dict": {"w": torch.ones(3)},
    }
    torch.save(state, tmp_path / "last.ckpt")
    found = look(tmp_path)
    assert (found.problem, found.step, found.epoch) == ("", 1250, 4)
    path = tmp_path / "last.ckpt"
    path.write_bytes(path.read_bytes()[:-1])
    assert "no whole zip" in look(tmp_path).problem
