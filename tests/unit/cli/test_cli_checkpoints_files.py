"""`orch checkpoints …` on files that a script wrote itself."""

from __future__ import annotations

import json

import pytest

from support.file_versions import G1, JOB, Scene


@pytest.fixture
def url(tmp_path):
    scene = Scene(tmp_path)
    scene.catalog.begin_generation(G1)
    scene.write(**{"model.json": json.dumps({"epoch": 1, "step": 100}).encode(), "vocabulary.txt": b"words"})
    scene.commit(1)
    scene.write(**{"model.json": json.dumps({"epoch": 2, "step": 200}).encode()})
    (scene.work / "last.json").symlink_to("model.json")
    scene.commit(2)
    return str(tmp_path / "storage" / JOB)


def test_list(cli, url):
    newest, older = cli.json("checkpoints", "list", url)["checkpoints"]
    assert (newest["step"], newest["epoch"], newest["metrics"], newest["newest"]) == (
        2,
        2,
        {"step": 200},
        True,
    )
    assert older["size_bytes"] > 0


def test_show(cli, url):
    shown = cli.ok("checkpoints", "show", url)
    for text in (
        "version 2, epoch 2",
        "in 3 files",
        "model.json",
        "json",
        "last.json → model.json",
        "vocabulary.txt",
    ):
        assert text in shown, shown
    one = cli.json("checkpoints", "show", f"{url}@1")["checkpoint"]
    assert one["kind"] == "files"
    assert [(file["path"], file["size_bytes"]) for file in one["files"]][1] == ("vocabulary.txt", 5)


def test_verify_and_diff(cli, url):
    assert "2 files" in cli.ok("checkpoints", "verify", f"{url}@1", "--deep")
    assert cli("checkpoints", "diff", url, url).exit_code == 0
    differs = cli("checkpoints", "diff", f"{url}@1", f"{url}@2")
    assert differs.exit_code == 1
    assert "model.json" in differs.stdout
    assert "last.json" in differs.stdout
    assert "vocabulary.txt" not in differs.stdout


def test_export_copy_and_prune(cli, url, tmp_path):
    cli.ok("checkpoints", "export", f"{url}@2", "--to", "files", "--into", str(tmp_path / "out"))
    assert json.loads((tmp_path / "out/last.json").read_text()) == {"epoch": 2, "step": 200}
    again = cli("checkpoints", "export", f"{url}@2", "--to", "files", "--into", str(tmp_path / "out"))
    assert again.exit_code == 2
    refused = cli("checkpoints", "export", f"{url}@2", "--to", "torch")
    assert refused.exit_code != 0
    assert "--to files" in refused.stderr
    cli.ok("checkpoints", "cp", f"{url}@2", str(tmp_path / "archive"))
    cli.ok("checkpoints", "verify", f"{tmp_path}/archive/{JOB}", "--deep")
    cli.ok("checkpoints", "prune", url, "--keep-last", "1", "--yes")
    assert [one["step"] for one in cli.json("checkpoints", "list", url)["checkpoints"]] == [2]
    cli.ok("checkpoints", "verify", url, "--deep")
    assert len(list((tmp_path / "storage" / JOB / "blobs").iterdir())) == 2
