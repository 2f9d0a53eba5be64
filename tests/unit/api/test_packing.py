from __future__ import annotations

import hashlib
import os
import shutil
import socket
import stat
import subprocess
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orch.api import ignoring, packing
from orch.model.errors import WrongUse
from orch_workers.shipping import code


@pytest.fixture
def workdir(tmp_path):
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


def write(root, *names, content="x"):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def paths(plan):
    return [entry.path for entry in plan.files]


def sentences(plan):
    return [problem.message for problem in plan.problems]


def test_it_ships_all_files_and_never_history_environments_and_leftovers(workdir):
    write(workdir, "train.py", "lib/model.py", ".hidden", "out/.keep", "lib/__pycache__/x.pyc")
    write(workdir, ".git/HEAD", ".venv/bin/python", ".orch/state", "lib/.git", content="no")
    plan = packing.plan(workdir)
    assert paths(plan) == [".hidden", "lib/model.py", "out/.keep", "train.py"]
    assert (plan.size_bytes, plan.left_out, plan.problems) == (4, 5, ())


def test_gitignore_and_orchignore_are_respected_at_every_depth(workdir):
    write(workdir, "a.log", "keep.log", "big.bin", "data/x", "lib/y.tmp", "lib/z.py", "logs/1", "src/logs/2")
    write(workdir, ".gitignore", content="*.log\n!keep.log\n*.bin\n/logs/\n")
    write(workdir, "lib/.gitignore", content="*.tmp\n")
    write(workdir, ".orchignore", content="data/\n!big.bin\n")
    assert paths(packing.plan(workdir)) == [
        ".gitignore",
        ".orchignore",
        "big.bin",
        "keep.log",
        "lib/.gitignore",
        "lib/z.py",
        "src/logs/2",
    ]


def test_a_gitignore_above_counts_up_to_the_top_of_the_repository(workdir):
    sub = workdir / "jobs" / "digits"
    write(sub, "train.py", "a.log", "cache/x")
    write(workdir.parent, ".gitignore", content="train.py\n")
    write(workdir, ".git/HEAD")
    write(workdir, ".gitignore", content="*.log\n/jobs/digits/cache/\n")
    assert paths(packing.plan(sub)) == ["train.py"]


def test_a_working_folder_that_git_ignores_is_shipped_because_it_was_named(workdir):
    write(workdir, "build/job/train.py", ".git/HEAD")
    write(workdir, ".gitignore", content="build/\n")
    assert paths(packing.plan(workdir / "build" / "job")) == ["train.py"]


def test_without_a_repository_a_gitignore_above_is_not_ours(workdir):
    write(workdir, ".gitignore", content="*\n")
    write(workdir, "job/train.py")
    assert paths(packing.plan(workdir / "job")) == ["train.py"]


def test_we_agree_with_git(workdir):
    """Expected is what git 2.39's `ls-files --others --exclude-standard` prints for this folder."""
    write(workdir, "a.log", "x/b.log", "x/y/c.txt", "x/y/d.log", "build/e", "z/build/f", "z/g")
    write(workdir, "sp ace", "#h", "!n", "x/*s", "x/as", "deep/a/b/c.tmp", "deep/c.tmp", "n/foo/k", "foo")
    lines = ["*.log", "!x/y/*.log", "build/", r"\#h", r"\!n", r"sp\ ace", r"x/\*s", "deep/**/c.tmp", "foo/"]
    write(workdir, ".gitignore", content="\n".join(lines))
    files = [entry.path for entry in packing.plan(workdir).files if entry.kind == "file"]
    assert files == [".gitignore", "foo", "x/as", "x/y/c.txt", "x/y/d.log", "z/g"]


@pytest.mark.parametrize(
    "name", ["sp ace", "#hash", "!bang", "star*", "que?", "[x]", "back#slash", "end ", "plain"]
)
def test_the_line_that_a_refusal_proposes_excludes_exactly_that(workdir, name):
    write(workdir, f"d/{name}", "d/other", f"e/d/{name}")
    write(workdir, ".orchignore", content=ignoring.ignore_line(f"d/{name}") + "\n")
    assert paths(packing.plan(workdir)) == sorted([".orchignore", "d/other", f"e/d/{name}"])


@pytest.mark.parametrize("content", ["!\n", "a" * ((1 << 20) + 1)])
def test_a_bad_ignore_file_is_a_problem_with_its_name(workdir, content):
    write(workdir, ".orchignore", content=content)
    assert ".orchignore" in sentences(packing.plan(workdir))[0]


def test_everything_wrong_is_said_at_once_with_the_way_out(workdir, tmp_path, monkeypatch):
    monkeypatch.setattr(code, "FILE_BYTES_MAX", 1000)
    write(workdir, "fine.py")
    with (workdir / "big.bin").open("wb") as big:
        big.truncate(2 << 30)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(workdir / "s"))
    os.mkfifo(workdir / "pipe")
    (workdir / "loop").symlink_to("loop")
    (workdir / "up").symlink_to(".")
    (workdir / "out").symlink_to(tmp_path)
    plan = packing.plan(workdir)

    def line(name):
        return f"Exclude it with the line /{name} in .orchignore"

    assert sentences(plan) == [
        f"big.bin is 2.0 GiB; the limit for one file is 1000 B. {line('big.bin')}, or use `ship: never`",
        f"loop is a link that leads in a circle. {line('loop')}",
        f"out is a link out of the working folder (to {tmp_path}). {line('out')}",
        f"pipe is a named pipe, which cannot be shipped. {line('pipe')}",
        f"s is a socket, which cannot be shipped. {line('s')}",
        f"up is a link to a folder that it lies in itself, a cycle. {line('up')}",
    ]
    assert {problem.path for problem in plan.problems} == {"workdir"}
    with pytest.raises(packing.PackError) as caught:
        packing.pack(plan, tmp_path / "code.zip")
    assert isinstance(caught.value, WrongUse)
    assert str(caught.value).count("\n") == 5
    assert not (tmp_path / "code.zip").exists()
    write(workdir, ".orchignore", content="/big.bin\n/loop\n/out\n/pipe\n/s\n/up")
    assert packing.plan(workdir).problems == ()


def test_a_folder_that_is_too_large_names_the_largest_files(workdir, monkeypatch):
    monkeypatch.setattr(code, "CONTENT_BYTES_MAX", 1000)
    for size, name in ((600, "a.bin"), (500, "b.bin"), (1, "c"), (2, "d")):
        write(workdir, name, content="x" * size)
    (problem,) = sentences(packing.plan(workdir))
    assert (
        "holds 1.1 KiB; the limit is 1000 B. The largest: a.bin (600 B), b.bin (500 B), d (2 B)." in problem
    )
    assert ".orchignore" in problem


def test_too_many_files_end_the_walk(workdir, monkeypatch):
    monkeypatch.setattr(code, "ENTRIES_MAX", 3)
    write(workdir, *(f"d{n}/f" for n in range(9)))
    (problem,) = sentences(packing.plan(workdir))
    assert "more than 3 files and folders" in problem


def test_a_missing_working_folder_and_one_that_is_a_file(tmp_path):
    assert "does not exist" in sentences(packing.plan(tmp_path / "no"))[0]
    write(tmp_path, "file")
    assert "is not a folder" in sentences(packing.plan(tmp_path / "file"))[0]


def test_a_name_that_is_no_utf8_is_refused_and_printable(workdir):
    (workdir / os.fsdecode(b"bad\xff\x1b[31m")).write_text("x")
    (problem,) = sentences(packing.plan(workdir))
    assert "not valid UTF-8" in problem
    assert problem.isprintable()


def test_an_unreadable_folder_is_a_problem(workdir, monkeypatch):
    write(workdir, "d/x")
    real = os.scandir

    def refusing(path):
        if Path(path).name == "d":
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", refusing)
    assert "d cannot be read" in sentences(packing.plan(workdir))[0]


def test_the_archive_depends_on_nothing_but_the_content(tmp_path):
    digests = []
    for turn, order in enumerate((["a", "d/b", "e/c"], ["e/c", "d/b", "a"])):
        folder = tmp_path / f"copy{turn}"
        folder.mkdir()
        write(folder, *order)
        (folder / "a").chmod(0o755)
        (folder / "link").symlink_to("d/b")
        for path in folder.rglob("*"):
            os.utime(path, (turn, turn), follow_symlinks=False)
        packed = packing.pack(packing.plan(folder), tmp_path / f"{turn}.zip")
        assert packed.digest == hashlib.sha256((tmp_path / f"{turn}.zip").read_bytes()).hexdigest()
        assert packed.size_bytes == (tmp_path / f"{turn}.zip").stat().st_size
        digests.append(packed.digest)
    assert digests[0] == digests[1]
    (tmp_path / "copy0" / "a").chmod(0o644)
    assert packing.pack(packing.plan(tmp_path / "copy0"), tmp_path / "2.zip").digest != digests[0]


def test_what_is_packed_unpacks_to_the_same(workdir, tmp_path):
    write(workdir, "train.py", "lib/run.sh")
    (workdir / "lib/run.sh").chmod(0o755)
    (workdir / "empty/inner").mkdir(parents=True)
    (workdir / "data.bin").write_bytes(os.urandom(3 << 20))
    (workdir / "relative").symlink_to("lib/run.sh")
    (workdir / "lib" / "absolute").symlink_to(workdir / "train.py")
    (workdir / "lib" / "back").symlink_to("../../work/train.py")
    (workdir / "dangling").symlink_to("later/made")
    packed = packing.pack(packing.plan(workdir), tmp_path / "code.zip")
    folder = code.unpack(tmp_path / "code.zip", packed.digest, tmp_path / "node")
    assert (folder / "data.bin").read_bytes() == (workdir / "data.bin").read_bytes()
    assert stat.S_IMODE((folder / "lib/run.sh").stat().st_mode) == 0o755
    assert (folder / "empty/inner").is_dir()
    assert (folder / "relative").readlink() == Path("lib/run.sh")
    assert (folder / "lib/absolute").readlink() == Path("../train.py")
    assert (folder / "lib/back").readlink() == Path("../train.py")
    assert (folder / "dangling").readlink() == Path("later/made")


def test_a_working_folder_named_through_a_link_is_shipped(workdir, tmp_path):
    write(workdir, "train.py")
    (tmp_path / "alias").symlink_to(workdir)
    assert paths(packing.plan(tmp_path / "alias")) == ["train.py"]


def test_an_empty_folder_packs(workdir, tmp_path):
    packed = packing.pack(packing.plan(workdir), tmp_path / "code.zip")
    assert list(code.unpack(tmp_path / "code.zip", packed.digest, tmp_path / "node").iterdir()) == []


def test_a_file_that_changes_meanwhile_is_refused_and_nothing_is_left(workdir, tmp_path):
    changes = [
        lambda path: path.write_text("longer than before"),
        lambda path: path.write_text(""),
        lambda path: path.unlink(),
        lambda path: (path.unlink(), path.symlink_to("/etc/hostname")),
        lambda path: (path.unlink(), os.mkfifo(path)),
    ]
    for change in changes:
        (workdir / "log").unlink(missing_ok=True)
        write(workdir, "log")
        plan = packing.plan(workdir)
        change(workdir / "log")
        with pytest.raises(packing.PackError, match="log changed while it was being packed"):
            packing.pack(plan, tmp_path / "code.zip")
        assert not (tmp_path / "code.zip").exists()


def test_git_commit_and_dirty_flag(workdir, tmp_path):
    write(workdir, "job/train.py", "other/x")
    assert packing.git_state(workdir) == packing.GitState(None, None)
    if shutil.which("git") is None:
        return  # a machine without git: then nothing more can be known, see the next test
    git = ["git", "-c", "user.name=n", "-c", "user.email=e@example.org"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "m"]):
        subprocess.run([*git, *arguments], cwd=workdir, check=True)
    clean = packing.git_state(workdir / "job")
    assert len(clean.commit) == 40
    assert clean.dirty is False
    write(workdir, "other/new")
    assert packing.git_state(workdir / "job") == clean, "changes elsewhere in the repository do not count"
    write(workdir, "job/train.py", content="changed")
    assert packing.git_state(workdir / "job").dirty is True
    packed = packing.pack(packing.plan(workdir / "job"), tmp_path / "code.zip")
    assert (packed.git_commit, packed.git_dirty) == (clean.commit, True)


def test_without_git_nothing_is_known(workdir, monkeypatch):
    monkeypatch.setenv("PATH", str(workdir))
    assert packing.git_state(workdir) == packing.GitState(None, None)


names = st.text(st.characters(codec="utf-8", exclude_characters="/\0\\"), min_size=1, max_size=8).filter(
    lambda name: (
        name not in {".", ".."} and name not in ignoring.ALWAYS and ":" not in name and "ignore" not in name
    )
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(st.dictionaries(names, st.binary(max_size=100), max_size=6))
def test_any_names_and_contents_survive(tmp_path_factory, files):
    base = tmp_path_factory.mktemp("any")
    for name, content in files.items():
        (base / "work" / name).parent.mkdir(exist_ok=True)
        (base / "work" / name).write_bytes(content)
    (base / "work").mkdir(exist_ok=True)
    plan = packing.plan(base / "work")
    assert plan.problems == ()
    packed = packing.pack(plan, base / "code.zip")
    with zipfile.ZipFile(base / "code.zip") as zipped:
        assert zipped.testzip() is None
    folder = code.unpack(base / "code.zip", packed.digest, base / "node")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
