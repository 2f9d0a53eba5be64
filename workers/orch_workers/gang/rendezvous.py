"""Where the processes of one generation meet: a port that no process of an older one knows, and who sits where.

torch.distributed needs no more than the environment: `init_process_group()` reads RANK, WORLD_SIZE, MASTER_ADDR and
MASTER_PORT, and rank 0's process opens the store at that port. The store lives in that process, so it is a new and
empty one in every generation: nobody can wait in it for somebody who is dead. (torchrun needs a prefix in the store
beside that, because its store outlives the processes.)
"""

from __future__ import annotations

import random
import socket
from collections.abc import Mapping

from orch_workers.gang.words import Place, Seat
from orch_workers.process.environment import LOOPBACK

PORT_MIN, PORT_MAX = 20_000, 32_000
"""Below the ports that Linux gives to outgoing connections (ip_local_port_range): between the look and the start of
rank 0's process nobody gets it by chance."""
PORT_TRIES_MAX = 200
LANES = 97
"""Ranks of one machine look among different ports: none takes what another has found free and has not opened yet."""


def fresh_port(taken: int = 0, lane: int = 0) -> int:
    """A port of this machine that nothing listens at, and not the one that was `taken` last. OSError: there is none.

    Of two callers with different lanes none gets the other's.
    """
    for _ in range(PORT_TRIES_MAX):
        port = random.randrange(PORT_MIN + lane, PORT_MAX, LANES)
        if port != taken and _is_free(port):
            return port
    raise OSError(f"no free port between {PORT_MIN} and {PORT_MAX} was found in {PORT_TRIES_MAX} tries")


def seats(places: Mapping[int, Place]) -> tuple[Seat, ...]:
    """By rank: its number among the ranks of its machine, how many these are, and the GPUs that it sees.

    Scripts take `cuda:LOCAL_RANK`, as torchrun has taught them. So where every rank has one GPU, each of a machine's
    ranks sees all of these, in the order of their local ranks; where ranks have more of them, or share one, each sees
    its own.
    """
    found = []
    for rank, place in sorted(places.items()):
        here = [other for other, where in sorted(places.items()) if where.node == place.node]
        devices = [places[other].devices for other in here]
        shared = place.devices
        apart = len(set(devices)) == len(devices)  # not where ranks share a GPU
        if apart and all(_is_one(each) for each in devices):
            shared = ",".join(str(each) for each in devices)
        found.append(Seat(local_rank=here.index(rank), local_world_size=len(here), devices=shared))
    return tuple(found)


def master_address(places: Mapping[int, Place]) -> str:
    """Rank 0's address as the others reach it; loopback where all are on one machine."""
    if len({place.node for place in places.values()}) == 1:
        return LOOPBACK
    return places[0].address


def lane_of(rank: int) -> int:
    """For a rank's own port; the first lane is the meeting place's."""
    return 1 + rank % (LANES - 1)


def peers(places: Mapping[int, Place], ports: Mapping[int, int]) -> tuple[str, ...]:
    """Where each rank's process may open a server, by rank; nothing where a rank has named no port."""
    if not all(ports.values()):
        return ()
    alone = len({place.node for place in places.values()}) == 1
    return tuple(
        f"{LOOPBACK if alone else places[rank].address}:{port}" for rank, port in sorted(ports.items())
    )


def _is_one(devices: str | None) -> bool:
    return devices is not None and devices != "" and "," not in devices


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True
