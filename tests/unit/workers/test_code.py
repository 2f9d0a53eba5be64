from __future__ import annotations

import hashlib
import io
import stat
import subprocess
import sys
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from orch_workers.shipping import code

FILE, LINK, FIFO = stat.S_IFREG | 0o644, stat.S_IFLNK | 0o777, stat.S_IFIFO | 0o644


def archive(*entries):
    """Entries of (path, content, mode); returns the bytes and their digest."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as zipped:
        for path, content, mode in entries:
            info = zipfile.ZipInfo(path)
            info.external_attr = mode << 16
            zipped.writestr(info, content)
    return out.getvalue(), hashlib.sha256(out.getvalue()).hexdigest()


GOOD = (
    ("train.py", "print(1)", FILE),
    ("lib/run.sh", "#!", stat.S_IFREG | 0o755),
    ("lib/link", "../train.py", LINK),
)


def left(node_root):
    return sorted(path.name for path in (node_root / "code").iterdir())


def test_it_unpacks_files_modes_links_and_empty_folders(tmp_path):
    data, digest = archive(*GOOD, ("empty/", "", stat.S_IFDIR | 0o755))
    folder = code.unpack(io.BytesIO(data), digest, tmp_path)
    assert folder == tmp_path / "code" / digest
    assert (folder / "train.py").read_text() == "print(1)"
    assert stat.S_IMODE((folder / "lib/run.sh").stat().st_mode) == 0o755
    assert (folder / "lib/link").readlink() == Path("../train.py")
    assert (folder / "empty").is_dir()
    assert left(tmp_path) == [digest, f"{digest}.boot", f"{digest}.lock"]


def test_it_unpacks_once(tmp_path):
    data, digest = archive(*GOOD)
    (tmp_path / "a.zip").write_bytes(data)
    folder = code.unpack(tmp_path / "a.zip", digest, tmp_path)
    before = (folder / "train.py").stat().st_mtime_ns

    def never():
        raise AssertionError

    assert code.unpack(never, digest, tmp_path) == folder
    assert (folder / "train.py").stat().st_mtime_ns == before


def test_many_at_once_unpack_once(tmp_path):
    data, digest = archive(*GOOD)
    opened = []

    def source():
        opened.append(1)
        return io.BytesIO(data)

    with ThreadPoolExecutor(8) as pool:
        folders = set(pool.map(lambda _: code.unpack(source, digest, tmp_path), range(16)))
    assert len(folders) == 1
    assert len(opened) == 1


@pytest.mark.parametrize(
    "spoil", [lambda d: d[:-1], lambda d: d + b"x", lambda d: b"", lambda d: b"X" + d[1:]]
)
def test_other_bytes_than_the_digests_are_refused_and_leave_nothing(tmp_path, spoil):
    data, digest = archive(*GOOD)
    with pytest.raises(code.CodeError, match="damaged or cut short"):
        code.unpack(io.BytesIO(spoil(data)), digest, tmp_path)
    assert left(tmp_path) == [f"{digest}.lock"]
    assert code.unpack(io.BytesIO(data), digest, tmp_path).is_dir()


def test_what_is_no_zip_is_refused(tmp_path):
    digest = hashlib.sha256(b"hello").hexdigest()
    with pytest.raises(code.CodeError, match="cannot be unpacked"):
        code.unpack(io.BytesIO(b"hello"), digest, tmp_path)


@pytest.mark.parametrize("digest", ["", "../x", "A" * 64, "0" * 63])
def test_what_is_no_digest_is_refused(tmp_path, digest):
    with pytest.raises(code.CodeError, match="no code digest"):
        code.unpack(io.BytesIO(b""), digest, tmp_path)


@pytest.mark.parametrize(
    "entries",
    [
        [("../evil", "x", FILE)],
        [("a/../../evil", "x", FILE)],
        [("/evil", "x", FILE)],
        [("C:/evil", "x", FILE)],
        [("a\\..\\evil", "x", FILE)],
        [("a//b", "x", FILE)],
        [("x" * 300, "x", FILE)],
        [("pipe", "", FIFO)],
        [("a", "x", FILE), ("a/b", "x", FILE)],
        [("a", "..", LINK)],
        [("a", "/etc/passwd", LINK)],
        [("p/q/up", "../..", LINK), ("out", "p/q/up/../../..", LINK)],
        [("p/q/up", "../..", LINK), ("out", "p/q/up/../x", LINK)],
        [("a", ".", LINK), ("a/b", "x", FILE)],
        [("a", "x" * 5000, LINK)],
        [("a", b"\xff\xfe", LINK)],
    ],
)
def test_nothing_leaves_the_folder(tmp_path, entries):
    data, digest = archive(*entries)
    with pytest.raises(code.CodeError):
        code.unpack(io.BytesIO(data), digest, tmp_path)
    assert left(tmp_path) == [f"{digest}.lock"]
    assert [path.name for path in tmp_path.iterdir()] == ["code"]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_the_same_path_twice_is_refused(tmp_path):
    data, digest = archive(("a", "1", FILE), ("a", "2", FILE))
    with pytest.raises(code.CodeError, match="there twice"):
        code.unpack(io.BytesIO(data), digest, tmp_path)


def test_a_bomb_is_refused_by_its_declared_size(tmp_path, monkeypatch):
    monkeypatch.setattr(code, "CONTENT_BYTES_MAX", 1000)
    data, digest = archive(("a", "0" * 900, FILE), ("b", "0" * 900, FILE))
    with pytest.raises(code.CodeError, match="unpacks to 1800 bytes"):
        code.unpack(io.BytesIO(data), digest, tmp_path)


def test_too_many_entries_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(code, "ENTRIES_MAX", 2)
    data, digest = archive(*GOOD)
    with pytest.raises(code.CodeError, match="3 entries"):
        code.unpack(io.BytesIO(data), digest, tmp_path)


def test_what_a_crash_or_an_earlier_boot_left_is_made_anew(tmp_path):
    data, digest = archive(*GOOD)
    folder = code.unpack(io.BytesIO(data), digest, tmp_path)
    (folder / "train.py").write_text("")
    (tmp_path / "code" / f"{digest}.boot").write_text("another boot")
    (tmp_path / "code" / f"{digest}.partial").mkdir()
    assert code.unpack(io.BytesIO(data), digest, tmp_path) == folder
    assert (folder / "train.py").read_text() == "print(1)"
    assert left(tmp_path) == [digest, f"{digest}.boot", f"{digest}.lock"]


def test_a_killed_holder_gives_the_lock_back(tmp_path):
    data, digest = archive(*GOOD)
    (tmp_path / "code").mkdir()
    script = (
        "import sys; from pathlib import Path; from orch_workers.shipping import code\n"
        "with code._locked(Path(sys.argv[1]), 5): print('held', flush=True); sys.stdin.read()"
    )
    lock = tmp_path / "code" / f"{digest}.lock"
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(TimeoutError, match="still locked"), code._locked(lock, 0.0):
            pass
        assert code.sweep(tmp_path, []) == []
        holder.kill()
    assert code.unpack(io.BytesIO(data), digest, tmp_path).is_dir()


def test_a_removed_lock_file_does_not_let_two_in(tmp_path):
    lock = tmp_path / "lock"
    inside = threading.Semaphore(1)

    def enter(turn):
        with code._locked(lock, 30.0):
            assert inside.acquire(blocking=False)
            inside.release()  # first: removing the file is the holder's last act, and lets the next one in
            if turn % 2:
                lock.unlink()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(enter, range(40)))


def test_the_working_copy_keeps_what_the_job_wrote(tmp_path):
    data, digest = archive(*GOOD)
    folder = code.unpack(io.BytesIO(data), digest, tmp_path)
    workdir = tmp_path / "jobs" / "j" / "workdir"
    assert code.working_copy(folder, workdir) == workdir
    assert (workdir / "lib/link").readlink() == Path("../train.py")
    (workdir / "result.csv").write_text("1")
    (workdir / "train.py").write_text("changed by the job")
    code.working_copy(folder, workdir)
    assert (workdir / "result.csv").read_text() == "1"
    assert (workdir / "train.py").read_text() == "changed by the job"
    assert (folder / "train.py").read_text() == "print(1)"


def test_ranks_of_one_machine_make_their_working_copy_together(tmp_path):
    data, digest = archive(*GOOD, *((f"many/{number}.txt", "x", FILE) for number in range(50)))
    folder = code.unpack(io.BytesIO(data), digest, tmp_path)
    workdir = tmp_path / "jobs" / "j" / "workdir"
    with ThreadPoolExecutor(8) as ranks:
        assert set(ranks.map(lambda _: code.working_copy(folder, workdir), range(8))) == {workdir}
    assert len(list((workdir / "many").iterdir())) == 50


def test_a_torn_copy_is_made_again_and_other_code_is_copied_over(tmp_path):
    workdir = tmp_path / "workdir"
    (tmp_path / "workdir.partial").mkdir()
    (tmp_path / "workdir.partial" / "junk").write_text("x")
    data, digest = archive(*GOOD)
    code.working_copy(code.unpack(io.BytesIO(data), digest, tmp_path), workdir)
    assert not (workdir / "junk").exists()
    (workdir / "mine").write_text("kept")
    data, digest = archive(("train.py", "print(2)", FILE), ("lib", "train.py", LINK), ("mine/x", "x", FILE))
    code.working_copy(code.unpack(io.BytesIO(data), digest, tmp_path), workdir)
    assert (workdir / "train.py").read_text() == "print(2)"
    assert (workdir / "lib").read_text() == "print(2)"
    assert (workdir / "mine" / "x").read_text() == "x"


def test_unused_code_is_swept(tmp_path):
    digests = []
    for text in "ab":
        data, digest = archive(("train.py", text, FILE))
        code.unpack(io.BytesIO(data), digest, tmp_path)
        digests.append(digest)
    assert code.sweep(tmp_path, [digests[0]]) == [digests[1]]
    assert left(tmp_path) == [digests[0], f"{digests[0]}.boot", f"{digests[0]}.lock"]
    assert code.sweep(tmp_path / "none", []) == []
