"""Jobs with a Python environment of their own, built by the real uv from tiny packages."""

from __future__ import annotations

import errno
import io
import json
import os
import tarfile
import threading
import time
from pathlib import Path

import pytest

from orch_policies.restart import History
from orch_workers.environments import building
from orch_workers.environments.building import Builder
from orch_workers.environments.cache import Cache
from orch_workers.environments.own import Around, own_environment
from orch_workers.environments.uv import base_environment
from orch_workers.errors import UnbuildableError
from orch_workers.logs.attempt_log import AttemptLog
from orch_workers.logs.redaction import Redactor
from orch_workers.process.leftovers import survivors
from orch_workers.sweep import sweep_job
from support.server import wait_for
from support.wheels import make_wheel, offline
from support.workers import LIMIT_S

SAYS = """
    import json, orch_tiny, os, shutil, sys
    print(json.dumps([orch_tiny.VALUE, sys.prefix, os.environ["VIRTUAL_ENV"], shutil.which("python")]))
"""
TRAINED = {"history": History(highest_step=5, committed_step=5).to_dict()}
# Its build says that it has begun, and waits for as long as a test wants it to.
SLOW = """
import os, pathlib, sys
here = pathlib.Path({folder!r})
os.mkfifo(here / "builds")
open(here / "builds").read()
"""


@pytest.fixture
def packages(machine):
    folder = machine.folder / "packages"
    make_wheel(folder, "orch_tiny", "1.0", {"orch_tiny.py": "VALUE = 1\n"})
    return folder


@pytest.fixture
def job(machine, packages):
    """`job(requirements, …)`: a worker of a job of its own that has them."""
    made = []

    def start(requirements="orch-tiny\n", *, script=SAYS, version=None, env=None, **more):
        made.append(requirements)
        (machine.workdir / "requirements.txt").write_text(requirements)
        return machine.worker(
            job_id=f"own-{len(made)}a2b",
            script=script,
            env={**offline(packages), **(env or {})},
            python={"requirements": "requirements.txt", "version": version},
            **more,
        )

    return start


def said(worker):
    assert worker.end()["outcome"] == "succeeded", log_of(worker)
    return json.loads(log_of(worker).splitlines()[-1])


def log_of(worker):
    return worker.paths.log.read_text()


def records(machine):
    return sorted(machine.config().paths.environments.glob("*.json"))


def slow(packages, folder):
    """orch-slow is there as source alone: `folder/builds` exists when its build has begun."""
    folder.mkdir()
    files = {
        "pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n',
        "PKG-INFO": "Metadata-Version: 2.1\nName: orch-slow\nVersion: 1.0\n",
        "backend.py": SLOW.format(folder=str(folder)),
    }
    with tarfile.open(packages / "orch_slow-1.0.tar.gz", "w:gz") as archive:
        for name, text in files.items():
            entry = tarfile.TarInfo(f"orch_slow-1.0/{name}")
            entry.size = len(text.encode())
            archive.addfile(entry, io.BytesIO(text.encode()))
    return folder / "builds"


# what a job gets


def test_the_command_runs_in_the_environment_that_was_built_for_it(job, machine):
    one = job()
    value, prefix, virtual, python = said(one)
    assert value == 1
    assert (virtual, python) == (prefix, f"{prefix}/bin/python")
    assert Path(prefix).parent == machine.config().paths.environments
    assert "building the Python environment of requirements.txt" in log_of(one)
    assert "+ orch-tiny==1.0" in log_of(one)
    one.wait_note("the Python environment of requirements.txt is being built")
    record = json.loads(records(machine)[0].read_text())
    assert record["packages"] == ["orch-tiny==1.0"]


def test_the_same_content_is_built_once_and_another_content_anew(job, machine, packages):
    first = said(job())
    again = job()
    assert said(again) == first
    assert "building" not in log_of(again)
    assert "built before" in log_of(again)
    make_wheel(packages, "orch_tiny", "2.0", {"orch_tiny.py": "VALUE = 2\n"})
    assert said(job()) == first, "nothing asked for another version"
    assert said(job("orch-tiny>=2\n"))[0] == 2
    assert len(records(machine)) == 2


def test_files_that_requirements_include_are_part_of_the_content(job, machine, packages):
    make_wheel(packages, "orch_tiny", "2.0", {"orch_tiny.py": "VALUE = 2\n"})
    (machine.workdir / "more").mkdir()
    (machine.workdir / "more/limits.txt").write_text("orch-tiny<2\n")
    (machine.workdir / "more/base.txt").write_text("-c limits.txt\norch-tiny  # a comment\n")
    text = "# nothing\n--requirement=more/base.txt\n"
    assert said(job(text))[0] == 1
    (machine.workdir / "more/limits.txt").write_text("orch-tiny<3\n")
    assert said(job(text))[0] == 2


def test_a_package_of_the_workdir_itself_belongs_to_the_code(job, machine):
    one = job("./here\n")
    assert one.end()["outcome"] == "failed"
    assert "./here" in one.end()["reason"]
    assert "ship: never" in one.end()["reason"]


# what is never used


def test_what_was_not_built_to_its_end_is_built_anew(job, machine):
    said(job())
    record = records(machine)[0]
    record.unlink()
    (record.with_suffix("") / "lib/torn").parent.mkdir(exist_ok=True)
    (record.with_suffix("") / "lib/torn").write_text("half")
    one = job()
    said(one)
    assert "building" in log_of(one)
    assert not (record.with_suffix("") / "lib/torn").exists()


def test_an_environment_whose_interpreter_is_gone_is_built_anew(job, machine):
    said(job())
    python = records(machine)[0].with_suffix("") / "bin/python"
    python.unlink()
    python.symlink_to("/nonexistent/python")
    one = job()
    said(one)
    assert "building" in log_of(one)


def test_two_workers_build_it_once(machine, packages):
    cache = Cache(machine.config().paths.environments)
    began, go, told, built = threading.Event(), threading.Event(), threading.Event(), []

    def build(folder):
        built.append(folder)
        (folder / "bin").mkdir(parents=True)
        (folder / "bin/python").symlink_to("/bin/sh")
        began.set()
        assert go.wait(LIMIT_S)
        return {}

    def use():
        found.append(cache.acquire("k", build, waits=told.set, stopping=threading.Event()))

    found = []
    users = [threading.Thread(target=use) for _ in range(2)]
    users[0].start()
    assert began.wait(LIMIT_S)
    users[1].start()
    assert told.wait(LIMIT_S)
    go.set()
    for user in users:
        user.join(LIMIT_S)
    assert len(built) == 1
    assert sorted(one.built for one in found) == [False, True]


# what goes wrong


def test_a_package_that_does_not_exist_fails_the_job_at_once_with_the_tools_words(job):
    one = job("orch-tiny\norch-nowhere==1\n")
    end = one.end()
    assert end["outcome"] == "failed"
    assert "the Python environment of requirements.txt cannot be built" in end["reason"]
    assert "orch-nowhere" in end["traceback"]
    assert "orch-nowhere" in log_of(one)
    assert one.told("ProcessStarted") == []


def test_of_a_job_that_has_trained_before_the_machine_is_suspected(job):
    one = job("orch-nowhere==1\n", policy=TRAINED)
    assert one.end()["outcome"] == "blocked"
    assert "orch-nowhere" in one.end()["reason"]


def test_requirements_that_are_not_there(machine):
    one = machine.worker(script=SAYS, python={"requirements": "requirements.txt"})
    assert one.end()["outcome"] == "failed"
    assert "requirements.txt, which cannot be read in the workdir" in one.end()["reason"]


def test_editable_requirements_are_refused(job):
    assert "without -e" in job("-e .\n").end()["reason"]


OUT_OF_REACH = {"PIP_NO_INDEX": "0", "PIP_INDEX_URL": "http://127.0.0.1:9/simple", "UV_HTTP_RETRIES": "0"}


def test_an_index_out_of_reach_is_asked_again(job, monkeypatch):
    monkeypatch.setattr(building, "RETRY_FIRST_S", 0.01)
    one = job(env=OUT_OF_REACH)
    one.wait_note("tried again")
    one.worker.stop("stopped", 5.0)
    assert one.end()["outcome"] == "stopped"


def test_an_index_that_stays_out_of_reach_is_for_a_person(job, monkeypatch):
    monkeypatch.setattr(building, "RETRY_S_MAX", 0.0)
    one = job(env=OUT_OF_REACH)
    assert one.end()["outcome"] == "blocked"
    assert "cannot be built" in one.end()["reason"]


def test_a_secret_in_the_tools_words_is_blotted_out(machine, packages, monkeypatch):
    (machine.workdir / "requirements.txt").write_text("orch-nowhere-hunter2==1\n")
    one = machine.config(env=offline(packages), python={"requirements": "requirements.txt"}, run="true")
    one.paths.make()
    log = AttemptLog(one.paths.log, 0)
    log.redactor = Redactor(["hunter2"])
    around = Around(log, lambda note: None, threading.Event(), has_trained=False)
    with pytest.raises(UnbuildableError) as caught:
        own_environment(one, {}, machine.workdir, around)
    assert "orch-nowhere" in caught.value.tail
    assert "hunter2" not in caught.value.tail + str(caught.value)


# leaving


def test_a_stop_ends_a_build_and_all_of_its_processes(job, machine, packages):
    builds = slow(packages, machine.folder / "signs")
    one = job("orch-slow\n")
    wait_for("it builds", builds.exists, LIMIT_S)
    one.worker.stop("stopped", 5.0)
    assert one.end()["outcome"] == "stopped"
    assert survivors(one.paths.builds) == []
    assert records(machine) == []


def test_what_builds_ends_with_its_agent(job, machine, packages):
    builds = slow(packages, machine.folder / "signs")
    one = job("orch-slow\n")
    wait_for("it builds", builds.exists, LIMIT_S)
    one.worker.halt()
    sweep_job(one.paths)
    assert survivors(one.paths.builds) == []
    assert records(machine) == []


def test_a_machine_that_has_no_room_is_for_a_person(job, monkeypatch):
    def no_room(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Cache, "_build", no_room)
    end = job().end()
    assert end["outcome"] == "blocked"
    assert "No space left on device" in end["reason"]


def test_requirements_that_change_while_it_is_being_built_are_not_what_was_asked_for(
    job, machine, monkeypatch
):
    build = Builder.build

    def meanwhile(self, *arguments):
        (machine.workdir / "requirements.txt").write_text("# other\norch-tiny\n")
        return build(self, *arguments)

    monkeypatch.setattr(Builder, "build", meanwhile)
    end = job().end()
    assert end["outcome"] == "blocked"
    assert "requirements.txt changed while" in end["reason"]
    assert records(machine) == []


def test_an_environment_does_not_lie_in_the_cache_that_is_removed_for_room():
    base = base_environment({"PATH": "/bin", "UV_LINK_MODE": "symlink"}, {})
    assert "UV_LINK_MODE" not in base
    assert base_environment({"UV_LINK_MODE": "copy"}, {})["UV_LINK_MODE"] == "copy"


# room


def test_pruning_takes_what_was_not_used_for_longest_and_nothing_in_use(machine):
    cache = Cache(machine.folder / "environments")

    def build(folder):
        (folder / "bin").mkdir(parents=True)
        (folder / "bin/python").symlink_to("/bin/sh")
        (folder / "large").write_bytes(os.urandom(1 << 20))
        return {}

    used = {
        key: cache.acquire(key, build, waits=lambda: None, stopping=threading.Event())
        for key in ("a", "b", "c", "d")
    }
    for key, days in (("a", 100), ("b", 60), ("c", 40), ("d", 2)):
        used_s = time.time() - days * 86400
        os.utime(cache.root / f"{key}.json", (used_s, used_s))
    for key in ("b", "c"):
        used[key].close()
    (cache.uv_cache / "archive").mkdir(parents=True)
    (cache.uv_cache / "archive/large").write_bytes(os.urandom(1 << 20))
    half = cache.root / "half"
    half.mkdir()
    removed = cache.prune(limit_bytes=1 << 40)
    assert removed == ["half", "b", "c"], "over the age, and not in use"
    for one in (used["a"], used["d"]):
        one.close()
    os.utime(cache.root / "a.json")
    assert cache.prune(limit_bytes=(3 << 20) - 1) == ["d"]
    assert (cache.root / "a").is_dir()
    assert cache.uv_cache.is_dir()
    assert cache.prune(limit_bytes=1) == ["a"]
    assert not cache.uv_cache.exists()
