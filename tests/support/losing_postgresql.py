"""A job whose server's PostgreSQL goes away: training goes on, crashes are recovered, and all is told later."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from orch.api.actor import LOG_NAME
from orch.control.home import Home
from support.journals import journalled
from support.postgres import Postgres
from support.recovery import STEPS, Victim, kill, starts
from support.server import Server, own_server, wait_for
from support.transitions import assert_nothing_twice

AWAY: dict[str, Callable[[Postgres], None]] = {
    "stopped": lambda postgres: postgres.stop(),
    "stopped at once": lambda postgres: postgres.stop(signal.SIGQUIT),
    "killed": lambda postgres: postgres.kill(),
    "frozen": lambda postgres: postgres.freeze(),
}


@contextmanager
def server_on(postgres: Postgres, *options: str) -> Iterator[Server]:
    """A server of its own whose store is a new database there."""
    with own_server(f"store: {postgres.database()}\n", *options) as server:
        yield server


def lose(
    server: Server, postgres: Postgres, how: str, rng: random.Random, undisturbed: bytes
) -> dict[str, Any]:
    """Meanwhile the training process is killed, and the controller, which finds no store when it is started again."""
    victim = Victim(server)
    victim.wait_event("CheckpointCommitted", lambda data: data["step"] > 1)
    victim.wait_step(rng.randrange(STEPS // 6, STEPS // 3))
    training = victim.events("ProcessStarted")[-1]["pid"]
    controller = Home(server.home).read_server()
    assert controller is not None
    AWAY[how](postgres)
    if how != "frozen":  # of that one, only its limit would tell
        told = wait_for("the server says so", lambda: server.client().server()["store_trouble"])
        assert postgres.password not in told
    recovered = journalled(server, victim, "Recovered")
    assert kill(training)
    wait_for("the leader has recovered it", lambda: journalled(server, victim, "Recovered") > recovered)
    committed = journalled(server, victim, "CheckpointCommitted")
    assert kill(controller.pid)
    wait_for("training goes on", lambda: journalled(server, victim, "CheckpointCommitted") > committed)
    if how == "frozen":
        postgres.thaw()
    else:
        postgres.start()
    detail = victim.finish()
    assert len(starts(detail)) == 2, starts(detail)
    assert_nothing_twice(server.client().events(victim.id).events)
    assert victim.final_bytes() == undisturbed, "the final bytes differ"
    assert server.client().server()["store_trouble"] is None
    victim.assert_nothing_left()
    assert postgres.password not in (server.home / LOG_NAME).read_text()
    return {"how": how, "adopted": bool(victim.events("Adopted"))}
