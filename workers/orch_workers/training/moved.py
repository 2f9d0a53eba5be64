"""A state that other ranks have saved than those that go on with it: what no rank of them ever had is made anew."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import rng
from .indexed import derived_seed

if TYPE_CHECKING:
    from .batches import Batches
    from .position import Position
    from .snapshot import Adapters


def settle(moved: dict[str, Any], position: Position, batches: Batches, adapters: Adapters) -> str:
    """`moved`: how many ranks have saved it, and whose part this rank has taken. Returns, as a sentence, what a restart
    is not exact in.

    Two ranks that have taken one's part would draw the same numbers: the one that has no part of its own draws others,
    which follow from those.
    """
    saved_by, taken, onto, own = (int(moved[name]) for name in ("ranks", "rank", "onto", "as"))
    batches.moved = True
    if taken != own and batches.random_now is not None:
        active = adapters.active()
        rng.restore(batches.random_now, active)
        rng.seed_all(derived_seed(batches.seed, "rank", own), active)
        batches.random_now = rng.capture(active)
        position.forget_random(batches.random_now)
    if saved_by == onto:
        return f"what rank {taken} of {saved_by} saved is divided over the ranks in another way"
    return (
        f"it was saved by {saved_by} ranks and goes on with {onto}: random numbers, and which samples meet in a "
        "batch, are others than in an undisturbed run"
    )
