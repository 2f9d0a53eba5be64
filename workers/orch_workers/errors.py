"""What ends a worker and is nobody's fault in the code."""

from __future__ import annotations


class SecretsUnavailableError(Exception):
    """The controller has the job's secrets and cannot open them: a person must act."""


class UnbuildableError(Exception):
    """The job's own Python environment cannot be had; the sentence says why.

    `outcome`: "failed" where what the job asks for cannot be right, "blocked" where a person must look at the machine.
    `tail`: the last lines of the tool.
    """

    def __init__(self, message: str, *, outcome: str = "failed", tail: str = "") -> None:
        super().__init__(message)
        self.outcome, self.tail = outcome, tail
