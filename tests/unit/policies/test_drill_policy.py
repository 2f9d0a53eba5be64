from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orch_policies.drill import counts, generator_of, kill_steps, likely_reason, save_every


@given(st.integers(2, 10_000), st.integers(1, 50))
def test_kills_lie_inside_the_run_and_rise(steps, kills):
    at = kill_steps(steps, kills)
    assert len(at) <= kills
    assert list(at) == sorted(set(at))
    assert all(1 < step < steps for step in at)
    assert len(at) == kills or steps <= 2 * (kills + 1)


def test_kills_are_spread_evenly():
    assert kill_steps(60, 3) == (15, 30, 45)
    assert kill_steps(60, 1) == (30,)
    assert kill_steps(2, 1) == (), "its only step between is the first"


@pytest.mark.parametrize(("steps", "every"), [(1, 1), (19, 1), (60, 3), (2000, 100)])
def test_about_twenty_checkpoints_are_compared(steps, every):
    assert save_every(steps) == every


@pytest.mark.parametrize(
    ("path", "generator"),
    [
        ("~orch.random.python.1", "python"),
        ("~orch.position.streams.0.random.numpy.state.key", "numpy"),
        ("~orch.position.epoch", None),
        ("model.random.weight", None),
        ("~orch.random", None),
    ],
)
def test_whose_random_state_a_path_is(path, generator):
    assert generator_of(path) == generator


def test_what_says_nothing_about_the_result_does_not_count():
    assert not counts("~orch.seed")
    assert not counts("~orch.inexact.0")
    assert counts("~orch.random.numpy.state.key")
    assert not counts("~orch.random.numpy.state.key", {"numpy"})
    assert counts("~orch.random.torch.cpu", {"numpy"})
    assert counts("seed", {"numpy"}), "a value of the script's own"


STATE = ("model.0.weight",)


@pytest.mark.parametrize(
    ("paths", "undisturbed_differ_at", "told", "kind"),
    [
        (STATE, 1, (), "unseeded"),
        (STATE, 7, (), "nondeterministic"),
        (STATE, None, ("a restart of this run is not exact: persistent workers",), "told"),
        ((*STATE, "optimizer.param_groups.0.lr"), None, (), "learning_rate"),
        (("~orch.random.torch.cpu", "~orch.position.streams.0.random.torch.cpu"), None, (), "random"),
        ((*STATE, "~orch.position.streams.0.batches"), None, (), "position"),
        ((*STATE, "~orch.random.torch.cpu"), None, (), "state"),
        (("average.shadow.0",), None, (), "state"),
    ],
)
def test_the_likely_reason(paths, undisturbed_differ_at, told, kind):
    found = likely_reason(paths, first_step=9, undisturbed_differ_at=undisturbed_differ_at, told=told)
    assert found.kind == kind
    assert len(found.sentence) > 60
