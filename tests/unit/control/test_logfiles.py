import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orch.control.home import Home
from orch.control.logfiles import _tail_offset, read_logs
from orch.control.service import LogChunk, LogQuery
from orch.model.errors import WrongUse
from orch_workers.logs.redaction import Redactor


def write(home: Home, data: bytes, *, attempt: int = 1, rank: int = 0) -> None:
    path = home.log_path("a-1", attempt, rank)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def read(home: Home, *, newest: int = 1, ended: bool = False, **query: object) -> LogChunk:
    return read_logs(home, "a-1", LogQuery(**query), newest_attempt=newest, ended=ended)


def test_before_there_is_a_log(home: Home) -> None:
    chunk = read(home, newest=0)
    assert (chunk.data, chunk.attempt, chunk.ended) == (b"", 0, False)
    assert read(home, newest=0, ended=True).ended


def test_piece_by_piece(home: Home) -> None:
    write(home, b"0123456789")
    assert read(home, limit_bytes=4) == LogChunk(data=b"0123", attempt=1, offset=0, ended=False)
    assert read(home, offset=8).data == b"89"
    assert read(home, offset=10).data == b""
    assert not read(home, limit_bytes=4, ended=True).ended, "there is more to read"
    assert read(home, offset=4, ended=True).ended


def test_from_attempt_to_attempt(home: Home) -> None:
    write(home, b"one")
    write(home, b"three", attempt=3)
    first = read(home, newest=3)
    assert (first.data, first.attempt, first.ended, first.next_attempt) == (b"one", 1, True, 3)
    last = read(home, newest=3, attempt=3)
    assert (last.data, last.ended, last.next_attempt) == (b"three", False, None)
    between = read(home, newest=3, attempt=2)
    assert (between.data, between.attempt, between.ended, between.next_attempt) == (b"", 2, True, 3)


def test_an_agent_that_survives_goes_on_in_its_own_attempt(home: Home) -> None:
    write(home, b"one")
    write(home, b"other", attempt=2, rank=1)
    chunk = read(home, newest=2)
    assert (chunk.ended, chunk.next_attempt) == (False, None)


def test_an_attempt_that_never_was(home: Home) -> None:
    write(home, b"one")
    with pytest.raises(WrongUse, match="newest is 1"):
        read(home, attempt=2)
    assert read(home, attempt=2, newest=2).data == b""


def test_a_name_that_is_no_id_never_becomes_a_path(home: Home) -> None:
    with pytest.raises(WrongUse):
        read_logs(home, "../../etc", LogQuery(), newest_attempt=1, ended=False)


def test_tail_is_of_the_newest_attempt(home: Home) -> None:
    write(home, b"old\n")
    write(home, b"a\nb\nc\n", attempt=2)
    chunk = read(home, newest=2, tail_lines=2)
    assert (chunk.data, chunk.attempt, chunk.offset) == (b"b\nc\n", 2, 2)


@given(
    st.lists(st.binary(max_size=5).map(lambda line: line.replace(b"\n", b"")), max_size=20),
    st.booleans(),
    st.integers(0, 25),
)
def test_tail_is_what_splitlines_would_take(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], closed: bool, count: int
) -> None:
    data = b"\n".join(lines) + (b"\n" if closed and lines else b"")
    path = tmp_path_factory.getbasetemp() / "tail.log"
    path.write_bytes(data)
    pieces = data.split(b"\n")
    pieces = [piece + b"\n" for piece in pieces[:-1]] + ([pieces[-1]] if pieces[-1] else [])
    expected = b"".join(pieces[-count:]) if count else b""
    assert data[_tail_offset(path, len(data), count) :] == expected


def test_tail_of_a_long_log(home: Home) -> None:
    write(home, b"".join(b"line %d\n" % number for number in range(50_000)))
    chunk = read(home, tail_lines=20_000)
    assert chunk.data.startswith(b"line 30000\n")
    assert chunk.data.endswith(b"line 49999\n")


def test_when_what_was_seen(home: Home) -> None:
    write(home, b"one\ntwo\nthree\n")
    path = home.log_path("a-1", 1, 0)
    path.with_name(path.name + ".times").write_bytes(struct.pack("<QQQQ", 0, 100, 8, 200))
    assert read(home, times=True).times == [(0, 100), (8, 200)]
    assert read(home, times=True, offset=4).times == [(0, 100), (8, 200)]
    assert read(home, times=True, offset=9).times == [(8, 200)]
    assert read(home).times == ()


def test_secrets_are_blotted_out_wherever_a_piece_ends(home: Home) -> None:
    secret = b"hunter22"
    data = b"key=hunter22\nhunter22hunter22 and hunter2\n"
    write(home, data)
    redactor = Redactor([secret.decode()])
    expected = data.replace(secret, b"*" * 8)
    for limit in range(1, len(data) + 1):
        read_so_far = b""
        while len(read_so_far) < len(data):
            query = LogQuery(offset=len(read_so_far), limit_bytes=limit)
            chunk = read_logs(home, "a-1", query, newest_attempt=1, ended=True, redactor=redactor)
            read_so_far += chunk.data
        assert read_so_far == expected


def test_half_a_secret_is_not_shown_while_the_rest_may_come(home: Home) -> None:
    redactor = Redactor(["hunter22"])

    def shown(data: bytes, *, ended: bool) -> bytes:
        write(home, data)
        return read_logs(home, "a-1", LogQuery(), newest_attempt=1, ended=ended, redactor=redactor).data

    assert shown(b"progress ... hunter2", ended=False) == b"progress ... "
    assert shown(b"line\nhunt", ended=False) == b"line\n"
    assert shown(b"line\nhunt", ended=True) == b"line\nhunt"
    assert shown(b"line\nhunter22", ended=True) == b"line\n********"
    assert shown(b"", ended=False) == b""
