"""Exit codes are a promise to scripts; errors must survive the way through Ray."""

from __future__ import annotations

import pickle

import pytest

from orch.model import errors

EXIT_CODES = {
    "OrchError": 1,
    "JobFailed": 1,
    "WrongUse": 2,
    "NeverPlaceable": 2,
    "JobCancelled": 3,
    "NoSuchJob": 4,
    "NoServer": 5,
    "TimedOut": 6,
    "Blocked": 7,
}


@pytest.mark.parametrize(("name", "exit_code"), EXIT_CODES.items())
def test_exit_codes_are_those_of_the_design(name: str, exit_code: int) -> None:
    assert getattr(errors, name).exit_code == exit_code


def test_every_error_has_its_own_api_code() -> None:
    codes = [getattr(errors, name).code for name in EXIT_CODES]
    assert len(set(codes)) == len(codes)


@pytest.mark.parametrize("name", EXIT_CODES)
def test_errors_survive_pickling(name: str) -> None:
    error = getattr(errors, name)("no job named x: see `orch status`")
    # Our own bytes, made on the line above.
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert copy.message == error.message == "no job named x: see `orch status`"
