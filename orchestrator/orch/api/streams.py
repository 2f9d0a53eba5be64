"""What takes longer than a look: waiting for news, logs as they grow, code coming in, outputs going out."""

import asyncio
import hashlib
import json
import os
import tempfile
import time
from bisect import bisect_right
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from orch.api.limits import CODE_BYTES_MAX
from orch.control.service import ControlService, Download, LogChunk, LogQuery
from orch.control.views import format_time
from orch.model.errors import WrongUse

NEWS_POLL_S = 1.0
"""Looked at this often even if the bell is silent: news may have been written by another process."""
LOG_POLL_S = 0.1
"""Log files grow without telling anybody."""
UPLOAD_BUFFER_BYTES = 1 << 20

_T = TypeVar("_T")


async def wait_for(
    service: ControlService,
    job: str,
    look: Callable[[], tuple[_T, bool]],
    *,
    wait_s: float,
    poll_s: float = NEWS_POLL_S,
) -> _T:
    """What `look` has seen, which is called again until it says that it is enough, or time is up."""
    deadline = time.monotonic() + wait_s
    while True:
        waiter = service.bell.listen(job)
        try:
            seen, enough = await run_in_threadpool(look)
            left_s = deadline - time.monotonic()
            if enough or left_s <= 0 or service.bell.closed:
                return seen
            await waiter.wait(min(left_s, poll_s))
        finally:
            service.bell.leave(job, waiter)


async def log_answer(
    service: ControlService, job: str, query: LogQuery, *, wait_s: float, timestamps: bool
) -> Response:
    """One piece of a log, its place in the headers."""
    asked = query

    def look() -> tuple[tuple[LogChunk, bytes], bool]:
        nonlocal asked
        chunk = service.logs(job, asked)
        if chunk.attempt:
            # From now on this place: the end may move while we wait, and a tail must not move with it.
            asked = replace(asked, attempt=chunk.attempt, offset=chunk.offset, tail_lines=None)
        whole = chunk.ended or (wait_s <= 0 and len(chunk.data) < asked.limit_bytes)
        data = chunk.data
        if timestamps and not whole:
            cut = data.rfind(b"\n") + 1
            data = data[:cut] if cut or len(data) < asked.limit_bytes else data
        return (chunk, data), bool(data) or chunk.ended

    chunk, data = await wait_for(service, job, look, wait_s=wait_s, poll_s=LOG_POLL_S)
    headers = {
        "X-Attempt": str(chunk.attempt),
        "X-Next-Offset": str(chunk.offset + len(data)),
        "X-Ended": "1" if chunk.ended else "0",
    }
    if chunk.next_attempt is not None:
        headers["X-Next-Attempt"] = str(chunk.next_attempt)
    if not timestamps:
        return Response(data, media_type="application/octet-stream", headers=headers)
    lines = "".join(json.dumps(line) + "\n" for line in _timed_lines(chunk, data))
    return Response(lines, media_type="application/x-ndjson", headers=headers)


def _timed_lines(chunk: LogChunk, data: bytes) -> list[dict[str, Any]]:
    starts = [start for start, _ in chunk.times]
    lines, offset = [], chunk.offset
    for line in data.split(b"\n")[: None if not data.endswith(b"\n") else -1] if data else []:
        place = bisect_right(starts, offset) - 1
        t_us = chunk.times[place][1] if place >= 0 else None
        lines.append({"time": format_time(t_us), "text": line.decode("utf-8", "replace").rstrip("\r")})
        offset += len(line) + 1
    return lines


async def receive_code(service: ControlService, digest: str, request: Request) -> None:
    """Takes an upload in and hands it to the controller. WrongUse if it differs from its digest."""
    descriptor, name = await run_in_threadpool(tempfile.mkstemp, prefix=".upload-", dir=service.upload_folder)
    path = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            size_bytes, found = await _receive(request, file.write)
        if found != digest:
            raise WrongUse(
                "the upload does not have the digest it was announced with: it was damaged on the way, or"
                " a file changed meanwhile; submit again"
            )
        await run_in_threadpool(service.upload_code, digest, path, size_bytes)
    finally:
        with suppress(FileNotFoundError):  # the controller has moved it away
            os.unlink(name)  # noqa: PTH108 - one call, not worth a thread


async def _receive(request: Request, write: Callable[[bytes], int]) -> tuple[int, str]:
    """Size and digest of the body, which is written in pieces, off the event loop."""
    digest, size_bytes, waiting = hashlib.sha256(), 0, bytearray()

    def flush() -> None:
        digest.update(waiting)
        write(bytes(waiting))
        waiting.clear()

    async for piece in request.stream():
        size_bytes += len(piece)
        if size_bytes > CODE_BYTES_MAX:
            raise WrongUse(f"the upload is larger than {CODE_BYTES_MAX} bytes")
        waiting += piece
        if len(waiting) >= UPLOAD_BUFFER_BYTES:
            await run_in_threadpool(flush)
    await run_in_threadpool(flush)
    return size_bytes, digest.hexdigest()


def download(found: Download) -> Response:
    headers = {"Content-Disposition": f'attachment; filename="{found.name}"'}
    if found.size_bytes is not None:
        headers["Content-Length"] = str(found.size_bytes)
    return StreamingResponse(_pieces(found), media_type="application/zip", headers=headers)


async def _pieces(found: Download) -> AsyncIterator[bytes]:
    try:
        while (piece := await run_in_threadpool(next, found.chunks, None)) is not None:
            yield piece
    finally:
        close = getattr(found.chunks, "close", None)
        if close is not None:
            # Shielded: the reader went away, and what the generator holds must be given back all the same.
            await asyncio.shield(run_in_threadpool(close))
