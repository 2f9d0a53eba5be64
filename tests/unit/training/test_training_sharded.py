"""Modules and optimizers that are divided over two ranks (FSDP2, DTensor): every rank keeps its own pieces, exactly,
and the checkpoint knows where in the whole they lie.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

from orch_workers.gang.rendezvous import fresh_port
from orch_workers.training.slots import Slot

LIMIT_S = 120.0

SCRIPT = textwrap.dedent(
    """
    import json, os, sys
    import torch, torch.distributed as dist
    from torch import nn
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Shard, distribute_tensor
    from orch_workers.training import rng
    from orch_workers.training.objects import make_handler
    from orch_workers.training.pytorch import TorchAdapter
    from orch_workers.training.slots import Slot
    from orch_workers.training.snapshot import Stored, plan, write

    rank, folder = int(os.environ["RANK"]), sys.argv[1]
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    adapter = TorchAdapter(torch)

    def begin(seed):
        torch.manual_seed(seed)
        mesh = init_device_mesh("cpu", (2,))
        model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))
        for part in (model[0], model[2], model):
            fully_shard(part, mesh=mesh)
        table = nn.Parameter(distribute_tensor(torch.randn(5, 2), mesh, [Shard(0)]))
        optimizer = torch.optim.AdamW([*model.parameters(), table], lr=1e-2)
        objects = {"model": model, "optimizer": optimizer, "table": table}
        handlers = [make_handler(name, objects, [adapter], {}) for name in objects]
        return objects, sorted(handlers, key=lambda handler: handler.order)

    def train(objects, steps):
        for step in steps:
            torch.manual_seed(1000 * step + rank)
            objects["optimizer"].zero_grad()
            loss = objects["model"](torch.randn(4, 5)).pow(2).mean() + objects["table"].full_tensor().pow(2).mean()
            loss.backward()
            objects["optimizer"].step()

    def final(objects):
        whole = {name: value.full_tensor() for name, value in objects["model"].state_dict().items()}
        whole["table"] = objects["table"].full_tensor()
        for index, entry in objects["optimizer"].state_dict()["state"].items():
            whole.update({f"{index}.{key}": getattr(v, "full_tensor", lambda v=v: v)() for key, v in entry.items()})
        return {name: value.detach().reshape(-1).tolist() for name, value in whole.items()}

    def keep(handlers):
        snapshot = plan({handler.name: handler.capture() for handler in handlers}, [adapter.codec], {"step": 3})
        path = f"{folder}/slot-{rank}"
        Slot.create(path, snapshot.size_bytes + 4096)
        slot = Slot(path, writable=True)
        write(snapshot, slot, (1, 1), 3)
        slot.close()
        return path

    objects, handlers = begin(1)
    train(objects, range(3))
    path = keep(handlers)
    train(objects, range(3, 6))
    undisturbed = final(objects)

    objects, handlers = begin(2)  # another start: other numbers everywhere
    stored = Stored(path, [adapter.codec])
    for handler in handlers:
        assert handler.problems(stored.borrowed(handler.name)) == [], handler.problems(stored.borrowed(handler.name))
        if not handler.restore_in_place(stored.borrowed(handler.name)):
            handler.restore(stored.part(handler.name))
    stored.close()
    train(objects, range(3, 6))
    assert final(objects) == undisturbed
    dist.destroy_process_group()
    """
)


@pytest.fixture(scope="module")
def slots(tmp_path_factory):
    """Of both ranks, after all that the script itself proves."""
    folder = tmp_path_factory.mktemp("sharded")
    (folder / "train.py").write_text(SCRIPT)
    port = fresh_port()
    ranks = [
        subprocess.Popen(
            [sys.executable, "train.py", str(folder)],
            cwd=folder,
            env={
                **os.environ,
                "RANK": str(rank),
                "WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in (0, 1)
    ]
    outputs = [process.communicate(timeout=LIMIT_S)[0] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], "\n".join(outputs)
    return [Slot(str(folder / f"slot-{rank}")) for rank in (0, 1)]


def test_a_divided_state_goes_on_exactly(slots):
    assert len(slots) == 2


def test_every_piece_knows_its_place_in_the_whole(slots):
    places = [{entry["name"]: entry for entry in slot.read()[1]["entries"]} for slot in slots]
    first, second = (places[rank]["model.0.weight"] for rank in (0, 1))
    assert (first["shape"], first["global_shape"], first["offsets"]) == ([4, 5], [7, 5], [0, 0])
    assert (second["shape"], second["global_shape"], second["offsets"]) == ([3, 5], [7, 5], [4, 0])
    for name, entry in places[0].items():
        if "global_shape" in entry:
            rows = entry["shape"][0] + places[1][name]["shape"][0]
            assert rows == entry["global_shape"][0], name
    assert any("exp_avg" in name and "global_shape" in entry for name, entry in places[0].items())
