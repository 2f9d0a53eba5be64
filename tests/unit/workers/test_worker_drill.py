from __future__ import annotations

import pytest

from orch_workers.drill import Drill
from orch_workers.training.page import Page
from orch_workers.training.protocol import EXIT_LEFT

DRILL = {"stop_at": 60, "kill_at": [15, 30]}


@pytest.mark.parametrize(
    ("restart", "step", "due"),
    [(1, 14, False), (1, 15, True), (1, 40, True), (2, 15, False), (2, 30, True), (3, 59, False)],
)
def test_one_kill_in_each_start(restart, step, due):
    assert Drill(DRILL).kill_is_due(restart, step) is due


def test_a_kill_is_pending_until_the_last_was_done():
    assert [Drill(DRILL).pending(restart) for restart in range(4)] == [False, True, True, False]


@pytest.mark.parametrize(
    ("code", "step", "over"),
    [(EXIT_LEFT, 60, True), (EXIT_LEFT, 59, False), (1, 60, False), (None, 60, False)],
)
def test_its_last_step_is_its_success(code, step, over):
    assert Drill(DRILL).is_over(code, step) is over


def test_the_process_is_told_where_to_leave(tmp_path):
    Page.make(str(tmp_path / "page"))
    page = Page(str(tmp_path / "page"))
    try:
        Drill(DRILL).prepare(page)
        word = page.read_word()
        assert (word.save_at, word.stop) == (60, True)
    finally:
        page.close()


def test_for_every_other_job_nothing_happens(tmp_path):
    Page.make(str(tmp_path / "page"))
    page = Page(str(tmp_path / "page"))
    try:
        before = page.read_word()
        Drill({}).prepare(page)
        assert page.read_word() == before
    finally:
        page.close()
    assert not Drill({}).kill_is_due(1, 10**9)
    assert not Drill({}).is_over(EXIT_LEFT, 10**9)
