"""Trying again: how long to wait in between, and what is worth waiting for."""

from __future__ import annotations

import random
from collections.abc import Callable
from threading import Event
from typing import TypeVar

from orch_workers.checkpoint.errors import NotFound, StorageError, StorageRefused

T = TypeVar("T")

RETRY_MIN_S, RETRY_MAX_S = 0.5, 30.0
RETRY_JITTER = 0.3


def pause_s(tries: int) -> float:
    nominal_s = float(min(RETRY_MIN_S * 2 ** min(tries - 1, 16), RETRY_MAX_S))
    return nominal_s * (1 - RETRY_JITTER * random.random())


def patiently(
    ask: Callable[[], T], *, has_instead: bool, trouble: Callable[[str], object], stopping: Event
) -> T | None:
    """What storage answers, waited for; None when it is away or refuses and there is something instead.

    InterruptedError when the worker is to stop meanwhile; NotFound at once.
    """
    tries = 0
    while True:
        try:
            return ask()
        except NotFound:
            raise
        except StorageError as error:
            trouble(str(error))
            if has_instead:
                return None
            if isinstance(error, StorageRefused):
                raise
            if stopping.is_set():
                raise InterruptedError("stopped while storage was away") from error
            tries += 1
            stopping.wait(pause_s(tries))
