"""What ends a worker and is nobody's fault in the code."""

from __future__ import annotations


class SecretsUnavailableError(Exception):
    """The controller has the job's secrets and cannot open them: a person must act."""
