"""Where ranks meet, and who sits where."""

from __future__ import annotations

import socket

import pytest

from orch_workers.gang import rendezvous
from orch_workers.gang.member import first_report
from orch_workers.gang.rendezvous import (
    LANES,
    PORT_MAX,
    PORT_MIN,
    fresh_port,
    lane_of,
    master_address,
    peers,
    seats,
)
from orch_workers.gang.words import Order, Place, Report


def place(node, devices=None):
    return Place(node=node, address=f"10.0.0.{ord(node)}", devices=devices)


def seated(*places):
    return [(seat.local_rank, seat.local_world_size, seat.devices) for seat in seats(dict(enumerate(places)))]


def test_ranks_are_counted_on_each_machine():
    assert seated(place("a"), place("b"), place("a"), place("b"), place("b")) == [
        (0, 2, None), (0, 3, None), (1, 2, None), (1, 3, None), (2, 3, None),
    ]  # fmt: skip


def test_ranks_with_one_gpu_each_see_those_of_their_machine_by_local_rank():
    found = seated(place("a", "2"), place("a", "0"), place("b", "1"))
    assert found == [(0, 2, "2,0"), (1, 2, "2,0"), (0, 1, "1")]


@pytest.mark.parametrize("devices", [("0,1", "2,3"), ("0", "0"), ("", "")])
def test_other_ranks_see_their_own_gpus(devices):
    assert [seat[2] for seat in seated(*(place("a", each) for each in devices))] == list(devices)


def test_they_meet_at_rank_0():
    assert master_address({0: place("a"), 1: place("b")}) == place("a").address
    assert master_address({0: place("a"), 1: place("a")}) == "127.0.0.1"


def test_a_port_is_free_and_not_the_last_one(monkeypatch):
    monkeypatch.setattr(rendezvous, "LANES", 1)
    with socket.socket() as taken:
        taken.bind(("", 0))  # not among those that gangs of other tests may have right now
        taken.listen()
        first = taken.getsockname()[1]
        monkeypatch.setattr(rendezvous, "PORT_MIN", first)
        monkeypatch.setattr(rendezvous, "PORT_MAX", first + 3)
        found = {fresh_port(first + 1) for _ in range(5)}
    assert found == {first + 2}
    monkeypatch.undo()
    assert PORT_MIN <= fresh_port() < PORT_MAX


def test_ranks_of_one_machine_never_find_the_same_port():
    found = {rank: fresh_port(lane=lane_of(rank)) for rank in range(8)}
    assert len({(port - PORT_MIN) % LANES for port in (*found.values(), fresh_port())}) == 9


def test_every_rank_has_a_port_of_its_own_for_its_servers():
    ports = {0: 20001, 1: 20002}
    assert peers({0: place("a"), 1: place("a")}, ports) == ("127.0.0.1:20001", "127.0.0.1:20002")
    assert peers({0: place("a"), 1: place("b")}, ports) == ("10.0.0.97:20001", "10.0.0.98:20002")
    assert peers({0: place("a"), 1: place("b")}, {0: 20001, 1: 0}) == (), "an agent that names none"


def test_no_port_is_an_error(monkeypatch):
    monkeypatch.setattr(rendezvous, "PORT_MAX", PORT_MIN + 1)
    with pytest.raises(OSError, match="no free port"):
        fresh_port(PORT_MIN)


def test_messages_of_a_newer_orch_are_read_as_far_as_they_are_known():
    report = first_report(3, 1, 1, place("a"))
    assert Report.from_dict({**report.to_dict(), "mood": "fine"}) == report
    order = Order(attempt=3, placed=1)
    assert Order.from_dict({**order.to_dict(), "mood": "fine"}) == order
    with pytest.raises(ValueError, match="attempt"):
        Order.from_dict({**order.to_dict(), "attempt": "three"})
