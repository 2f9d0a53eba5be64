"""What a command finds around it: exactly what docs/environment.md says."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from support.jobs import log_of, write_job
from support.server import Server

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("own_jobs")]

PAGE = Path(__file__).parent.parent.parent / "docs" / "environment.md"
SHOW = """
import json, os, sys
print(json.dumps({"env": dict(os.environ), "cwd": os.getcwd(), "stdin": os.readlink("/proc/self/fd/0"),
                  "argv": sys.argv, "python": sys.executable, "nice": os.nice(0), "tty": sys.stdout.isatty(),
                  "fds": len(os.listdir("/proc/self/fd")), "umask": os.umask(0o22)}))
"""
FROM_THE_MACHINE = ("TZ", "LD_LIBRARY_PATH")
"""Only where it has them."""
ELSEWHERE = {"VIRTUAL_ENV", "TF_CONFIG"}
"""Only where a job has an environment of its own, or several workers."""


def _shown(server: Server, job: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log_of(server, job).splitlines()]


def test_as_documented(server: Server, tmp_path: Path) -> None:
    folder = write_job(
        tmp_path / "work", "python show.py 'two words' $HOME", {"show.py": SHOW},
        env={"MINE": "1", "PYTHONPATH": "/somewhere"}, secrets=["TEST_KEY"],
    )  # fmt: skip
    job = Server(server.home, {"TEST_KEY": "hush-hush", "LEAKED": "no"}).submit(folder)
    found = server.wait(job)
    [shown] = _shown(server, job)
    env = shown["env"]
    documented = set(re.findall(r"^\| `([A-Z_]+)` \|", PAGE.read_text(), re.MULTILINE))
    expected = documented - {name for name in FROM_THE_MACHINE if name not in os.environ} - ELSEWHERE
    # The shell that this command needs adds PWD and OLDPWD or so of its own; Python may add LC_CTYPE.
    assert set(env) - {"PWD", "OLDPWD", "SHLVL", "_", "LC_CTYPE"} == expected | {"MINE", "TEST_KEY"}
    assert env["MINE"] == "1"
    assert env["TEST_KEY"] == "*" * len("hush-hush"), "it has it; what it prints of it is blotted out"
    assert (env["ORCH_JOB_ID"], env["ORCH_GENERATION"]) == (job, "000001.000001")
    ranks = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR")
    assert [env[name] for name in ranks] == ["0", "1", "0", "1", "127.0.0.1"]
    assert 1024 <= int(env["MASTER_PORT"]) < 65536
    assert env["CUDA_VISIBLE_DEVICES"] == "", "it asked for no GPU"
    assert env["PYTHONPATH"].endswith(":/somewhere")
    assert env["HOME"] == os.environ["HOME"]
    assert env["PATH"].split(":")[0] == str(Path(sys.executable).parent)
    assert shown["argv"] == ["show.py", "two words", os.environ["HOME"]]
    assert Path(shown["python"]).parent == Path(sys.executable).parent
    assert (shown["stdin"], shown["tty"]) == ("/dev/null", False)
    assert shown["nice"] == os.nice(0), "Ray would run it at 15"
    assert shown["fds"] <= 4, "nothing of ours is open in it"
    assert Path(shown["cwd"]).name == "workdir"
    assert found["restarts"] == 0


def test_of_a_restart(server: Server, tmp_path: Path) -> None:
    """What tells starts apart differs, the rest stays; files in ORCH_CHECKPOINT_DIR are found again, then swept."""
    run = (
        "python show.py; mkdir -p $ORCH_CHECKPOINT_DIR; cd $ORCH_CHECKPOINT_DIR;"
        " test -e here && exit; touch here; kill -9 $$"
    )
    folder = write_job(
        tmp_path / "work", run, {"show.py": SHOW}, restart={"backoff": {"initial": 0, "max": 0}}
    )
    job = server.submit(folder)
    server.wait(job)
    first, second = (shown["env"] for shown in _shown(server, job))
    assert (first.pop("ORCH_GENERATION"), second.pop("ORCH_GENERATION")) == ("000001.000001", "000001.000002")
    for env in (first, second):
        env.pop("MASTER_PORT")
        env.pop("ORCH_TREE")
    assert first == second
    assert not Path(first["ORCH_CHECKPOINT_DIR"]).exists()
    assert not Path(first["ORCH_SOCKET"]).parent.exists()
