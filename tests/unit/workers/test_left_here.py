"""What an agent makes of what earlier ones left on its machine, before and after a resume."""

from __future__ import annotations

from orch.model.events import WorkerEnded
from orch_workers.config import WorkerConfig
from orch_workers.left_here import left_here
from orch_workers.reports import Reports
from orch_workers.written import write_down


def config(tmp_path, attempt: int, **more) -> WorkerConfig:
    roots = {"node_root": str(tmp_path / "node"), "logs_root": str(tmp_path / "logs")}
    made = WorkerConfig(
        job_id="job-1", attempt=attempt, run="true", storage_url="/s", workdir="/w", **roots, **more
    )
    made.paths.state.mkdir(parents=True, exist_ok=True)
    return made


def test_an_end_before_a_resume_is_not_that_of_the_job_that_goes_on(tmp_path):
    first = config(tmp_path, 1)
    reports = Reports(first.paths.state, 1, 0)
    reports.add(WorkerEnded(attempt=1, rank=0, outcome="failed", reason="crash loop"))
    write_down(first.paths.done, {"generation": "000001.000001", "step": 7})
    write_down(first.paths.undelivered, {"problems": ["model.pt"]})

    replaced = config(tmp_path, 2)
    restart, end, done = left_here(replaced, Reports(replaced.paths.state, 2, 0))
    assert (restart, end["outcome"], done["step"]) == (0, "failed", 7)

    resumed = config(tmp_path, 2, resumed=2)
    assert left_here(resumed, Reports(resumed.paths.state, 2, 0)) == (0, None, None)
    assert not resumed.paths.done.exists()
    assert not resumed.paths.undelivered.exists(), "the working area is in use again"


def test_an_end_after_the_resume_counts(tmp_path):
    resumed = config(tmp_path, 3, resumed=2)
    Reports(resumed.paths.state, 2, 0).add(WorkerEnded(attempt=2, rank=0, outcome="failed", reason="again"))
    write_down(resumed.paths.done, {"generation": "000002.000001", "step": 9})
    _, end, done = left_here(resumed, Reports(resumed.paths.state, 3, 0))
    assert (end["reason"], done["step"]) == ("again", 9)


def test_memory_of_before_a_branch_is_not_trusted_without_a_look_into_storage(tmp_path):
    assert config(tmp_path, 4).trusted_from == 3
    assert config(tmp_path, 4, resumed=4, branch=4).trusted_from == 4
    assert config(tmp_path, 9, resumed=4, branch=4).trusted_from == 8
