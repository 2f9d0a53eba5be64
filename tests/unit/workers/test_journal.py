from __future__ import annotations

import json
import os
import subprocess
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orch_workers.journal import LINE_BYTES_MAX, Journal, JournalDamagedError, read_journal

ENTRIES = [{"seq": 1, "text": "ä\n\r\u2028"}, {"seq": 2, "empty": {}}, {"seq": 3}]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "journal.jsonl"


def write(path, entries):
    journal = Journal(path)
    for entry in entries:
        journal.append(entry)
    journal.close()


def test_what_was_appended_is_read_in_order_across_openings(path):
    assert read_journal(path) == []
    write(path, ENTRIES[:2])
    write(path, ENTRIES[2:])
    assert read_journal(path) == ENTRIES
    assert path.stat().st_mode & 0o777 == 0o600


@given(cut=st.integers(min_value=0, max_value=200), rubbish=st.binary(max_size=20))
def test_wherever_it_is_torn_the_whole_entries_survive_and_the_next_is_readable(
    tmp_path_factory, cut, rubbish
):
    path = tmp_path_factory.mktemp("journal") / "journal.jsonl"
    write(path, ENTRIES)
    content = path.read_bytes()[:cut]
    whole = content.count(b"\n")
    torn = b"".join(rubbish.split(b"\n")) if len(content) < cut else b""
    path.write_bytes(content + torn)
    assert read_journal(path) == ENTRIES[:whole]
    write(path, [{"seq": 4}])
    assert read_journal(path) == [*ENTRIES[:whole], {"seq": 4}]


def test_a_last_line_of_zeros_is_torn_too(path):
    write(path, ENTRIES)
    with path.open("ab") as file:
        file.write(b"\0" * 100 + b"\n")
    assert read_journal(path) == ENTRIES


def test_damage_in_the_middle_is_no_crash_and_is_not_passed_over(path):
    write(path, ENTRIES)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b'{"seq": 2,\n' + lines[2])
    with pytest.raises(JournalDamagedError, match="line 2"):
        read_journal(path)
    with pytest.raises(JournalDamagedError, match="line 2"):
        Journal(path)


def test_entries_of_several_threads_do_not_mix(path):
    journal = Journal(path)
    threads = [
        threading.Thread(target=lambda me=me: [journal.append({"me": me, "n": n}) for n in range(25)])
        for me in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    journal.close()
    entries = read_journal(path)
    assert [[e["n"] for e in entries if e["me"] == me] for me in range(4)] == [list(range(25))] * 4


def test_an_entry_is_on_disk_when_append_returns(path):
    code = (
        "import os, signal, sys; from pathlib import Path; from orch_workers.journal import Journal;"
        "Journal(Path(sys.argv[1])).append({'seq': 1}); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert read_journal(path) == [{"seq": 1}]


def test_an_entry_that_did_not_fit_leaves_no_trace(path, monkeypatch):
    journal = Journal(path)
    journal.append({"seq": 1})
    real = os.pwrite

    def half(descriptor, data, offset):
        if offset > len(b'{"seq":1}\n'):
            raise OSError(28, "No space left on device")
        return real(descriptor, data[:4], offset)

    monkeypatch.setattr(os, "pwrite", half)
    with pytest.raises(OSError, match="No space"):
        journal.append({"seq": 2})
    monkeypatch.setattr(os, "pwrite", real)
    journal.append({"seq": 3})
    journal.close()
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"seq": 1}, {"seq": 3}]


@pytest.mark.parametrize("entry", [{"x": "y" * LINE_BYTES_MAX}, {"x": float("nan")}])
def test_what_does_not_belong_into_a_journal_is_refused(path, entry):
    journal = Journal(path)
    with pytest.raises(ValueError, match=r"longer than|not JSON compliant"):
        journal.append(entry)
    journal.close()
    assert read_journal(path) == []
