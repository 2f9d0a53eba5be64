"""Ctrl-C that gets through to a verb that waits.

Python raises KeyboardInterrupt wherever the main thread happens to be, and there are two places where it is lost. In
the finalizer of an answer that is thrown away (`io.IOBase` closes it then, and drops whatever its `close` raises,
without a word) the verb goes on as if nothing had been. And a signal that comes right before a system call is noticed
when that call returns, which for a long poll is half a minute later. So while a verb waits it is looked again and
again whether Ctrl-C was asked for, and it is raised until it has left the wait.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

LOOK_EVERY_S = 0.5


@contextlib.contextmanager
def heard() -> Iterator[None]:
    """Around a wait. Without effect where signals are somebody else's: another thread, SIGINT ignored, the alarm in
    use, no such timers (Windows).
    """
    if not _is_ours():
        yield
        return
    asked = False

    def interrupt(_number: int, _frame: Any) -> None:
        nonlocal asked
        asked = True
        raise KeyboardInterrupt

    def look(_number: int, _frame: Any) -> None:
        # That the alarm came is enough for a system call to be broken off, and a SIGINT before it to be noticed.
        if asked and not isinstance(sys.exc_info()[1], KeyboardInterrupt):
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt), signal.signal(signal.SIGALRM, look)
    try:
        signal.setitimer(signal.ITIMER_REAL, LOOK_EVERY_S, LOOK_EVERY_S)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGINT, before[0])
        signal.signal(signal.SIGALRM, before[1])


def _is_ours() -> bool:
    return (
        hasattr(signal, "setitimer")
        and threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        and signal.getitimer(signal.ITIMER_REAL)[0] == 0
    )
