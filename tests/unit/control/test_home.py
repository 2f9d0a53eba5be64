import os
import stat
import threading
from pathlib import Path

import pytest

from orch.control.home import Home, ServerRecord, ensure_private_file, read_private_file
from orch.model.errors import NoServer, WrongUse


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_home_is_found_by_variable_else_by_platform(tmp_path: Path) -> None:
    assert Home.find({"ORCH_HOME": str(tmp_path / "x")}).root == tmp_path / "x"
    assert Home.find({}).root.name == "orch"
    assert Home.find({"ORCH_HOME": "relative"}).root.is_absolute()


def test_everything_is_for_its_owner_alone(home: Home) -> None:
    home.ensure_token()
    home.write_server(ServerRecord("http://127.0.0.1:1", 2, "0.1", "127.0.0.1:3"))
    assert mode(home.root) == 0o700
    assert mode(home.jobs) == 0o700
    assert mode(home.token) == 0o600
    assert mode(home.server_json) == 0o600


def test_a_home_left_open_is_closed(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir(mode=0o755)
    assert mode(Home(tmp_path / "home").ensure().root) == 0o700


def test_a_home_that_cannot_be_made_is_refused_with_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WrongUse, match="ORCH_HOME"):
        Home(tmp_path / "file" / "home").ensure()


def test_token_is_made_once(home: Home) -> None:
    token = home.ensure_token()
    assert len(token) == 64
    assert home.ensure_token() == token == home.read_token()
    assert home.ensure_ray_token() != token


def test_of_many_that_make_a_token_at_once_all_read_the_same(home: Home) -> None:
    found: list[str] = []
    start = threading.Barrier(8)

    def make() -> None:
        start.wait()
        found.append(home.ensure_token())

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert [path.name for path in home.root.iterdir() if "token" in path.name] == ["token"]


@pytest.mark.parametrize("bits", [0o640, 0o604, 0o666])
def test_a_token_that_others_can_read_is_refused(home: Home, bits: int) -> None:
    home.ensure_token()
    home.token.chmod(bits)
    with pytest.raises(WrongUse, match="chmod 600"):
        home.read_token()


def test_without_a_token_no_server_was_started(home: Home) -> None:
    with pytest.raises(NoServer, match="orch server start"):
        home.read_token()


def test_a_file_that_is_none_of_ours_is_refused(home: Home) -> None:
    for content in (b"x" * (65 << 10), b"\xff\xfe"):
        home.token.write_bytes(content)
        home.token.chmod(0o600)
        with pytest.raises(WrongUse):
            read_private_file(home.token)


def test_server_record_comes_back_and_damage_is_no_server(home: Home) -> None:
    assert home.read_server() is None
    record = ServerRecord("http://127.0.0.1:1", 2, "0.1", "127.0.0.1:3")
    home.write_server(record)
    assert home.read_server() == record
    for damage in ("", "[]", '{"url": "x"}', "{"):
        home.server_json.write_text(damage)
        assert home.read_server() is None
    home.forget_server()
    home.forget_server()
    assert not home.server_json.exists()


def test_a_private_file_is_never_seen_empty(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    path = home.root / "thing"
    seen: list[bool] = []
    link = os.link

    def watched(source: Path, target: Path) -> None:
        seen.append(path.exists())
        assert source.read_text() == "value\n"
        link(source, target)

    monkeypatch.setattr(os, "link", watched)
    assert ensure_private_file(path, lambda: "value") == "value"
    assert seen == [False]


def test_log_path(home: Home) -> None:
    assert home.log_path("a-1", 2, 3) == home.root / "jobs" / "a-1" / "attempt-000002" / "rank-3.log"
