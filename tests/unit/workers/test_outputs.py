from __future__ import annotations

import os

import pytest

from orch_workers.shipping import outputs


@pytest.fixture
def workdir(tmp_path):
    root = tmp_path / "work"
    names = "model.ckpt old/model.ckpt plots/a.png plots/b/c.png x.csv runs/1/m.json .h/y"
    for name in names.split():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return root


@pytest.mark.parametrize(
    ("patterns", "found"),
    [
        (["model.ckpt"], ["model.ckpt"]),
        (["plots"], ["plots/a.png", "plots/b/c.png"]),
        (["plots/"], ["plots/a.png", "plots/b/c.png"]),
        (["plots/**"], ["plots/a.png", "plots/b/c.png"]),
        (["plots/*.png"], ["plots/a.png"]),
        (["**/model.ckpt"], ["model.ckpt", "old/model.ckpt"]),
        (["runs/**/m.json", "*.csv"], ["runs/1/m.json", "x.csv"]),
        ([".h/y"], [".h/y"]),
        (["./x.csv"], ["x.csv"]),
        (["nothing"], []),
        (["!x.csv"], []),
        ([], []),
    ],
)
def test_patterns_count_from_the_top(workdir, patterns, found):
    assert outputs.collect(workdir, patterns) == found


@pytest.mark.parametrize("pattern", ["../x", "/etc/passwd", "a/../../b", "", ".", "a\0b"])
def test_a_pattern_that_leaves_the_folder_is_refused(workdir, pattern):
    with pytest.raises(outputs.OutputsError, match="inside the working folder"):
        outputs.collect(workdir, [pattern])


def test_links_are_followed_only_to_files_inside(workdir, tmp_path):
    (tmp_path / "secret").write_text("s")
    (workdir / "out").symlink_to(tmp_path / "secret")
    (workdir / "in").symlink_to("model.ckpt")
    (workdir / "dangling").symlink_to("nowhere")
    (workdir / "loop").symlink_to("loop")
    (workdir / "folder").symlink_to("plots")
    (workdir / "outside").symlink_to(tmp_path)
    os.mkfifo(workdir / "pipe")
    skipped = {}
    names = ["out", "in", "dangling", "loop", "folder", "outside", "pipe"]
    assert outputs.collect(workdir, names, skipped.__setitem__) == ["in"]
    assert set(skipped) == {"out", "dangling", "loop", "folder", "outside", "pipe"}
    assert "leaves the working folder" in skipped["out"]
    assert skipped["folder"] == "a link to a folder"


def test_a_folder_reached_through_a_link_is_fine(workdir, tmp_path):
    (tmp_path / "alias").symlink_to(workdir)
    assert outputs.collect(tmp_path / "alias", ["*.csv"]) == ["x.csv"]


def test_a_missing_folder_has_no_outputs(tmp_path):
    assert outputs.collect(tmp_path / "none", ["*"]) == []


def test_the_number_of_files_looked_at_is_limited(workdir, monkeypatch):
    monkeypatch.setattr(outputs, "FILES_MAX", 3)
    with pytest.raises(outputs.OutputsError, match="more than 3 files"):
        outputs.collect(workdir, ["*"])
