"""`outputs` and `orch fetch`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support.jobs import write_job
from support.seaweed import SeaweedFS
from support.server import Server

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("own_jobs")]

RUN = (
    "mkdir -p plots/deep; echo model > model.ckpt; echo a > plots/a.png; echo b > plots/deep/b.png;"
    " printf '#!/bin/sh' > run.sh; chmod +x run.sh; echo no > other.txt; ln -s /etc/passwd plots/leak;"
    " : > plots/empty"
)
OUTPUTS = ["model.ckpt", "plots/**", "run.sh", "missing.txt"]
EXPECTED = {"model.ckpt", "plots/a.png", "plots/deep/b.png", "plots/empty", "run.sh"}


def _files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_fetch(server: Server, tmp_path: Path) -> None:
    job = server.submit(write_job(tmp_path / "work", RUN, outputs=OUTPUTS))
    server.wait(job)
    here = tmp_path / "here"
    here.mkdir()
    shown = server.cli("fetch", job, cwd=here).stdout.splitlines()
    assert _files(here / job) == EXPECTED, "what leads out of the workdir stays there"
    assert {line.removeprefix(f"{job}/") for line in shown} == EXPECTED
    assert (here / job / "model.ckpt").read_text() == "model\n"
    there = tmp_path / "there"
    there.mkdir()
    (there / "model.ckpt").write_text("an older one")
    document = json.loads(server.cli("fetch", job, "--to", str(there), "-o", "json").stdout)
    assert {file["path"] for file in document["files"]} == EXPECTED
    assert (document["job"], document["folder"]) == (job, str(there))
    assert (there / "model.ckpt").read_text() == "model\n"
    assert _files(there) == EXPECTED


def test_outputs_of_a_failed_job(server: Server, tmp_path: Path) -> None:
    folder = write_job(
        tmp_path / "work", "echo part > out.txt; exit 3", outputs=["out.txt"], restart={"max_failures": 0}
    )
    job = server.submit(folder)
    server.wait(job, check=1)
    server.cli("fetch", job, "--to", str(tmp_path / "to"))
    assert (tmp_path / "to" / "out.txt").read_text() == "part\n"


def test_nothing_to_fetch(server: Server, tmp_path: Path) -> None:
    without = server.submit(write_job(tmp_path / "a", "true"))
    unmatched = server.submit(write_job(tmp_path / "b", "true", outputs=["*.ckpt"]))
    for job, why in ((without, "names no `outputs`"), (unmatched, "*.ckpt")):
        server.wait(job)
        done = server.cli("fetch", job, "--to", str(tmp_path / "to"), check=2)
        assert why in done.stderr
        assert not (tmp_path / "to").exists()


def test_to_a_file(server: Server, tmp_path: Path) -> None:
    job = server.submit(write_job(tmp_path / "work", "echo x > x", outputs=["x"]))
    server.wait(job)
    (tmp_path / "to").write_text("a file")
    done = server.cli("fetch", job, "--to", str(tmp_path / "to"), check=2)
    assert "Traceback" not in done.stderr
    assert (tmp_path / "to").read_text() == "a file"


def test_by_way_of_s3(server: Server, seaweed: SeaweedFS, tmp_path: Path) -> None:
    """Credentials as secrets, everything of the job in the bucket."""
    storage = {"url": seaweed.url("fetch"), "options": seaweed.options}
    keys = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]
    folder = write_job(
        tmp_path / "work", "cat data.txt > out.txt", {"data.txt": "through the bucket\n"},
        outputs=["out.txt"], secrets=keys, checkpoint={"storage": storage},
    )  # fmt: skip
    submitter = Server(server.home, seaweed.env)
    job = submitter.submit(folder)
    server.wait(job)
    server.cli("fetch", job, "--to", str(tmp_path / "to"))
    assert (tmp_path / "to" / "out.txt").read_text() == "through the bucket\n"
    assert not (server.home / "storage" / job).exists()
