from __future__ import annotations

import queue
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orch_workers.checkpoint.errors import AlreadyExists, StorageUnavailable
from orch_workers.logs import worker_log as logs
from orch_workers.logs.redaction import Redactor
from orch_workers.logs.worker_log import LogShipper, last_lines, last_traceback, read_times, tail

LIMIT_S = 30.0


class FakeStorage:
    """Create-only, and away while `error` is set."""

    def __init__(self):
        self.objects = {}
        self.created = queue.SimpleQueue()
        self.error = None
        self.tried = threading.Event()

    def create(self, path, data):
        self.tried.set()
        if self.error is not None:
            raise self.error
        if path in self.objects:
            raise AlreadyExists(path)
        self.objects[path] = data
        self.created.put(path)

    def text(self, prefix):
        return b"".join(data for path, data in sorted(self.objects.items()) if path.startswith(prefix))


@pytest.fixture
def storage():
    return FakeStorage()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "rank-0.log"


def write(path, data):
    with path.open("ab") as file:
        file.write(data)


@pytest.fixture
def follow(path, storage):
    shippers = []

    def follow(**options):
        shippers.append(LogShipper(path, storage.create, "logs/000001.000001/0", **options))
        return shippers[-1]

    yield follow
    for shipper in shippers:
        shipper.close(0.1)


def test_what_is_written_reaches_storage_under_its_offset(follow, path, storage):
    shipper = follow()
    write(path, b"first\n")
    assert shipper.flush(LIMIT_S)
    write(path, b"second")
    assert shipper.close(LIMIT_S)
    assert storage.objects == {
        "logs/000001.000001/0/000000000000.log": b"first\n",
        "logs/000001.000001/0/000000000006.log": b"second",
    }


def test_without_being_asked_it_goes_after_a_while_and_up_to_the_end_of_a_line(
    follow, path, storage, monkeypatch
):
    monkeypatch.setattr(logs, "SHIP_AFTER_MIN_S", 0.01)
    follow()
    write(path, b"whole line\n 17%|##")
    name = storage.created.get(timeout=LIMIT_S)
    assert storage.objects[name] == b"whole line\n"


def test_a_long_log_goes_in_pieces_that_end_with_lines(follow, path, storage, monkeypatch):
    monkeypatch.setattr(logs, "CHUNK_BYTES", 100)
    shipper = follow()
    text = b"".join(b"line %d\n" % number for number in range(100)) + b"x" * 250
    write(path, text)
    assert shipper.close(LIMIT_S)
    assert storage.text("logs/") == text
    pieces = [data for _, data in sorted(storage.objects.items())]
    assert all(len(piece) <= 100 for piece in pieces)
    assert all(piece.endswith(b"\n") for piece in pieces[: len(text[:-250]) // 100])


def test_each_generation_has_its_own_prefix(follow, path, storage):
    shipper = follow()
    write(path, b"of the first\n")
    shipper.begin("logs/000001.000002/0")
    write(path, b"of the second\n")
    shipper.begin("logs/000001.000003/0")
    shipper.begin("logs/000001.000004/0")
    write(path, b"of the fourth\n")
    assert shipper.close(LIMIT_S)
    assert storage.objects == {
        "logs/000001.000001/0/000000000000.log": b"of the first\n",
        "logs/000001.000002/0/000000000013.log": b"of the second\n",
        "logs/000001.000004/0/000000000027.log": b"of the fourth\n",
    }


def test_what_was_there_before_belongs_to_somebody_else(follow, path, storage):
    write(path, b"of an earlier agent\n")
    shipper = follow()
    write(path, b"mine\n")
    assert shipper.close(LIMIT_S)
    assert storage.text("logs/") == b"mine\n"


def test_storage_that_comes_back_gets_everything(follow, path, storage, monkeypatch):
    monkeypatch.setattr(logs, "RETRY_MIN_S", 0.01)
    storage.error = StorageUnavailable("no answer")
    shipper = follow()
    write(path, b"while it was away\n")
    assert not shipper.flush(0.05)
    assert storage.tried.wait(LIMIT_S)
    storage.error = None
    assert shipper.flush(LIMIT_S)
    assert shipper.trouble == ""
    assert storage.text("logs/") == b"while it was away\n"


def test_storage_that_stays_away_does_not_hold_up_the_end_and_the_reason_is_known(follow, path, storage):
    storage.error = StorageUnavailable("no answer")
    shipper = follow()
    write(path, b"lost to storage, not to the file\n")
    assert not shipper.close(0.2)
    assert shipper.trouble == "StorageUnavailable: no answer"


def test_a_piece_that_is_there_already_counts_as_shipped(follow, path, storage):
    storage.objects["logs/000001.000001/0/000000000000.log"] = b"once\n"
    shipper = follow()
    write(path, b"once\n")
    assert shipper.flush(LIMIT_S)
    write(path, b"more\n")
    assert shipper.close(LIMIT_S)
    assert storage.text("logs/") == b"once\nmore\n"


def test_secrets_do_not_reach_storage(follow, path, storage, monkeypatch):
    monkeypatch.setattr(logs, "CHUNK_BYTES", 10)
    shipper = follow(redactor=Redactor(["hunter2!", "ok"]))
    write(path, b"the key is hunter2! ok\nhunter2!hunter2!\n")
    assert shipper.close(LIMIT_S)
    assert storage.text("logs/") == b"the key is ******** ok\n****************\n"


def test_times_say_when_each_part_was_seen(follow, path):
    before_us = time.time_ns() // 1000
    shipper = follow()
    write(path, b"12345")
    shipper.flush(LIMIT_S)
    shipper.close(LIMIT_S)
    later = follow()
    write(path, b"67890")
    later.close(LIMIT_S)
    after_us = time.time_ns() // 1000
    entries = read_times(path, 0, 10)
    assert [offset for offset, _ in entries] == [0, 5]
    assert before_us <= entries[0][1] <= entries[1][1] <= after_us
    assert read_times(path, 7, 10) == entries[1:]
    assert read_times(path, 2, 4) == entries[:1]
    assert read_times(path.with_name("other"), 0, 10) == []


def test_a_torn_entry_of_the_times_is_cut_off(follow, path):
    logs.times_path(path).write_bytes(b"x" * 7)
    shipper = follow()
    write(path, b"12345")
    shipper.close(LIMIT_S)
    assert [offset for offset, _ in read_times(path, 0, 5)] == [0]


def test_after_many_entries_the_times_become_coarse(follow, path, monkeypatch):
    monkeypatch.setattr(logs, "TIMES_FINE_MAX", 1)
    monkeypatch.setattr(logs, "TIMES_COARSE_S", 1e9)
    for data in (b"1", b"2", b"3"):
        shipper = follow()
        write(path, data)
        shipper.close(LIMIT_S)
    assert [offset for offset, _ in read_times(path, 0, 5)] == [0]


def test_the_tail_begins_with_a_whole_line(path):
    assert tail(path, 100) == ""
    write(path, b"one\ntwo\nthree \xff hunter2!\n")
    assert tail(path, 100) == "one\ntwo\nthree \ufffd hunter2!\n"
    assert tail(path, 20, Redactor(["hunter2!"])) == "three \ufffd ********\n"
    assert tail(path, 5) == "er2!\n"


# redaction


@given(st.lists(st.text(min_size=1, max_size=12), max_size=4), st.text(max_size=60), st.data())
def test_redaction_keeps_the_length_and_leaves_no_secret_wherever_it_is_cut(
    tmp_path_factory, secrets, text, data
):
    for secret in secrets:
        at = data.draw(st.integers(0, len(text)))
        text = text[:at] + secret + text[at:]
    raw = text.encode()
    redactor = Redactor(secrets)
    whole = redactor.redact(raw)
    assert len(whole) == len(raw)
    for secret in secrets:
        looked_for = secret.encode().strip()
        if len(looked_for) >= 4 and set(looked_for) != {ord("*")}:
            assert looked_for not in whole
    path = tmp_path_factory.mktemp("log") / "log"
    path.write_bytes(raw)
    cut = data.draw(st.integers(0, len(raw)))
    pieces = redactor.read(path, 0, cut) + redactor.read(path, cut, len(raw))
    assert pieces == whole


def test_the_lines_of_a_key_are_found_one_by_one():
    redactor = Redactor(["-----BEGIN\nabcdefgh\r\nijklmnop\n-----END\n"])
    assert redactor.redact_text("x abcdefgh y\nijklmnop") == "x ******** y\n********"


def test_without_secrets_nothing_changes():
    assert Redactor(["a", ""]).redact(b"a banana") == b"a banana"


# tracebacks


def run_python(tmp_path, code):
    script = tmp_path / "train.py"
    script.write_text(code)
    return subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False).stderr


def test_a_traceback_is_found_with_its_message(tmp_path):
    code = "raise RuntimeError('size mismatch:\\n\\tfc.weight: [10, 3]\\nsecond line')"
    output = run_python(tmp_path, f"def f():\n    {code}\nf()\n")
    found = last_traceback(f"epoch 1\nloss 0.5\n{output}\nafterwards\n")
    assert found is not None
    assert found.splitlines()[0] == "Traceback (most recent call last):"
    assert found.splitlines()[-3:] == ["RuntimeError: size mismatch:", "\tfc.weight: [10, 3]", "second line"]


def test_only_the_last_of_several_is_shown():
    one = 'Traceback (most recent call last):\n  File "a.py", line 1, in <module>\n    f()\nValueError: {}\n'
    found = last_traceback(one.format("first") + "retrying\n" + one.format("second"))
    assert found == one.format("second").rstrip()


def test_a_chain_is_shown_whole(tmp_path):
    output = run_python(
        tmp_path, "try:\n    1 / 0\nexcept Exception as e:\n    raise ValueError('no') from e\n"
    )
    found = last_traceback(output)
    assert found is not None
    assert "ZeroDivisionError: division by zero" in found
    assert found.endswith("ValueError: no")


def test_torchruns_prefix_is_taken_off(tmp_path):
    output = run_python(tmp_path, "1 / 0\n")
    prefixed = "".join(f"[rank0]: {line}\n" for line in output.splitlines())
    assert last_traceback(f"[W1] warning\n{prefixed}") == output.rstrip()


def test_a_script_that_is_no_python_shows_where(tmp_path):
    found = last_traceback("hello\n" + run_python(tmp_path, "def f(:\n"))
    assert found is not None
    assert found.splitlines()[0].endswith('train.py", line 1')
    assert "SyntaxError" in found.splitlines()[-1]


@pytest.mark.parametrize(
    "text", ["", "all is well\n", "usage: train.py [-h]\ntrain.py: error: no\n", "SyntaxError: x"]
)
def test_where_there_is_none_none_is_found(text):
    assert last_traceback(text) is None


def test_a_very_long_one_keeps_both_ends():
    text = (
        "Traceback (most recent call last):\n"
        + '  File "a.py", line 1, in f\n' * 5000
        + "RecursionError: deep\n"
    )
    found = last_traceback(text)
    assert found is not None
    assert len(found) < logs.TRACEBACK_CHARS_MAX + 100
    assert found.startswith("Traceback")
    assert found.endswith("RecursionError: deep")
    assert "characters left out" in found


def test_the_end_of_output_without_a_traceback() -> None:
    assert last_lines("one\ntwo\nthree\n\n", 2) == "two\nthree"
    assert last_lines("usage: x\n") == "usage: x"
    assert last_lines(" \n") is None
