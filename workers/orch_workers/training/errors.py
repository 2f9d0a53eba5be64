"""What can go wrong on the training side, each with a sentence that says what to do next."""

from __future__ import annotations

from typing import Any, Sequence

PROBLEMS_SHOWN_MAX = 10


class TrainingError(RuntimeError):
    """Base of everything that orch raises inside a training process."""


class UnsupportedStateError(TrainingError, TypeError):
    """A value in the state is of a kind that no checkpoint can hold; the message has its path."""


class MismatchError(TrainingError):
    """The stored state does not fit the objects of this script. A restart cannot help."""

    def __init__(self, checkpoint: str, problems: Sequence[str]) -> None:
        self.checkpoint = checkpoint
        self.problems = list(problems)
        shown = [f"  - {problem}" for problem in self.problems[:PROBLEMS_SHOWN_MAX]]
        if len(self.problems) > PROBLEMS_SHOWN_MAX:
            shown.append(f"  - and {len(self.problems) - PROBLEMS_SHOWN_MAX} more")
        super().__init__(
            f"checkpoint {checkpoint} does not fit the objects given to orch.training():\n"
            + "\n".join(shown)
            + "\nEither bring the script back to what the checkpoint was made with, or start a new run: "
            "submit it as a new job, or (by hand) remove the .orch folder beside the script."
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return (MismatchError, (self.checkpoint, self.problems))


class RefusedError(TrainingError):
    """The agent does not take this process as its training process."""


class AgentLostError(TrainingError):
    """The agent has gone away; this process is about to be ended and started anew elsewhere."""
