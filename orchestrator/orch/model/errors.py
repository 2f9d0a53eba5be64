"""What can go wrong for a person, and the exit code the CLI ends with (DESIGN section 4).

Every class is built from its message alone, so that an error survives pickling (Ray carries exceptions
between processes by pickle; a class with required keyword arguments arrives as something unreadable).
"""

# ruff: noqa: N818  The names say what is the matter, as one would say it to a person: "no such job", "no server".

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "EXIT_DONE",
    "Blocked",
    "JobCancelled",
    "JobFailed",
    "NeverPlaceable",
    "NoServer",
    "NoSuchJob",
    "OrchError",
    "TimedOut",
    "WrongUse",
]

EXIT_DONE = 0


class OrchError(Exception):
    """An error that is shown to a person as its message, without a traceback.

    The message says what happened, why, and what to do next.
    """

    exit_code: ClassVar[int] = 1
    code: ClassVar[str] = "error"
    """The name that the HTTP API gives this kind of error (`{"error": {"code": …}}`)."""

    def __init__(self, message: str = "") -> None:
        super().__init__(message)

    @property
    def message(self) -> str:
        return str(self)


class JobFailed(OrchError):
    """The job ended FAILED."""

    exit_code: ClassVar[int] = 1
    code: ClassVar[str] = "job_failed"


class WrongUse(OrchError):
    """What was asked for makes no sense: a bad job file, option or value. Nothing was started."""

    exit_code: ClassVar[int] = 2
    code: ClassVar[str] = "wrong_use"


class NeverPlaceable(OrchError):
    """The job asks for more than any machine of the cluster has; waiting cannot help."""

    exit_code: ClassVar[int] = 2
    code: ClassVar[str] = "never_placeable"


class JobCancelled(OrchError):
    """The job ended CANCELLED."""

    exit_code: ClassVar[int] = 3
    code: ClassVar[str] = "job_cancelled"


class NoSuchJob(OrchError):
    """No job of that id is known."""

    exit_code: ClassVar[int] = 4
    code: ClassVar[str] = "no_such_job"


class NoServer(OrchError):
    """No server answers."""

    exit_code: ClassVar[int] = 5
    code: ClassVar[str] = "no_server"


class TimedOut(OrchError):
    """The wait had a limit, and it passed."""

    exit_code: ClassVar[int] = 6
    code: ClassVar[str] = "timed_out"


class Blocked(OrchError):
    """The job waits for a person to act."""

    exit_code: ClassVar[int] = 7
    code: ClassVar[str] = "blocked"
