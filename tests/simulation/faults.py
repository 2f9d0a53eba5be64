"""What goes wrong with machines, storage and the training itself, beside plain deaths (world.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from simulation.cluster import Node
    from simulation.world import World

RESTART_CODE, STOP_CODE = 42, 7
"""Exit codes of the simulated command that `restart.on_exit_codes` names."""
REVIVE_MS = 700


class Flaws:
    """What is wrong with a job's own training: a crash at one step, a loss that is no number at another."""

    def __init__(self, world: World, steps: int) -> None:
        random = world.random
        self._crash_at, self._times, self._code = -1, 0, 1
        if world.chance(0.2):
            self._crash_at, self._times = random.randrange(steps), random.choice((1, 99))
            self._code = random.choice((1, 1, RESTART_CODE, STOP_CODE))
        self._bad_at = random.randrange(1, steps) if world.chance(0.1) else -1

    def mended(self) -> None:
        """A person has looked at the crash."""
        self._times = 0

    def crash(self, step: int) -> int | None:
        """The exit code with which it ends itself at `step`."""
        if step != self._crash_at or self._times == 0:
            return None
        self._times -= 1
        return self._code

    def turns_bad(self, step: int) -> bool:
        """The loss of `step` is no number; once, since the data of that step is left out then."""
        found, self._bad_at = self._bad_at == step, -1 if self._bad_at == step else self._bad_at
        return found


def poison(world: World, job: str, step: int) -> None:
    """What was saved from `step` on (by an earlier generation) is forgotten in memory and marked in storage."""
    storage = world.storages[job]
    storage.quarantine({point for point in storage.manifests if point[1] >= step})
    for node in world.nodes:
        for key, (_, saved) in list(node.memory.items()):
            if key[0] == job and saved >= step:
                del node.memory[key]


def drain_node(world: World) -> None:
    """Ray is told to drain it; what has not left in time dies with it."""
    node = world.random.choice(world.nodes)
    node.draining = True
    world.after(world.between(0, 1000), lambda: end_node(world, node))


def kill_node(world: World) -> None:
    node = world.random.choice(world.nodes)
    if node.alive:
        end_node(world, node)


def end_node(world: World, node: Node) -> None:
    if node.alive:
        world.end_node(node)
        for gang in world.gangs:
            if node.name in gang.nodes:
                gang.nodes = []  # Ray places its bundles anew
    world.after(REVIVE_MS, lambda: world.revive_node(node))


def hang(world: World) -> None:
    alive = [process for processes in world.running.values() for process in processes if process.alive]
    if alive:
        world.random.choice(alive).hung = True


def storage_away(world: World) -> None:
    storage = world.storages[world.some_job()]
    storage.away = True
    world.after(world.between(100, 3000), lambda: setattr(storage, "away", False))


def damage(world: World) -> None:
    """The newest checkpoint's bytes rot; found out when it is to be restored."""
    storage = world.storages[world.some_job()]
    newest = set(storage.restore_points()[:1])
    storage.quarantine(newest)
    if newest:
        world.met.add("damaged")
