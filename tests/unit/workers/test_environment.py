from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from orch_workers.process import environment, leftovers

DOCS = Path(__file__).parents[3] / "docs" / "environment.md"

RAY_WORKER = {
    "HOME": "/home/me",
    "USER": "me",
    "LANG": "de_DE.UTF-8",
    "TZ": "Europe/Berlin",
    "LD_LIBRARY_PATH": "/usr/local/cuda/lib64",
    "PATH": "/usr/bin:/bin",
    "OMP_NUM_THREADS": "1",
    "RAY_AUTH_TOKEN": "secret",
    "RAY_JOB_ID": "01000000",
    "PYTHONPATH": "/ray/workers",
    "CUDA_VISIBLE_DEVICES": "2,3",
    "AWS_SECRET_ACCESS_KEY": "of the machine",
}
OF_ORCH = {
    "ORCH_JOB_ID",
    "ORCH_GENERATION",
    "ORCH_SOCKET",
    "ORCH_CHECKPOINT_DIR",
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "PYTHONPATH",
    "PYTHONHASHSEED",
    "VIRTUAL_ENV",
    "TF_CONFIG",
    "PYTHONUNBUFFERED",
    "GLIBC_TUNABLES",
}
OF_MACHINE = {"HOME", "USER", "LANG", "TZ", "LD_LIBRARY_PATH", "PATH", "CUDA_VISIBLE_DEVICES"}


def build(**changes):
    values = {
        "base": RAY_WORKER,
        "job_env": {},
        "secrets": {},
        "bundle": Path("/node/bundle"),
        "job_id": "digits-x7k2",
        "generation": "000001.000002",
        "socket": Path("/tmp/s/agent.sock"),
        "checkpoint_dir": Path("/node/checkpoints"),
        "interpreter": Path("/venv/bin/python"),
        "gpus": 2,
        **changes,
    }
    return environment.build(**values)


def test_exactly_what_is_promised_and_nothing_of_rays():
    found = build(
        rank=3,
        world_size=8,
        local_rank=1,
        local_world_size=2,
        master_addr="10.0.0.1",
        master_port=4000,
        peers=("10.0.0.1:20001", "10.0.0.2:20002"),
    )
    assert set(found) == OF_ORCH | OF_MACHINE
    assert {name: found[name] for name in OF_MACHINE - {"PATH"}} == {
        name: RAY_WORKER[name] for name in OF_MACHINE - {"PATH"}
    }
    assert found["PATH"] == "/venv/bin:/usr/bin:/bin"
    assert found["VIRTUAL_ENV"] == "/venv"
    assert "VIRTUAL_ENV" not in build(interpreter=None)
    assert json.loads(found["TF_CONFIG"]) == {
        "cluster": {"worker": ["10.0.0.1:20001", "10.0.0.2:20002"]},
        "task": {"type": "worker", "index": 3},
    }
    assert "TF_CONFIG" not in build()
    assert build(peers=("a:1",), job_env={"TF_CONFIG": "{}"})["TF_CONFIG"] == "{}"
    assert found["PYTHONPATH"] == "/node/bundle"
    assert found["ORCH_JOB_ID"] == "digits-x7k2"
    assert found["ORCH_GENERATION"] == "000001.000002"
    assert found["ORCH_SOCKET"] == "/tmp/s/agent.sock"
    assert found["ORCH_CHECKPOINT_DIR"] == "/node/checkpoints"
    ranks = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    assert [found[name] for name in ranks] == ["3", "8", "1", "2", "10.0.0.1", "4000"]


def test_the_page_for_users_names_every_variable():
    named = set(re.findall(r"^\| `([A-Z_]+)`", DOCS.read_text(), re.MULTILINE))
    assert named == OF_ORCH | OF_MACHINE | {leftovers.MARK_ENV}


def test_our_own_environment_is_neither_read_nor_changed(monkeypatch):
    monkeypatch.setenv("LEAK", "1")
    before = dict(os.environ)
    assert "LEAK" not in build()
    assert dict(os.environ) == before


def test_the_jobs_env_wins_over_the_machine_and_secrets_over_env_but_orch_over_all():
    found = build(
        job_env={"TZ": "UTC", "OMP_NUM_THREADS": "4", "KEY": "plain", "RANK": "9", "PYTHONUNBUFFERED": "0"},
        secrets={"KEY": "secret", "ORCH_SOCKET": "/elsewhere"},
    )
    assert found["TZ"] == "UTC"
    assert found["OMP_NUM_THREADS"] == "4"
    assert found["KEY"] == "secret"
    assert found["PYTHONUNBUFFERED"] == "0"
    assert found["RANK"] == "0"
    assert found["ORCH_SOCKET"] == "/tmp/s/agent.sock"


def test_a_path_of_the_jobs_own_is_taken_as_it_is_and_its_python_path_comes_after_ours():
    found = build(job_env={"PATH": "/opt/conda/bin", "PYTHONPATH": "/my/lib"})
    assert found["PATH"] == "/opt/conda/bin"
    assert found["PYTHONPATH"] == "/node/bundle:/my/lib"
    assert build(bundle=None, job_env={"PYTHONPATH": "/my/lib"})["PYTHONPATH"] == "/my/lib"
    assert "PYTHONPATH" not in build(bundle=None)


def test_gpus_are_those_that_were_granted_and_none_where_none_was():
    assert build(job_env={"CUDA_VISIBLE_DEVICES": "0"})["CUDA_VISIBLE_DEVICES"] == "2,3"
    assert build(gpus=0)["CUDA_VISIBLE_DEVICES"] == ""
    assert build(gpus=0, job_env={"CUDA_VISIBLE_DEVICES": "0"})["CUDA_VISIBLE_DEVICES"] == "0"
    assert "CUDA_VISIBLE_DEVICES" not in build(base={})


def test_a_bare_machine_gets_what_every_program_expects():
    found = build(base={})
    assert found["HOME"]
    assert found["USER"]
    assert found["LANG"] == "C.UTF-8"
    assert found["PATH"] == f"/venv/bin:{environment.PATH_DEFAULT}"


def test_a_user_without_a_name_gets_a_home(monkeypatch):
    def nobody(uid):
        raise KeyError(uid)

    monkeypatch.setattr("pwd.getpwuid", nobody)
    found = build(base={})
    assert found["HOME"] == "/"
    assert "USER" not in found


def test_the_hash_seed_is_the_jobs_and_python_accepts_it():
    seed = build()["PYTHONHASHSEED"]
    assert build(generation="000007.000001")["PYTHONHASHSEED"] == seed
    assert build(job_id="digits-other")["PYTHONHASHSEED"] != seed
    code = "print(hash('orch'))"
    runs = [
        subprocess.run([sys.executable, "-c", code], env=build(bundle=None), capture_output=True, check=True)
        for _ in range(2)
    ]
    assert runs[0].stdout == runs[1].stdout


def test_without_a_port_a_free_one_is_found():
    assert 1024 <= int(build()["MASTER_PORT"]) < 65536


@pytest.mark.parametrize(
    ("job_env", "words"),
    [
        ({"A=B": "x"}, "'A=B' cannot be the name"),
        ({"": "x"}, "'' cannot be the name"),
        ({"KEY": "hush\0hush"}, "KEY has a zero byte"),
    ],
)
def test_what_no_environment_can_hold_is_named_without_its_value(job_env, words):
    with pytest.raises(ValueError, match=words) as caught:
        build(job_env=job_env)
    assert "hush" not in str(caught.value)
