"""Which database the store is, and what is said when it cannot be."""

import sqlite3
import stat

import pytest

from orch.control.database import store_url
from orch.control.home import Home
from orch.control.store import Store
from orch.model.errors import NoServer, WrongUse
from support.stores import add


def test_file_is_private_and_in_wal_mode(home: Home, store: Store) -> None:
    add(store)
    for path in home.root.glob("orch.db*"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    connection = sqlite3.connect(home.database)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


def test_a_file_that_is_no_database_is_refused_with_a_sentence(home: Home) -> None:
    home.database.write_text("hello " * 1000)
    with pytest.raises(NoServer, match="cannot be opened"):
        Store.open(home, {})


def test_which_store(home: Home) -> None:
    assert store_url(home, {}).database == str(home.database)
    url = store_url(home, {"ORCH_STORE": "postgresql+psycopg://me:pass@host/orch"})
    assert url.drivername == "postgresql+psycopg"


@pytest.mark.parametrize(
    "given",
    ["mysql://me:pa55@host/db", "postgresql://me:pa55@host/db", "pa55", "sqlite://", "sqlite:///:memory:"],
)
def test_other_databases_are_refused_without_showing_a_password(home: Home, given: str) -> None:
    with pytest.raises(WrongUse, match="ORCH_STORE") as refused:
        store_url(home, {"ORCH_STORE": given})
    assert "pa55" not in str(refused.value)


def test_a_password_is_not_shown_when_the_store_cannot_be_opened() -> None:
    # Nothing listens on port 1; where psycopg is not installed, that is the reason given.
    with pytest.raises(NoServer, match="cannot be opened") as refused:
        Store("postgresql+psycopg://me:pa55@127.0.0.1:1/orch")
    assert "pa55" not in str(refused.value)
