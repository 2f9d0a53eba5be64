"""Staying with a job: its log as it grows, what happens to it, and its end as an exit code."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orch.cli.humans import between_s, count, one_line, span
from orch.cli.interrupting import heard
from orch.cli.output import say, write_bytes, write_json_line, write_line
from orch.cli.story import ROUTINE, told
from orch.model.errors import Blocked, JobCancelled, JobFailed, NoServer, OrchError, TimedOut

if TYPE_CHECKING:
    from orch.api.client import Client, LogPart

Document = dict[str, Any]

POLL_S = 2.0
"""How long one request waits for output: what happens to a silent job is told after so long at most."""
NEWS_EVERY_S = 1.0
"""A job that writes without pause is asked so often at most what else happens to it."""

ENDED = frozenset({"SUCCEEDED", "FAILED", "CANCELLED"})
_ERRORS: dict[str, type[OrchError]] = {"FAILED": JobFailed, "CANCELLED": JobCancelled, "BLOCKED": Blocked}


def outcome_sentence(job: Document) -> str:
    """`digits-x7k2m SUCCEEDED after 3m12s, at step 900`; with the reason where it did not succeed."""
    text = f"{job['id']} {job['state']}"
    if job["state"] in ENDED:
        text += f" after {span(between_s(job.get('submitted'), job.get('ended')))}"
    if job.get("step") is not None:
        text += f", at step {job['step']}"
    if job.get("restarts"):
        text += f", {count(job['restarts'], 'restart')}"
    reason = one_line(job.get("reason"))
    return f"{text}: {reason}" if reason and job["state"] != "SUCCEEDED" else text


def exit_code(job: Document) -> int:
    """What the job's state means for who waited: SUCCEEDED 0, FAILED 1, CANCELLED 3, BLOCKED 7."""
    kind = _ERRORS.get(job["state"])
    return kind.exit_code if kind else 0


@heard()
def wait_over(
    client: Client, job: str, timeout_s: float | None = None, *, blocked_ends: bool = True
) -> Document:
    """The job's document once it is over, or (`blocked_ends`) once a person must act. TimedOut."""
    from orch.api.client import FOLLOW_PATIENCE_S, LONG_POLL_S

    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    found = client.job(job)  # the first call has no patience: where no server runs, one is told so at once
    after = 0
    while not _over(found, blocked_ends=blocked_ends):
        left_s = LONG_POLL_S if deadline is None else deadline - time.monotonic()
        if left_s <= 0:
            raise TimedOut(f"{job} is {found['state']} after {span(timeout_s)}; it goes on")
        patience_s = FOLLOW_PATIENCE_S if deadline is None else min(FOLLOW_PATIENCE_S, left_s)
        page = client.events(job, after=after, wait_s=min(left_s, LONG_POLL_S), patience_s=patience_s)
        after = page.next_after
        found = job_as_it_stands(client, job, after)
    return found


def job_as_it_stands(client: Client, job: str, after: int = 0) -> Document:
    """The job's document. A server that is being restarted is waited for: the job goes on meanwhile."""
    from orch.api.client import FOLLOW_PATIENCE_S

    deadline = time.monotonic() + FOLLOW_PATIENCE_S
    while True:
        try:
            return client.job(job)
        except NoServer:
            if time.monotonic() > deadline:
                raise
        # This call has patience, and finds a server that came back at another address.
        client.events(job, after=after, patience_s=FOLLOW_PATIENCE_S)


def _over(job: Document, *, blocked_ends: bool) -> bool:
    return job["state"] in ENDED or (blocked_ends and job["state"] == "BLOCKED")


@dataclass(frozen=True, slots=True)
class LogView:
    """What of a log is shown, and how."""

    rank: int = 0
    attempt: int | None = None
    tail: int | None = None
    timestamps: bool = False
    as_json: bool = False

    def show(self, part: LogPart) -> None:
        if part.data:
            write_bytes(part.data)
        for line in part.lines:
            if self.as_json:
                write_json_line({"attempt": part.attempt, "rank": self.rank, **line})
            else:
                write_line(f"{line.get('time') or '-':27}  {line['text']}")


class LogFollower:
    """Shows a job's log from attempt to attempt until the job is over; notices go to stderr as they come."""

    def __init__(self, client: Client, job: str, view: LogView, *, notices: bool = True) -> None:
        from orch.api.client import FOLLOW_PATIENCE_S

        self._client, self._job, self._view = client, job, view
        self._patience_s = FOLLOW_PATIENCE_S
        self._notices = notices
        self._after = 0
        self._looked = -NEWS_EVERY_S

    @heard()
    def run(self) -> Document:
        """The job's document when there is nothing more to show: it is over, or BLOCKED."""
        current, offset, tail = self._view.attempt, 0, self._view.tail
        was_blocked = False
        self._skip_past_news()
        while True:
            part = self._client.logs(
                self._job,
                rank=self._view.rank,
                attempt=current,
                offset=offset,
                tail=tail,
                timestamps=self._view.timestamps or self._view.as_json,
                wait_s=POLL_S,
                patience_s=self._patience_s,
            )
            self._view.show(part)
            if part.attempt:
                current, offset, tail = part.attempt, part.next_offset, None
            silent = not part.data and not part.lines
            self._tell_news()
            if part.ended and (self._view.attempt is not None or part.next_attempt is None):
                return job_as_it_stands(self._client, self._job, self._after)
            if part.ended and part.next_attempt is not None:
                current, offset = part.next_attempt, 0
            elif silent:
                # Blocked: no more output will come of it. Seen twice, so that its last words are not missed.
                found = job_as_it_stands(self._client, self._job, self._after)
                if was_blocked and found["state"] == "BLOCKED":
                    return found
                was_blocked = found["state"] == "BLOCKED"

    def _skip_past_news(self) -> None:
        """Who begins to follow wants what happens from now on, not the whole story again."""
        while self._notices:
            page = self._client.events(self._job, after=self._after)
            self._after = page.next_after
            if not page.events:
                return

    def _tell_news(self) -> None:
        now = time.monotonic()
        if not self._notices or now - self._looked < NEWS_EVERY_S:
            return
        self._looked = now
        page = self._client.events(self._job, after=self._after, patience_s=self._patience_s)
        self._after = page.next_after
        for event in page.events:
            if event["type"] not in ROUTINE:
                say(f"orch: {told(event)}")


def keeps_running(job: str) -> str:
    """What the person is told who leaves while following."""
    again = f"follow it again with `orch logs -f {job}`, end it with `orch cancel {job}`"
    return f"\norch: {job} keeps running; {again}"
