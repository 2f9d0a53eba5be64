"""Ctrl-C that gets through to a verb that waits.

Python raises KeyboardInterrupt wherever the main thread happens to be, and there are three places where that goes
wrong. In the finalizer of an answer that is thrown away (`io.IOBase` closes it then, and drops whatever its `close`
raises, without a word) the verb goes on as if nothing had been. A signal that comes right before a system call is
noticed when that call returns, which for a long poll is half a minute later. And in between a lock and its `with` it
leaves a lock behind that nobody gives back, for which the way out then waits for ever.

So while a verb waits (`heard`) it is looked again and again whether Ctrl-C was asked for, and it is raised until it
has left the wait; and requests are made beside the main thread (`beside`), in no code but ours to be interrupted.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")

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


def beside(call: Callable[[], T]) -> T:
    """What `call` returns or raises, from a thread that is left alone when the main thread is interrupted."""
    if threading.current_thread() is not threading.main_thread():
        return call()
    done, box = threading.Event(), list[Any]()

    def run() -> None:
        try:
            box.extend((True, call()))
        except BaseException as error:
            box.extend((False, error))
        finally:
            done.set()

    threading.Thread(target=run, name="request", daemon=True).start()
    while not done.wait(LOOK_EVERY_S):
        pass  # with a limit, so that a signal before the wait is noticed
    good, found = box
    if not good:
        raise found
    result: T = found
    return result
