from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orch.model.ids import (
    ID_CHARS_MAX,
    NAME_CHARS_MAX,
    default_name,
    make_job_id,
    name_from,
    name_problem,
    valid_job_id,
)


def test_an_id_is_the_name_and_a_short_suffix():
    job_id = make_job_id("digits", Random(1))
    name, _, suffix = job_id.rpartition("-")
    assert name == "digits"
    assert len(suffix) == 5
    assert make_job_id("digits", Random(1)) == job_id != make_job_id("digits", Random(2))


def test_the_longest_name_still_makes_a_valid_id():
    job_id = make_job_id("a" * NAME_CHARS_MAX, Random(1))
    assert len(job_id) == ID_CHARS_MAX
    assert valid_job_id(job_id)


BAD_NAMES = ["", "../up", "a b", "🦆", "x" * 300, "Digits", "-a", "a-", "a/b", "a\n", "a.b", "a_b", "é"]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_bad_names_are_refused(name):
    assert name_problem(name)
    with pytest.raises(ValueError, match="job name"):
        make_job_id(name, Random(1))


@pytest.mark.parametrize("job_id", ["", "a\n", "../a", "A", "-a", "a" * 64, "a/b", "a.b"])
def test_what_is_no_id_never_reaches_a_path(job_id):
    assert not valid_job_id(job_id)


@given(st.text(max_size=200))
def test_any_text_has_a_nearest_valid_name(text):
    name = name_from(text)
    assert name_problem(name) is None
    assert valid_job_id(make_job_id(name, Random(0)))


@pytest.mark.parametrize(
    ("workdir", "name"),
    [
        ("/home/me/My Run é", "my-run-e"),
        ("/", "job"),
        ("/a/🦆", "job"),
        ("/a/digits/", "digits"),
        ("/a/__x__", "x"),
    ],
)
def test_a_job_without_a_name_is_called_after_its_folder(workdir, name):
    assert default_name(workdir) == name
