"""A client of the HTTP API (docs/api.md): what the CLI is made of.

Light to import: urllib3 and the standard library. Documents come back as they were sent, as dictionaries.
Every call can be repeated without harm, so one that broke off is repeated for as long as its patience lasts;
then it is NoServer.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, Self
from urllib.parse import quote

import urllib3

from orch.api.transport import RETRY_PAUSE_S, Transport
from orch.model import errors
from orch.model.ids import valid_job_id

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from orch.control.home import Home

__all__ = ["Client", "EventPage", "LogPart"]

Document = dict[str, Any]

TRANSFER_LIMIT_S = 300.0
"""Longest silence while code or outputs travel."""
LONG_POLL_S = 25.0
SUBMIT_PATIENCE_S = 20.0
FOLLOW_PATIENCE_S = 180.0
"""A server that is restarted is waited for: what is followed goes on meanwhile."""
ANSWER_BYTES_MAX = 256 << 20
TRANSFER_CHUNK_BYTES = 1 << 20
JOBS_PAGE = 500


@dataclass(frozen=True)
class EventPage:
    events: list[Document]
    next_after: int
    """Ask with this for what comes next."""
    ended: bool
    """The job is over and this page holds its last event."""


@dataclass(frozen=True)
class LogPart:
    """A piece of one attempt's log. `lines` instead of `data` where time stamps were asked for."""

    data: bytes
    lines: list[Document]
    """`{"time", "text"}` each; `time` is null where it is not known."""
    attempt: int
    next_offset: int
    next_attempt: int | None
    ended: bool
    """The end of this attempt's log; there is nothing more at all unless there is a `next_attempt`."""


class Client:
    """Thread-safe. `locate` says where the server is now, for one that may come back elsewhere."""

    def __init__(
        self,
        url: str,
        token: str,
        *,
        locate: Callable[[], tuple[str, str]] | None = None,
        coming_back: Callable[[], bool] | None = None,
    ) -> None:
        self._transport = Transport(url, token, locate, coming_back)

    def tell_gaps(self, told: Callable[[str], None]) -> None:
        """`told` gets a sentence when a server that was followed stops answering, and is waited for."""
        self._transport.on_gap = told

    def carry_with(self, carry: Callable[[Callable[[], Any]], Any]) -> None:
        """`carry` makes each request, and returns or raises what it does."""
        self._transport.carry = carry

    @classmethod
    def find(cls, home: Home, env: Mapping[str, str] | None = None) -> Self:
        """`ORCH_URL` (with `ORCH_TOKEN`, else the home's token), else the server that the home has recorded.

        NoServer if there is neither; whether it answers shows with the first call.
        """
        names = os.environ if env is None else env
        url = names.get("ORCH_URL", "")
        if url:
            return cls(url, names.get("ORCH_TOKEN", "") or home.read_token())

        def locate() -> tuple[str, str]:
            record = home.read_server()
            if record is None:
                raise errors.NoServer(f"no server runs for {home.root}; start one with `orch server start`")
            return record.url, home.read_token()

        return cls(*locate(), locate=locate, coming_back=home.ray_lives)

    @property
    def url(self) -> str:
        return self._transport.url

    def close(self) -> None:
        self._transport.close()

    # Jobs

    def submit(
        self,
        spec: Mapping[str, Any],
        *,
        name: str | None = None,
        base_dir: str | None = None,
        code: Mapping[str, Any] | None = None,
        secrets: Mapping[str, str] | None = None,
        request: str | None = None,
    ) -> Document:
        """`spec`: `JobSpec.model_dump(mode="json")`; `code`: digest, size_bytes, git_commit, git_dirty of
        what `upload_code` has sent. Returns the job's detail document. Repeated with the same `request`,
        it answers with the job that is there.
        """
        body = {
            "spec": dict(spec),
            "name": name,
            "base_dir": base_dir,
            "code": dict(code) if code else None,
            "secrets": dict(secrets or {}),
            "request": request or uuid.uuid4().hex,
        }
        return self._job(self._transport.json("POST", "/jobs", body=body, patience_s=SUBMIT_PATIENCE_S))

    def check(self, spec: Mapping[str, Any]) -> Document:
        """`{"placeable", "reason", "asked", "largest", "storage", "warnings"}`; nothing is started."""
        return self._transport.json("POST", "/check", body={"spec": dict(spec)})

    def has_code(self, digest: str) -> bool:
        answer = self._transport.send("HEAD", f"/code/{quote(digest, safe='')}", accept=(200, 404))
        return answer.status == 200

    def upload_code(
        self, digest: str, file: Path, *, on_progress: Callable[[int, int], None] | None = None
    ) -> None:
        """Sends a zip; `on_progress(sent_bytes, size_bytes)` is called as it goes."""
        size_bytes = file.stat().st_size
        deadline = time.monotonic() + SUBMIT_PATIENCE_S
        while True:
            with file.open("rb") as source:
                body = _Counted(source, size_bytes, on_progress)
                headers = {"Content-Length": str(size_bytes), "Content-Type": "application/zip"}
                try:
                    self._transport.send(
                        "PUT", f"/code/{digest}", body=body, headers=headers, limit_s=TRANSFER_LIMIT_S
                    )
                    return
                except errors.NoServer:
                    if time.monotonic() > deadline:
                        raise
            time.sleep(RETRY_PAUSE_S)

    def jobs(self, *, states: Sequence[str] = (), limit: int | None = None) -> list[Document]:
        """Summaries, newest first; without a limit, all of them."""
        found: list[Document] = []
        before: str | None = None
        while limit is None or len(found) < limit:
            size = JOBS_PAGE if limit is None else min(JOBS_PAGE, limit - len(found))
            fields: list[tuple[str, Any]] = [("limit", size), *(("state", state) for state in states)]
            if before is not None:
                fields.append(("before", before))
            page = self._transport.json("GET", "/jobs", fields=fields)
            found += page["jobs"]
            before = page.get("next")
            if before is None:
                break
        return found

    def job(self, job: str) -> Document:
        """The detail document."""
        return self._job(self._transport.json("GET", f"/jobs/{_name(job)}"))

    def cancel(self, job: str, *, now: bool = False) -> Document:
        return self._job(self._transport.json("POST", f"/jobs/{_name(job)}/cancel", body={"now": now}))

    def preempt(self, job: str, *, grace_s: float, attempt: int | None = None) -> Document:
        """`attempt`: the one that is to leave, so that a call which is repeated does not hit the next one too."""
        body = {"grace_s": grace_s} | ({} if attempt is None else {"attempt": attempt})
        return self._job(self._transport.json("POST", f"/jobs/{_name(job)}/preempt", body=body))

    def recover(self, job: str, stored: Mapping[str, Any]) -> tuple[str, Document]:
        """What became of it (see `ControlService.recover`), and the detail document."""
        page = self._transport.json(
            "POST", f"/jobs/{_name(job)}/recover", body=dict(stored), patience_s=SUBMIT_PATIENCE_S
        )
        return str(page["outcome"]), self._job(page)

    def resume(
        self,
        job: str,
        *,
        spec: Mapping[str, Any] | None = None,
        at: int | None = None,
        at_generation: str | None = None,
        code: Mapping[str, Any] | None = None,
        workdir: str | None = None,
        secrets: Mapping[str, str] | None = None,
        resumes: int | None = None,
        grace_s: float | None = None,
    ) -> Document:
        """The detail document of the job that goes on. `resumes`: of the document that this was decided by, so that a
        call that is repeated does not resume it twice.
        """
        body: dict[str, Any] = {
            "at": at,
            "at_generation": at_generation,
            "workdir": workdir,
            "resumes": resumes,
        }
        body |= {"spec": spec, "code": code, "secrets": dict(secrets or {}), "grace_s": grace_s}
        told = {name: value for name, value in body.items() if value is not None}
        path = f"/jobs/{_name(job)}/resume"
        return self._job(self._transport.json("POST", path, body=told, patience_s=SUBMIT_PATIENCE_S))

    def set_secrets(self, job: str, values: Mapping[str, str]) -> Document:
        body = {"secrets": dict(values)}
        return self._job(self._transport.json("PUT", f"/jobs/{_name(job)}/secrets", body=body))

    def wait(self, job: str, *, timeout_s: float | None = None) -> Document:
        """The detail document once it has ended; TimedOut if it has not within the limit."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            left_s = (
                LONG_POLL_S if deadline is None else max(0.0, min(LONG_POLL_S, deadline - time.monotonic()))
            )
            patience_s = FOLLOW_PATIENCE_S if deadline is None else min(FOLLOW_PATIENCE_S, left_s)
            page = self._transport.json(
                "GET",
                f"/jobs/{_name(job)}/wait",
                fields=[("wait_s", left_s)],
                wait_s=left_s,
                patience_s=patience_s,
            )
            if page["ended"]:
                return self._job(page)
            if deadline is not None and time.monotonic() >= deadline:
                state = self._job(page)["state"]
                raise errors.TimedOut(f"job {job} is {state} after {timeout_s:g} s; it goes on")

    # Events and logs

    def events(self, job: str, *, after: int = 0, wait_s: float = 0, patience_s: float = 0) -> EventPage:
        fields = [("after", after), ("wait_s", wait_s)]
        page = self._transport.json(
            "GET", f"/jobs/{_name(job)}/events", fields=fields, wait_s=wait_s, patience_s=patience_s
        )
        return EventPage(page["events"], page["next_after"], page["ended"])

    def follow_events(self, job: str, *, after: int = 0) -> Iterator[Document]:
        """Every event until the job has ended."""
        while True:
            page = self.events(job, after=after, wait_s=LONG_POLL_S, patience_s=FOLLOW_PATIENCE_S)
            yield from page.events
            after = page.next_after
            if page.ended:
                return

    def logs(
        self,
        job: str,
        *,
        rank: int = 0,
        attempt: int | None = None,
        offset: int = 0,
        tail: int | None = None,
        timestamps: bool = False,
        wait_s: float = 0,
        patience_s: float = 0,
    ) -> LogPart:
        """One piece, from `offset` (or the last `tail` lines) of an attempt's log."""
        fields: list[tuple[str, Any]] = [("rank", rank), ("offset", offset), ("wait_s", wait_s)]
        fields += [(key, value) for key, value in (("attempt", attempt), ("tail", tail)) if value is not None]
        if timestamps:
            fields.append(("timestamps", 1))
        answer = self._transport.send(
            "GET", f"/jobs/{_name(job)}/logs", fields=fields, wait_s=wait_s, patience_s=patience_s
        )
        head = answer.headers
        following = head.get("X-Next-Attempt")
        return LogPart(
            data=b"" if timestamps else answer.data,
            lines=[json.loads(line) for line in answer.data.splitlines()] if timestamps else [],
            attempt=int(head["X-Attempt"]),
            next_offset=int(head["X-Next-Offset"]),
            next_attempt=int(following) if following else None,
            ended=head["X-Ended"] == "1",
        )

    def follow_logs(
        self,
        job: str,
        *,
        rank: int = 0,
        attempt: int | None = None,
        tail: int | None = None,
        timestamps: bool = False,
        follow: bool = True,
    ) -> Iterator[LogPart]:
        """Pieces in order, from attempt to attempt unless one is named; without `follow`, what is there."""
        current, offset = attempt, 0
        while True:
            part = self.logs(
                job,
                rank=rank,
                attempt=current,
                offset=offset,
                tail=tail,
                timestamps=timestamps,
                wait_s=LONG_POLL_S if follow else 0,
                patience_s=FOLLOW_PATIENCE_S if follow else 0,
            )
            empty = not part.data and not part.lines
            if not empty:
                yield part
            if part.attempt:
                current, offset, tail = part.attempt, part.next_offset, None
            if part.ended or (empty and not follow):
                if attempt is not None or part.next_attempt is None:
                    return
                current, offset = part.next_attempt, 0

    # Outputs and server

    def outputs(
        self, job: str, target: BinaryIO, *, on_progress: Callable[[int, int | None], None] | None = None
    ) -> int:
        """Writes the zip of the job's outputs to `target`; returns its bytes. NoServer if it breaks off."""
        answer = self._transport.send(
            "GET", f"/jobs/{_name(job)}/outputs", stream=True, limit_s=TRANSFER_LIMIT_S
        )
        size = answer.headers.get("Content-Length")
        written = 0
        try:
            for chunk in answer.stream(TRANSFER_CHUNK_BYTES, decode_content=False):
                target.write(chunk)
                written += len(chunk)
                if on_progress is not None:
                    on_progress(written, int(size) if size else None)
        except urllib3.exceptions.HTTPError as error:
            raise errors.NoServer(
                f"the outputs broke off after {written} bytes ({error}); try again"
            ) from error
        finally:
            answer.release_conn()
        return written

    def server(self) -> Document:
        """What `orch server status` shows."""
        found: Document = self._transport.json("GET", "/server")["server"]
        return found

    def restart_server(self) -> None:
        """Asks the controller to end, so that another one can take its place; returns before it has."""
        self._transport.json("POST", "/server/restart")

    def stop_server(self) -> Document:
        found: Document = self._transport.json("POST", "/server/stop", wait_s=LONG_POLL_S)["server"]
        return found

    @staticmethod
    def _job(page: Document) -> Document:
        found: Document = page["jobs"][0]
        return found


class _Counted:
    """A file that tells how much of it was read."""

    def __init__(self, file: BinaryIO, size_bytes: int, told: Callable[[int, int], None] | None) -> None:
        self._file, self._size_bytes, self._told = file, size_bytes, told

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(TRANSFER_CHUNK_BYTES if size < 0 else max(size, TRANSFER_CHUNK_BYTES))
        if self._told is not None:
            self._told(self._file.tell(), self._size_bytes)
        return data


def _name(job: str) -> str:
    """A job's id as part of a path; it comes from a command line and may be anything."""
    if not valid_job_id(job):
        raise errors.NoSuchJob(f"there is no job {job[:80]!r}; `orch status` lists the jobs of this server")
    return job
