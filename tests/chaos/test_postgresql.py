"""The store is PostgreSQL: it goes away under a job, while its training process and the controller die too."""

from __future__ import annotations

import random

import pytest

from support.losing_postgresql import AWAY, lose, server_on
from support.postgres import Postgres
from support.server import Server

pytestmark = pytest.mark.chaos


def test_it_goes_away_under_a_job(
    server: Server, postgres: Postgres, undisturbed: bytes, rng: random.Random
) -> None:
    """One way a session, by its seed; `python -m tests.soak postgresql` tries all of them."""
    how = rng.choice(list(AWAY))
    print(f"PostgreSQL {how}")
    with server_on(postgres) as own:
        lose(own, postgres, how, rng, undisturbed)
