"""Formats of files that scripts write: cut at every byte none is taken for whole, and nothing in them is ever run."""

from __future__ import annotations

import collections
import io
import json
import os
import pickle
import struct

import numpy as np
import pytest
import torch
from safetensors.torch import save as save_safetensors

from orch_workers.files.formats import examine, numbers_in_name, pickles
from support.cuts import Recorded, examined


def model_state():
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return {"epoch": 7, "state_dict": model.state_dict(), "optimizer": optimizer.state_dict(), "loss": 0.5}


def torch_zip() -> bytes:
    buffer = io.BytesIO()
    torch.save(model_state(), buffer)
    return buffer.getvalue()


def torch_old() -> bytes:
    buffer = io.BytesIO()
    torch.save(model_state(), buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, a=np.arange(10), b=np.ones((2, 3)))
    return buffer.getvalue()


def npy() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.arange(12.0).reshape(3, 4))
    return buffer.getvalue()


def several_pickles() -> bytes:
    return b"".join(pickle.dumps(one) for one in ({"step": 3, "x": np.arange(9)}, [1, 2], "end"))


FORMATS = {
    "checkpoint.pth.tar": (torch_zip, "torch"),
    "model.pt": (torch_zip, "torch"),
    "last.ckpt": (torch_zip, "torch"),
    "old.pth": (torch_old, "pickle"),
    "state.pkl": (lambda: pickle.dumps({"step": 12, "w": np.arange(40.0)}), "pickle"),
    "protocol-0.pkl": (lambda: pickle.dumps({"step": 12, "name": "x"}, protocol=0), "pickle"),
    "arrays.npz": (npz, "npz"),
    "array.npy": (npy, "npy"),
    "model.safetensors": (lambda: save_safetensors({"w": torch.arange(20.0)}), "safetensors"),
    "state.json": (lambda: json.dumps({"epoch": 4, "rows": list(range(20))}).encode(), "json"),
}


@pytest.mark.parametrize("name", FORMATS)
def test_cut_at_any_byte_a_file_is_not_whole(name, tmp_path):
    make, kind = FORMATS[name]
    content = make()
    whole = examined(tmp_path, name, content)
    assert (whole.kind, whole.problem) == (kind, "")
    taken = [at for at in range(len(content)) if not examined(tmp_path, name, content[:at]).problem]
    # A name that says nothing: before its first bytes are there, neither does the content.
    assert taken in (([0], [0, 1]) if name == "last.ckpt" else ([],))


def test_of_several_pickles_each_end_is_an_end(tmp_path):
    """Nobody but the script knows how many were to come; after a kill such a file counts only with the others."""
    content = several_pickles()
    taken = [
        at for at in range(1, len(content)) if not examined(tmp_path, "several.pkl", content[:at]).problem
    ]
    assert len(taken) == 2


@pytest.mark.parametrize("new", [True, False])
def test_a_writer_that_is_killed_in_the_middle_of_torch_save(new, tmp_path):
    file = Recorded()
    torch.save(model_state(), file, _use_new_zipfile_serialization=new)
    states = list(file.states(cuts=4))
    assert states[-1] == file.getvalue()
    good = [state for state in states if not examined(tmp_path, "model.pt", state).problem]
    assert good == [file.getvalue()]


def test_overwritten_in_part_and_not_cut(tmp_path):
    """A script that writes over its old file without emptying it first: the directory at its end is the old one."""
    old = torch_zip()
    new = bytearray(old)
    new[: len(old) // 2] = os.urandom(len(old) // 2)
    assert examined(tmp_path, "model.pt", bytes(new)).problem


def test_the_step_is_read_from_the_file_or_else_from_its_name(tmp_path):
    assert examined(tmp_path, "model.pt", torch_zip())[2:] == (None, 7)
    assert examined(tmp_path, "old.pth", torch_old())[2:] == (None, 7)
    assert examined(tmp_path, "x.pkl", pickle.dumps({"global_step": 40, "epoch": 2}))[2:] == (40, 2)
    ordered = collections.OrderedDict(iteration=5)
    assert examined(tmp_path, "x.pkl", pickle.dumps(ordered)).step == 5
    assert examined(tmp_path, "step-12.pkl", pickle.dumps([1])).step == 12
    names = {
        "ckpt-1200.index": (1200, None),
        "model.ckpt-1400.data-00000-of-00001": (1400, None),
        "checkpoint-500/model.safetensors": (500, None),
        "epoch=3-step=400.ckpt": (400, 3),
        "weights.epoch_012.h5": (None, 12),
        "model.pt": (None, None),
    }
    assert {name: numbers_in_name(name) for name in names} == names


class Evil:
    """A pickle that runs code when it is loaded."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_nothing_of_a_pickle_is_run(tmp_path):
    mark = tmp_path / "run"
    content = pickle.dumps({"step": 3, "evil": Evil(f"touch {mark}")})
    found = examined(tmp_path, "x.pkl", content)
    assert (found.problem, found.step) == ("", 3)
    buffer = io.BytesIO()
    torch.save({"epoch": 2, "evil": Evil(f"touch {mark}")}, buffer)
    assert examined(tmp_path, "x.pt", buffer.getvalue()).epoch == 2
    assert not mark.exists()


def test_a_pickle_of_very_many_values_is_known_by_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(pickles, "OPERATIONS_MAX", 100)
    content = pickle.dumps(list(range(1000)))
    assert examined(tmp_path, "x.pkl", content).problem == ""
    assert "its end is missing" in examined(tmp_path, "x.pkl", content[:-1]).problem


def test_what_is_not_known_is_not_called_damaged(tmp_path):
    for name in ("weights.bin", "notes.txt", "archive.pkl"):
        content = b"\x1f\x8b rest" if name == "archive.pkl" else b"anything"
        found = examined(tmp_path, name, content)
        assert (found.is_known, found.problem) == (False, "")


def test_garbage_is_never_an_error(tmp_path, rng):
    beginnings = [
        b"PK\x03\x04",
        b"\x80\x04",
        b"\x89HDF\r\n\x1a\n",
        b"\x93NUMPY\x01\x00",
        b"",
        b"{",
        struct.pack("<Q", 40),
    ]
    names = ["a.pt", "a.h5", "a.safetensors", "a.npy", "a.npz", "a.keras", "a.index", "a.pkl", "a.json", "a"]
    path = tmp_path / "garbage"
    for _ in range(300):
        path.write_bytes(rng.choice(beginnings) + rng.randbytes(rng.randrange(200)))
        examine(path, rng.choice(names))


def test_a_file_with_one_byte_changed_is_never_an_error(tmp_path, rng):
    path = tmp_path / "changed"
    for name, (make, _) in FORMATS.items():
        content = make()
        for _ in range(40):
            changed = bytearray(content)
            changed[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
            path.write_bytes(changed)
            examine(path, name)
