"""The controller's clock while somebody sets the machine's."""

from __future__ import annotations

import random

from orch.control.clock import Clock

HOUR_NS = 3600 * 10**9
SECOND_NS = 10**9


class Machine:
    """A wall clock that can be set, and a steady one that cannot."""

    def __init__(self) -> None:
        self.wall_ns, self.steady_ns = 1_800_000_000 * SECOND_NS, 55 * SECOND_NS
        self.clock = Clock(lambda: self.wall_ns, lambda: self.steady_ns)

    def passes(self, ns: int) -> None:
        self.wall_ns += ns
        self.steady_ns += ns


def test_it_shows_the_wall_clock_s_time() -> None:
    machine = Machine()
    machine.passes(90 * SECOND_NS)
    assert machine.clock.now_us() == machine.wall_ns // 1000


def test_a_jump_is_not_a_jump() -> None:
    for jump_ns in (HOUR_NS, -HOUR_NS):
        machine = Machine()
        before_us = machine.clock.now_us()
        machine.wall_ns += jump_ns
        machine.passes(10 * SECOND_NS)
        passed_s = (machine.clock.now_us() - before_us) / 1e6
        assert 9.0 <= passed_s <= 11.0, f"ten seconds took {passed_s} after a jump"


def test_it_is_right_again_some_hours_later() -> None:
    for jump_ns in (HOUR_NS, -HOUR_NS):
        machine = Machine()
        machine.wall_ns += jump_ns
        for _ in range(11 * 60):
            machine.passes(60 * SECOND_NS)
            machine.clock.now_us()
        assert machine.clock.now_us() == machine.wall_ns // 1000


def test_it_never_goes_back() -> None:
    machine, rng = Machine(), random.Random(5)
    readings = []
    for _ in range(500):
        machine.wall_ns += rng.choice((0, HOUR_NS, -HOUR_NS, 7 * SECOND_NS, -7))
        machine.passes(rng.randrange(SECOND_NS))
        readings.append(machine.clock.now_us())
    assert readings == sorted(readings)


def test_a_new_one_begins_behind_what_is_written_down() -> None:
    machine = Machine()
    written_us = machine.clock.now_us() + 3_000_000
    machine.clock.not_before(written_us)
    assert machine.clock.now_us() == written_us
    machine.clock.not_before(written_us - 1)
    assert machine.clock.now_us() == written_us
