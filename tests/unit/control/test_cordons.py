"""Which machines are left alone, and which jobs have to wait for one of them."""

from __future__ import annotations

from orch.control.cluster import Node
from orch.control.cordons import cordoned, request_of, why_held
from orch.model.states import JobState, State
from orch_policies.placement import Request

S = 1_000_000
A, B = (Node(name * 4, f"10.0.0.{name}", 4.0, 0.0, 1e9) for name in ("1", "2"))
SMALL, LARGE = Request(cpus=1.0), Request(cpus=64.0)


def job(**cordons: int) -> JobState:
    return JobState(job="digits-x1", state=State.RUNNING, cordoned=cordons)


def test_a_cordon_holds_for_all_jobs_until_its_time_and_the_later_one_counts():
    jobs = [job(a=10 * S, b=20 * S), job(a=30 * S), job()]
    assert cordoned(jobs, 0) == {"a": 30 * S, "b": 20 * S}
    assert cordoned(jobs, 20 * S) == {"a": 30 * S}
    assert cordoned(jobs, 30 * S) == {}


def test_a_job_waits_only_where_a_cordoned_machine_is_all_that_could_hold_it():
    cordons = {A.node_id: 60 * S}
    assert why_held(SMALL, [A], cordons) == (
        "10.0.0.1 is to go away, so nothing is placed there until 00:01:00 UTC"
    )
    assert why_held(SMALL, [A, B], cordons) == ""
    assert why_held(SMALL, [B], cordons) == ""
    assert why_held(SMALL, [A, B], cordons | {B.node_id: 50 * S}).endswith("00:00:50 UTC")


def test_a_job_that_fits_nowhere_does_not_wait_for_a_cordon():
    assert why_held(LARGE, [A, B], {A.node_id: 60 * S}) == ""
    assert why_held(SMALL, [], {A.node_id: 60 * S}) == ""


def test_a_gang_that_needs_both_machines_waits_for_the_cordoned_one():
    gang = Request(workers=2, cpus=3.0)
    assert why_held(gang, [A, B], {A.node_id: 60 * S})
    assert not why_held(gang, [A, B], {})


def test_what_is_asked_for_comes_from_the_spec():
    spec = {"run": "true", "resources": {"workers": 2, "cpus": 0.5, "gpus": 1, "memory": "1GiB"}}
    assert request_of(spec) == Request(workers=2, cpus=0.5, gpus=1.0, memory_bytes=1 << 30)
