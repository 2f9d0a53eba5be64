"""What jobs that are over left on a machine, and nodes that share one."""

from __future__ import annotations

from dataclasses import replace

from orch_workers.config import NODE_VARIABLE
from orch_workers.remains import jobs_here, sweep_remains
from orch_workers.sweep import remains


def others(machine, *jobs, ranks=1):
    made = []
    for job in jobs:
        for rank in range(ranks):
            paths = machine.config(job_id=job, rank=rank).paths
            paths.make()
            (paths.snapshots / "slot-0").touch()
            made.append(paths)
    return made


def test_what_is_over_is_swept_and_the_rest_stays(machine):
    own = machine.config().paths
    own.make()
    gone, kept = others(machine, "old-1a2b"), others(machine, "busy-1a2b")
    asked = []

    def over(jobs):
        asked.extend(jobs)
        return ["old-1a2b"]

    assert sweep_remains(own, over) == ["old-1a2b"]
    assert asked == ["busy-1a2b", "old-1a2b"]
    assert not any(remains(paths) for paths in gone)
    assert len(remains(kept[0])) == 3
    assert len(remains(own)) == 3


def test_every_rank_of_it(machine):
    own = machine.config().paths
    gone = others(machine, "old-1a2b", ranks=3)
    assert sweep_remains(own, lambda jobs: jobs) == ["old-1a2b"]
    assert not any(remains(paths) for paths in gone)


def test_only_what_was_asked_about_and_never_oneself(machine):
    own = machine.config().paths
    own.make()
    others(machine, "old-1a2b")
    assert jobs_here(own) == ["old-1a2b"]
    assert sweep_remains(own, lambda _: [own.job_id, "../..", "never-1a2b"]) == []
    assert len(remains(own)) == 3


def test_nobody_is_asked_where_nothing_is(machine):
    assert sweep_remains(machine.config().paths, lambda _: 1 / 0) == []


def test_nodes_that_share_a_machine_have_nothing_in_common(machine):
    config = machine.config()
    one, two = (config.placed({NODE_VARIABLE: f"/node/{name}"}).paths for name in ("a", "b"))
    plain = config.placed({}).paths
    assert plain == config.paths
    for name in ("job", "state", "snapshots", "snapshots_job", "page"):
        places = {getattr(paths, name) for paths in (one, two, plain)}
        assert len(places) == 3, name
    assert len({paths.socket.parent.parent for paths in (one, two, plain)}) == 3
    assert one.log == two.log, "logs lie where the server reads them"
    assert replace(config, node_root="x").placed({NODE_VARIABLE: ""}).node_root == "x"
