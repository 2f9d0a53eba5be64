"""`orch evaluate`: which checkpoints are meant, and what is shown of what came out."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from orch.cli.checkpoints_place import Place
from orch.cli.evaluate import BAR_CELLS, _chosen, _sentences, bar_of, svg
from orch.model.errors import WrongUse
from orch_workers.checkpoint import Catalog, Checkpointer, open_storage


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """Steps 1 to 4, the third damaged, with a loss that is least at the second."""
    with Checkpointer(str(tmp_path / "job-1"), keep=9) as checkpoints:
        for step, loss in ((1, 0.9), (2, 0.1), (3, 0.05), (4, 0.4)):
            checkpoints.save(step, {"weights": np.zeros(2)}, metrics={"loss": loss})
    catalog = Catalog(open_storage(str(tmp_path), {}, {}), "job-1")
    catalog.quarantine(next(one for one in catalog.committed() if one.step == 3), "a flipped byte")
    return Place(catalog)


@pytest.mark.parametrize(
    ("steps", "metric", "mode", "found"),
    [
        ("all", None, "min", [1, 2, 4]),
        ("4, 1,4", None, "min", [4, 1]),
        ("best:2", "loss", "min", [2, 4]),
        ("best:1", "loss", "max", [1]),
    ],
)
def test_what_is_damaged_is_not_evaluated(place, steps, metric, mode, found):
    assert [one.step for one in _chosen(place, steps, metric, mode)] == found


@pytest.mark.parametrize(
    ("steps", "metric", "why"),
    [
        ("3", None, "no restorable step '3'; it has 1, 2, 4"),
        ("best:x", "loss", "names no number"),
        ("best:2", None, "name it with --metric"),
        ("best:2", "accuracy", "no checkpoint has it"),
    ],
)
def test_what_there_is_not_is_refused(place, steps, metric, why):
    with pytest.raises(WrongUse, match=why):
        _chosen(place, steps, metric, "min")


def test_the_picture_has_a_dot_for_each_step_and_marks_the_best():
    picture = ET.fromstring(svg({10: 0.5, 20: 0.25, 40: 1.0}, "a<b", 20))
    dots = [one for one in picture.iter() if one.tag.endswith("circle")]
    assert [float(one.get("r")) for one in dots] == [3, 5, 3]
    assert [round(float(one.get("cx"))) for one in dots] == [50, 230, 590], "steps keep their distances"
    assert ET.fromstring(svg({10: 0.5}, "loss", 10)) is not None


def test_bars_go_from_one_cell_to_all():
    values = {1: 0.0, 2: 5.0, 3: 10.0}
    assert [len(bar_of(value, values)) for value in values.values()] == [1, 12 + 1, BAR_CELLS]
    assert len(bar_of(7.0, {1: 7.0})) == BAR_CELLS


def test_the_best_is_named_with_what_to_do_with_it():
    said = _sentences("j-1", ["loss"], "loss", {5: 0.25}, 5, None)
    assert said == ["orch: best is step 5 with loss 0.25: `orch checkpoints export j-1@5`"]
    assert "--metric says which" in _sentences("j-1", ["a", "b"], None, {}, None, None)[0]
    assert "run.step(NAME=…)" in _sentences("j-1", [], None, {}, None, None)[0]
