"""Rules of the lifecycle: a place that is given up with notice, and machines that are not to be used again."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from orch.control.lifecycle_common import STOP_MARGIN_S, Step, awaited, us, with_agent
from orch.control.lifecycle_placing import gone
from orch.model.commands import StopAgents
from orch.model.states import AgentStatus, State
from orch_policies.restart import Failure

if TYPE_CHECKING:
    from orch.model.events import PreemptionNoticed, PreemptRequested
    from orch.model.states import JobState

CORDON_PAST_S = 30.0
"""How long after its deadline a machine that is still there is believed to stay: some go late, none is early."""
CORDON_UNKNOWN_S = 120.0
"""The same where no deadline is known."""


def noticed(job: JobState, event: PreemptionNoticed, now_us: int) -> Step:
    """The worker acts by itself, before anybody else can; here it is remembered why, and the machine is cordoned."""
    if not event.leaves:
        return Step(job, (), "it saves its state and stays")
    job = with_agent(job, event.rank, notice=event.reason)
    if job.agents[event.rank].status is AgentStatus.STARTING:
        job = with_agent(job, event.rank, status=AgentStatus.UP)  # whoever tells this answers
    if event.node_id:
        until_us = (
            now_us + us(CORDON_UNKNOWN_S)
            if event.deadline_us is None
            else max(now_us, event.deadline_us) + us(CORDON_PAST_S)
        )
        still = {node: until for node, until in job.cordoned.items() if until > now_us}
        job = replace(job, cordoned={**still, event.node_id: until_us})
    if job.state is State.STOPPING:
        return Step(job)
    job = replace(job, reason=f"leaves its place: {event.reason}")
    cordoned = "; nothing is placed on this machine for now" if event.node_id else ""
    return Step(job, (), f"saves and leaves, to be placed again{cordoned}")


def requested(job: JobState, event: PreemptRequested, now_us: int) -> Step:
    """Asked again with less time, the sooner end counts."""
    if not awaited(job):
        return gone(job, Failure("preempted", step=job.step, message=event.reason), now_us)
    deadline_us = now_us + us(event.grace_s + STOP_MARGIN_S)
    if job.stop_deadline_us is not None and deadline_us >= job.stop_deadline_us:
        return Step(job, (), "it leaves already, and sooner")
    for rank in awaited(job):
        job = with_agent(job, rank, notice=event.reason)
    job = replace(job, stop_deadline_us=deadline_us, reason=f"leaves its place: {event.reason}")
    stop = StopAgents(
        attempt=job.attempt, grace_s=event.grace_s, deadline_us=deadline_us, notice=event.reason
    )
    return Step(job, (stop,), f"leaves with {event.grace_s:g} s of grace, to be placed again")
