"""`orch drill`: at which steps the run is killed, and why two runs that should be equal are not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

OWN = "~orch"
"""What orch keeps beside the script's own state, in a checkpoint's tree."""
POSITION = f"{OWN}.position"
IGNORED = (f"{OWN}.seed", f"{OWN}.inexact")
"""Says nothing about the result: a seed that was not used, and what a restart itself has to say."""
CHECKPOINTS_WANTED = 20
"""About so many are compared, so that the first difference is found to a twentieth of the run."""


def kill_steps(steps: int, kills: int) -> tuple[int, ...]:
    """`kills` different steps spread evenly over the run, none of them its first or its last."""
    spread = (round((number + 1) * steps / (kills + 1)) for number in range(kills))
    return tuple(sorted({step for step in spread if 1 < step < steps}))


def save_every(steps: int) -> int:
    """Steps between the drill's checkpoints. Prime to the kills' distance often enough that work is lost at a kill."""
    return max(1, steps // CHECKPOINTS_WANTED)


def generator_of(path: str) -> str | None:
    """Whose random state stands at this path: "python", "numpy", a framework; None where it is something else."""
    parts = path.split(".")
    if parts[0] != OWN or "random" not in parts[:-1]:
        return None
    return parts[parts.index("random") + 1]


def counts(path: str, unseeded: Collection[str] = ()) -> bool:
    """Whether a difference at this path of the checkpoint means that the runs differ.

    `unseeded`: generators whose states differ before anything was killed. If the script uses one, its own state shows
    it; if not, they mean nothing.
    """
    if any(path == name or path.startswith(f"{name}.") for name in IGNORED):
        return False
    return generator_of(path) not in unseeded


@dataclass(frozen=True)
class Reason:
    """`sentence` for people; `kind` for programs: "unseeded", "nondeterministic", "learning_rate", "random",
    "position", "state".
    """

    kind: str
    sentence: str


def likely_reason(
    paths: Sequence[str], *, first_step: int, undisturbed_differ_at: int | None, told: Iterable[str] = ()
) -> Reason:
    """Why the killed run differs from the undisturbed one.

    `paths`: what differs in the first pair of checkpoints that is not equal, of step `first_step`.
    `undisturbed_differ_at`: the first step at which two undisturbed runs differ from one another; None: they are
    equal. `told`: what orch itself said about the restarts.
    """
    if undisturbed_differ_at is not None:
        return _without_kills(undisturbed_differ_at)
    for sentence in told:
        return Reason("told", f"orch said so when it restarted: {sentence}")
    if rates := [path for path in paths if _is_learning_rate(path)]:
        return Reason(
            "learning_rate",
            f"the learning rate is another one after the restart ({rates[0]}): is there a scheduler that is not given "
            f"to orch.training()? Pass it (`scheduler=scheduler`), so that it goes on where it was",
        )
    theirs = [path for path in paths if not path.startswith(f"{OWN}.")]
    if not theirs and any(generator_of(path) for path in paths):
        return Reason(
            "random",
            "only the random states differ: after the restart something drew random numbers that the undisturbed run "
            "did not draw there, or drew them from a generator of its own; draw inside the loop, and pass your own "
            "generators to orch.training()",
        )
    if any(path.startswith(POSITION) for path in paths):
        return Reason(
            "position",
            "the place in the data differs: iterate the loader with `run.batches(loader)` inside `run.epochs(…)`, "
            "so that a restart goes on at the next batch",
        )
    return Reason(
        "state",
        "something that changes the result is not in the checkpoint, or the data came in another order: pass to "
        "orch.training() whatever lives from step to step (scheduler, scaler, moving averages, generators of your "
        f"own), and iterate data with run.batches. The runs were equal before step {first_step}",
    )


def _without_kills(step: int) -> Reason:
    if step <= 1:
        return Reason(
            "unseeded",
            "two undisturbed runs differ too, from the first step on: the script starts from random numbers that "
            "nobody seeded (torch.manual_seed, numpy.random.seed, random.seed, a generator of its own), so no restart "
            "can give the same bytes",
        )
    return Reason(
        "nondeterministic",
        f"two undisturbed runs differ too, from step {step} on: an operation does not give the same bytes twice (see "
        f"torch.use_deterministic_algorithms), or something depends on time, on threads or on the order of files",
    )


def _is_learning_rate(path: str) -> bool:
    parts = path.split(".")
    return "param_groups" in parts and parts[-1] in {"lr", "learning_rate"}
