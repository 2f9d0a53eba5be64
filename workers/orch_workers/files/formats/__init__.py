"""What a file that a script wrote is, whether it is whole, and which step it is of. Nothing of it is ever executed."""

from __future__ import annotations

from orch_workers.files.formats.examining import Examined, examine, numbers_in_name

__all__ = ["Examined", "examine", "numbers_in_name"]
