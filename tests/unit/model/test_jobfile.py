"""Loading a job file: what it resolves to, and where each value came from."""

from __future__ import annotations

import io

import pytest

from orch.model.errors import WrongUse
from orch.model.jobfile import env_options, load_job, secret_values
from orch.model.spec import JobSpec


def test_the_smallest_job(write, folder):
    loaded = load_job(write("run: python train.py\n"))
    assert loaded.spec == JobSpec(run="python train.py", name="digits", workdir=str(folder))
    assert loaded.base_dir == folder
    assert loaded.origins["run"] == "job.yaml line 1"
    assert loaded.origins["name"] == "default (the workdir's name)"
    assert loaded.origins["workdir"] == "default"
    assert loaded.origins["checkpoint.every.seconds"] == "default"


def test_relative_paths_are_taken_from_the_file_not_from_where_one_stands(write, folder, monkeypatch):
    (folder / "src").mkdir()
    write("run: x\nworkdir: src\ncheckpoint: {storage: ../ck}\n")
    monkeypatch.chdir("/")
    spec = load_job(folder / "job.yaml").spec
    assert spec.workdir == str(folder / "src")
    assert spec.checkpoint.storage.url == str(folder.parent / "ck")
    assert spec.name == "src"


def test_a_home_folder_is_understood(write, folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    spec = load_job(write("run: x\nworkdir: ~/\ncheckpoint: {storage: {url: ~/ck}}\n")).spec
    assert spec.workdir == str(folder)
    assert spec.checkpoint.storage.url == str(folder / "ck")


def test_standard_input(folder, monkeypatch):
    monkeypatch.chdir(folder)
    loaded = load_job("-", stdin=io.BytesIO(b"run: x\n"))
    assert loaded.spec.workdir == str(folder)
    assert loaded.origins["run"] == "standard input line 1"


def test_a_folder_that_is_not_shipped_need_not_exist_here(write):
    spec = load_job(write("run: x\nship: never\nworkdir: /cluster/only/here\n")).spec
    assert spec.workdir == "/cluster/only/here"


def test_variables_mean_what_is_written(write):
    spec = load_job(
        write("run: x\nenv: {N: 1, V: 1.10, F: true, O: 010, T: 'no', Q: '7', D: 2026-01-01}\n")
    ).spec
    assert spec.env == {
        "N": "1",
        "V": "1.10",
        "F": "true",
        "O": "010",
        "T": "no",
        "Q": "7",
        "D": "2026-01-01",
    }


def test_a_key_without_a_value_is_default_where_nothing_is_possible(write):
    spec = load_job(write("run: x\nname:\ncheckpoint: {storage: }\n")).spec
    assert (spec.name, spec.checkpoint.storage) == ("digits", None)


# ---- options


def test_overrides_go_before_the_file_and_are_yaml(write):
    loaded = load_job(
        write("run: x\nresources: {cpus: 1, memory: 1GiB}\ncheckpoint: {every: {seconds: 10m}}\n"),
        [
            "resources.cpus=2",
            "resources.memory=null",
            "checkpoint.keep={last: 2}",
            "outputs=[a, b]",
            "run=python t.py --a=b",
            "env.X=1.10",
            "checkpoint.every.steps=5",
        ],
        env={"Y": "two words"},
        name="other",
    )
    spec, origins = loaded.spec, loaded.origins
    assert (spec.resources.cpus, spec.resources.memory_bytes) == (2, None)
    assert (spec.checkpoint.keep.last, spec.outputs, spec.run) == (2, ("a", "b"), "python t.py --a=b")
    assert spec.env == {"X": "1.10", "Y": "two words"}
    assert (spec.checkpoint.every.steps, spec.checkpoint.every.seconds) == (5, 600)
    assert spec.name == "other"
    assert origins["resources.cpus"] == "--set resources.cpus"
    assert origins["resources.memory"] == "default"
    assert origins["checkpoint.keep.last"] == "--set checkpoint.keep"
    assert origins["checkpoint.every.seconds"] == "job.yaml line 3"
    assert origins["env.X"] == "--set env.X"
    assert origins["env.Y"] == "--env"
    assert origins["name"] == "--name"


def test_options_can_be_set_beside_a_short_storage(write):
    loaded = load_job(
        write("run: x\ncheckpoint: {storage: 's3://b'}\n"),
        ["checkpoint.storage.options.endpoint_url=http://h:1"],
    )
    assert loaded.spec.checkpoint.storage.url == "s3://b"
    assert loaded.spec.checkpoint.storage.options == {"endpoint_url": "http://h:1"}
    assert loaded.origins["checkpoint.storage.url"] == "job.yaml line 2"
    assert loaded.origins["checkpoint.storage.options.endpoint_url"].startswith("--set")


@pytest.mark.parametrize("override", ["", "=", "a", "=x", ".a=1", "a..b=1", "resources.=1"])
def test_an_override_that_is_none(write, override, refused):
    (problem,) = refused(write("run: x\n"), override).problems
    assert (problem.file, problem.line) == ("--set", None)


def test_bad_overrides_are_named_by_their_option_without_their_value(write, refused):
    error = refused(
        write("run: x\n"),
        "resources.cpus=lots",
        "priority=[",
        "run.x=1",
        "env.A={b: &c 1}",
        "tpyo=1",
        "a\udcff=1",
    )
    assert {problem.file for problem in error.problems} == {
        "--set",
        "--set priority",
        "--set run.x",
        "--set env.A",
        "--set resources.cpus",
        "--set tpyo",
    }
    assert "run is 'x', so nothing can be set inside it" in str(error)
    assert all(problem.line is None for problem in error.problems)


def test_arguments_that_are_not_utf_8(write, refused):
    assert "not UTF-8" in str(refused(write("run: x\n"), env={"A": "\udcff"}))
    assert "no job name may have" in str(refused(write("run: x\n"), name="\udcff"))
    for error in (refused("no\udcffne.yaml"), refused(write("run: x\n"), "a\udcff=1", "run=\udcff")):
        assert str(error).encode()


def test_too_many_overrides(write):
    with pytest.raises(WrongUse, match="1001 times"):
        load_job(write("run: x\n"), ["priority=1"] * 1001)


# ---- variables and secrets of the one who submits


def test_variables_from_options():
    assert env_options(["A=1", "B=x=y", "C", "D="], {"C": "here"}) == {
        "A": "1",
        "B": "x=y",
        "C": "here",
        "D": "",
    }
    with pytest.raises(WrongUse, match="no such variable"):
        env_options(["NOT_SET"], {})


def test_secret_values_are_taken_from_the_environment():
    spec = JobSpec(run="x", secrets=("WANDB_API_KEY", "B"))
    assert secret_values(spec, {"WANDB_API_KEY": "k", "B": "", "C": "c"}) == {"WANDB_API_KEY": "k", "B": ""}
    with pytest.raises(WrongUse, match=r"WANDB_API_KEY, B .*did you mean 'WANDB_API_KEYS'"):
        secret_values(spec, {"WANDB_API_KEYS": "k"})
