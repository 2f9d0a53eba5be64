"""docs/operations.md is true: every block says whether it can be run here, and those that can are run, in one shell."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from support.server import Server

pytestmark = pytest.mark.integration

PAGE = Path(__file__).parents[2] / "docs" / "operations.md"
LIMIT_S = 480
SHORTEST_REASON = 10


class Block(NamedTuple):
    line: int
    language: str
    tag: str
    text: str


def blocks() -> list[Block]:
    found, opened = [], None
    for number, line in enumerate(PAGE.read_text().splitlines(), start=1):
        if not line.startswith("```"):
            continue
        if opened is None:
            opened = (number, *line.removeprefix("```").partition(" ")[::2])
        else:
            text = "\n".join(PAGE.read_text().splitlines()[opened[0] : number - 1])
            found.append(Block(*opened, text))
            opened = None
    assert opened is None, "the last block is not closed"
    return found


def test_every_block_says_whether_it_is_run() -> None:
    assert len(blocks()) > 10
    for block in blocks():
        reason = re.fullmatch(r"not-run: (.+)", block.tag)
        assert block.tag == "run" or (reason and len(reason[1]) >= SHORTEST_REASON), (
            f"line {block.line}: {block.tag!r}"
        )
        assert block.language == "sh", f"line {block.line}"


def test_the_blocks_that_are_not_run_are_a_shell_s() -> None:
    for block in blocks():
        done = subprocess.run(
            ["bash", "-n"], input=block.text, text=True, capture_output=True, check=False, timeout=30
        )
        assert done.returncode == 0, f"line {block.line}: {done.stderr}"


@pytest.fixture
def server() -> Iterator[Server]:
    """Nothing runs yet; the page starts it."""
    folder = Path(tempfile.mkdtemp(prefix="orch-"))
    (folder / "bin").mkdir()
    program = folder / "bin" / "orch"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m orch.cli.main "$@"\n')
    program.chmod(0o755)
    server = Server(folder / "h")
    server.home.mkdir(mode=0o700)
    server.env["PATH"] = f"{program.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    yield server
    for home in folder.glob("h*"):
        Server(home).put_away()
    shutil.rmtree(folder)


@pytest.mark.timeout(LIMIT_S + 60)
def test_the_page_does_what_it_says(server: Server) -> None:
    folder = server.home.parent
    config = "machines: [{count: 2, cpus: 64, memory: 1GiB}]\ncpus: 2\n"
    (server.home / "config.yaml").write_text(config)
    script = ["set -eu -o pipefail"]
    for block in blocks():
        if block.tag == "run":
            script += [f"echo '--- line {block.line}'", block.text]
    script += ["echo '--- all'"]
    done = subprocess.run(
        ["bash", "-c", "\n".join(script)], env=server.env, cwd=folder, text=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, timeout=LIMIT_S,
    )  # fmt: skip
    log = (folder / "server.log").read_text() if (folder / "server.log").exists() else ""
    assert (done.returncode, done.stdout.rstrip().endswith("--- all")) == (0, True), f"{done.stdout}\n{log}"
    assert "the server is stopped" in log
    restored = Path(f"{server.home}-restored")
    assert (restored / "config.yaml").read_text() == config
    assert (restored / "secret.key").read_bytes() == (server.home / "secret.key").read_bytes()
    assert (folder / "backup" / "orch.db").stat().st_mode & 0o077 == 0
