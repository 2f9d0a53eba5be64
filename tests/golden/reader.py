"""Reads a checkpoint with nothing but JSON and the safetensors library, as docs/checkpoint-format.md says.

`python reader.py FOLDER` prints what it found in the job's folder as JSON. It imports nothing of orch: it stands for
a reader in another language. Never changed for a format version that exists; what it reads, everybody's reader reads.
"""

import json
import sys
from pathlib import Path

import safetensors


def document(path):
    return json.loads(path.read_text(encoding="utf-8"))


def newest_restore_point(job):
    """(generation, step): steps 1 to 4 of "Which one to restore"."""
    generations = sorted(
        (path.stem for path in (job / "generations").glob("*.json")),
        key=lambda name: tuple(map(int, name.split("."))),
    )
    newest = document(job / "generations" / f"{generations[-1]}.json")
    assert newest["version"] == 1
    until = {one["generation"]: one["until_step"] for one in newest["ancestors"]}
    points = []
    for path in (job / "manifests").glob("*/*.json"):
        generation, step = path.parent.name, int(path.stem)
        on_chain = generation == newest["generation"] or step <= until.get(generation, -1)
        if on_chain and not (job / "quarantine" / generation / path.name).exists():
            points.append((step, tuple(map(int, generation.split("."))), generation))
    step, _, generation = max(points)
    return generation, step


def read(job):
    generation, step = newest_restore_point(job)
    manifest = document(job / "manifests" / generation / f"{step:012d}.json")
    assert (manifest["format"], manifest["version"]) == ("orch-checkpoint", 1)
    found = {"generation": generation, "step": step, "epoch": manifest["epoch"], "ranks": []}
    for record in manifest["ranks"]:
        rank = document(job / record["path"])
        assert (rank["format"], rank["rank"]) == ("orch-rank", record["rank"])
        assert rank["version"] in (1, 2)
        shards = [
            {
                name: entry
                for name, entry in safetensors.deserialize((job / shard["path"]).read_bytes())
                if not name.startswith("~pad/")
            }
            for shard in rank["shards"]
        ]
        tensors = {}
        for tensor in rank["tensors"]:
            stored = shards[tensor["shard"]][tensor["name"]]
            if (
                stored["dtype"] == tensor["dtype"]
            ):  # else it is a flat U8, and the manifest has the dtype and shape
                assert list(stored["shape"]) == tensor["shape"]
            tensors[tensor["name"]] = {
                "dtype": tensor["dtype"], "shape": tensor["shape"], "hex": bytes(stored["data"]).hex(),
            }  # fmt: skip
        found["ranks"].append(
            {"tensors": tensors, "tree": rank["meta"]["tree"], "shared": rank.get("shared", [])}
        )
    for rank in found["ranks"]:  # version 2: what another rank has written for this one
        for shared in rank.pop("shared"):
            rank["tensors"][shared["name"]] = found["ranks"][shared["rank"]]["tensors"][shared["name"]]
    return found


if __name__ == "__main__":
    result = read(Path(sys.argv[1]))
    assert not [name for name in sys.modules if name.startswith("orch")]
    json.dump(result, sys.stdout)
