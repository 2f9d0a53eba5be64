"""Garbage collection, kept out of where very many objects are made and none of them is garbage."""

from __future__ import annotations

import contextlib
import gc
from typing import Iterator


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """Without it for the block: with 20,000 tensors, looking through all of their descriptions again and again took
    half of the time of reading them.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
