"""Export to TensorFlow: a folder that `tf.train.latest_checkpoint` and `tf.train.Checkpoint.restore` understand."""

# ruff: noqa: SLF001 - objects get their names by a method of TensorFlow that begins with an underscore

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from orch_workers.checkpoint.errors import CheckpointError
from orch_workers.checkpoint.exporting import Exported
from orch_workers.checkpoint.trees import entries
from orch_workers.checkpoint.whole import whole_tensors
from orch_workers.training.snapshot import Adapters
from orch_workers.training.tree import Decoder

if TYPE_CHECKING:
    from orch_workers.checkpoint.content import Content, Moved

VARIABLE = "VARIABLE_VALUE"
NAME = "ckpt"


def write_tensorflow(
    content: Content, trees: dict[str, Any], folder: Path, *, moved: Moved | None
) -> Exported:
    """`tf.train.Checkpoint(model=…, optimizer=…)`, arguments and objects under the names that they were saved with, and
    the state file `checkpoint`. Of an argument that is no TensorFlow object, each array is a variable under its path.
    """
    try:
        import tensorflow as tf
    except ImportError as error:
        raise CheckpointError(
            "an export to tensorflow needs TensorFlow here, which is not installed: `pip install tensorflow`"
        ) from error
    notes: list[str] = []
    roots = {}
    for name, tree in trees.items():
        value = _decoded(content, tree, moved)
        is_graph = isinstance(value, dict) and set(value) == {"nodes", "values"}
        found = _graph(tf, value, name, notes) if is_graph else _nested(tf, value, name, notes)
        if found is not None:
            roots[name] = found
    if not roots:
        raise CheckpointError("the checkpoint has no tensors that a tf.train.Checkpoint could hold")
    path = tf.train.Checkpoint(**roots).save(str(folder / NAME))
    size_bytes = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    tensors = sum(1 for tree in trees.values() for _ in entries(tree))
    return Exported(Path(path), tuple(trees), tensors, size_bytes, tuple(notes))


def _decoded(content: Content, tree: Any, moved: Moved | None) -> Any:
    wholes = whole_tensors(content, {entry for _, entry in entries(tree)})
    held = {}
    for entry, whole in wholes.items():
        data = whole.read(content)
        held[entry] = (memoryview(data), whole.dtype, tuple(whole.shape))
        if moved is not None:
            moved(len(data))
    try:
        return Decoder(held.__getitem__, Adapters().codecs()).decode(tree)
    except ValueError as error:
        raise CheckpointError(f"{error}; what PyTorch has saved is exported with `--to torch`") from error


def _graph(tf: Any, value: Any, name: str, notes: list[str]) -> Any:
    """The objects of a TensorFlow argument with the edges between them."""
    made = []
    for node in value["nodes"]:
        if VARIABLE in node["values"]:
            made.append(tf.Variable(value["values"][node["values"][VARIABLE]]))
            continue
        if node["values"]:
            notes.append(f"{name}.{node['path']}: state that only its own object reads is left out")
        made.append(tf.__internal__.tracking.AutoTrackable())
    for parent, node in zip(made, value["nodes"], strict=True):
        for edge, child in node["children"].items():
            if edge.startswith("slot."):
                notes.append(f"{name}.{node['path']}: slots of a v1 optimizer are left out")
            else:
                parent._track_trackable(made[child], name=edge, overwrite=True)
    return made[0]


def _nested(tf: Any, value: Any, name: str, notes: list[str]) -> Any:
    """Arrays by their paths; values that are no arrays stay in the checkpoint, and are noted."""
    if isinstance(value, np.ndarray):
        return tf.Variable(value)
    if not isinstance(value, dict | list | tuple):
        notes.append(f"{name}: a {type(value).__name__} is no variable, and is left out")
        return None
    items = value.items() if isinstance(value, dict) else enumerate(value)
    parent, found = tf.__internal__.tracking.AutoTrackable(), False
    for key, item in items:
        child = _nested(tf, item, f"{name}.{key}", notes)
        if child is not None:
            parent._track_trackable(child, name=str(key), overwrite=True)
            found = True
    return parent if found else None
