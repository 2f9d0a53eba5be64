"""What tests do to a store, whichever database it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pytest
from sqlalchemy import Connection

from orch.control.database import open_engine, store_url
from orch.control.home import Home
from orch.control.rows import NewJob
from orch.control.store import Store
from orch.model.states import JobState, State


def add(
    store: Store, job: str = "a-1", state: State = State.QUEUED, at: int = 1000, **values: object
) -> None:
    values = {"name": "a", "spec": {"run": "x"}, "sealed_secrets": {}} | values
    with store.transaction() as transaction:
        transaction.insert_job(NewJob(**values), JobState(job=job, state=state, submitted_us=at, since_us=at))


BOTH = pytest.mark.parametrize("engine", ["sqlite", "postgresql"])
"""For a module whose tests hold on either database (the fixtures `engine` and `env`)."""


@contextmanager
def outside(home: Home, env: Mapping[str, str]) -> Iterator[Connection]:
    """A transaction of somebody else's on the same database."""
    engine = open_engine(store_url(home, env))
    try:
        with engine.connect().execution_options(orch_write=True) as connection, connection.begin():
            yield connection
    finally:
        engine.dispose()
