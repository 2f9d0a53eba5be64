"""Several files that belong together: is the set whole, and which step is it of?

TensorFlow writes data, index and a state file; Hugging Face's Trainer a folder whose last file is
`trainer_state.json`. What of a set is not whole makes the set not whole.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from orch_workers.files.formats import Examined, bundles, examine, numbers_in_name

STATE_FILE = "checkpoint"
STATE_BYTES_MAX = 1 << 20
TRAINER_STATE = "trainer_state.json"
_TRAINER_FOLDER = re.compile(r"(?:.*/)?checkpoint-(\d+)")
_OF_A_TRAINER = re.compile(r"training_args\.bin|optimizer\.pt|scheduler\.pt|rng_state.*\.pth")
_TEMPORARY = re.compile(r"\.tempstate\d+")


class SetExamined(NamedTuple):
    """`problem`: why the set is not whole, with the file's name; "" when it is, as far as can be told.

    `unknown`: files whose content says nothing about whether they are whole.
    """

    files: dict[str, Examined]
    problem: str
    step: int | None
    epoch: int | None

    @property
    def unknown(self) -> list[str]:
        return [name for name, found in self.files.items() if not found.is_known]


def examine_set(paths: Mapping[str, Path], newest_first: list[str]) -> SetExamined:
    """`paths`: where each file of the set can be read, by the name that the script knows; none of them changes now.

    `newest_first`: the names in the order in which they were changed: the newest that tells its step tells the set's.
    """
    found = {name: examine(path, name) for name, path in paths.items()}
    problem = next((f"{name}: {one.problem}" for name, one in sorted(found.items()) if one.problem), "")
    for look in (_bundles, _trainers):
        problem = problem or look(paths, found)
    step, epoch = (
        next((value for name in newest_first if (value := pick(found[name])) is not None), None)
        for pick in (_step, _epoch)
    )
    return SetExamined(found, problem, step, epoch)


def _step(found: Examined) -> int | None:
    return found.step


def _epoch(found: Examined) -> int | None:
    return found.epoch


_Look = Callable[[Mapping[str, Path], dict[str, Examined]], str]


def _bundles(paths: Mapping[str, Path], found: dict[str, Examined]) -> str:
    """TensorFlow's files; those that belong to an index are known by it."""
    known = set[str]()
    for name in sorted(paths):
        if _TEMPORARY.search(name):
            return f"{name}: TensorFlow is writing it"
        if found[name].kind != "tensorflow":
            continue
        prefix = name.removesuffix(".index")
        with paths[name].open("rb") as stream:
            index = bundles.read_index(stream)
        for shard in range(index.shards):
            data = bundles.data_name(prefix, shard, index.shards)
            needed = index.sizes.get(shard, 0)
            if data not in paths or paths[data].stat().st_size < needed:
                return f"{name}: its data {posixpath.basename(data)} is missing or cut short"
            known.add(data)
        known.update(other for other in (f"{prefix}.meta",) if other in paths)
    for name in known:
        step, epoch = numbers_in_name(name)
        found[name] = Examined("tensorflow", "", step, epoch)
    for name in sorted(paths):
        if bundles.prefix_of_data(name) is not None and name not in known:
            return f"{name}: its index is missing"
        if posixpath.basename(name) == STATE_FILE and (problem := _state(name, paths, found)):
            return f"{name}: {problem}"
    return ""


def _state(name: str, paths: Mapping[str, Path], found: dict[str, Examined]) -> str:
    data = paths[name].read_bytes()[:STATE_BYTES_MAX]
    latest = bundles.latest_of(data)
    folder = posixpath.dirname(name)
    has_bundle = any(
        bundles.prefix_of_data(other) is not None and posixpath.dirname(other) == folder for other in paths
    )
    if latest is None:
        return "it names no checkpoint" if has_bundle or not data.strip() else ""
    wanted = posixpath.join(folder, posixpath.basename(latest))
    step, epoch = numbers_in_name(posixpath.basename(latest))
    found[name] = Examined("tensorflow", "", step, epoch)
    if has_bundle and f"{wanted}.index" not in paths and not any(n.startswith(f"{wanted}.") for n in paths):
        return f"the checkpoint {posixpath.basename(latest)} that it names is missing"
    return ""


def _trainers(paths: Mapping[str, Path], found: dict[str, Examined]) -> str:
    """Folders of Hugging Face's Trainer, and models in several files."""
    folders: dict[str, set[str]] = {}
    for name in paths:
        folders.setdefault(posixpath.dirname(name), set()).add(posixpath.basename(name))
    for folder, names in sorted(folders.items()):
        is_trainer = _TRAINER_FOLDER.fullmatch(folder) and any(_OF_A_TRAINER.fullmatch(n) for n in names)
        if is_trainer and TRAINER_STATE not in names:
            return f"{folder}: its {TRAINER_STATE} is missing"
        for index in sorted(
            name for name in names if name.endswith((".safetensors.index.json", ".bin.index.json"))
        ):
            full = posixpath.join(folder, index)
            if found[full].problem:
                continue
            try:
                parts = set(json.loads(paths[full].read_bytes())["weight_map"].values())
            except (ValueError, TypeError, KeyError, AttributeError):
                continue
            if missing := parts - names:
                return f"{full}: its part {min(missing)} is missing"
    return ""
