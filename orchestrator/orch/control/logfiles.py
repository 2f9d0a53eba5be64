"""Reads the log files below `<home>/jobs`: piece by piece, attempt after attempt, and from the end."""

import re
import shutil
from pathlib import Path

from orch.control.home import Home
from orch.control.service import LOG_CHUNK_BYTES, LogChunk, LogQuery
from orch.control.store import Store, now_us
from orch.model.errors import WrongUse
from orch.model.ids import valid_job_id
from orch.model.states import ENDED
from orch_workers.logs.redaction import Redactor
from orch_workers.logs.worker_log import read_times

TAIL_BYTES_MAX = 64 << 20
"""`--tail` looks back no further than this."""
TAIL_BLOCK_BYTES = 64 << 10
_ATTEMPT = re.compile(r"attempt-(\d{6,9})")


def read_logs(
    home: Home,
    job: str,
    query: LogQuery,
    *,
    newest_attempt: int,
    ended: bool,
    redactor: Redactor | None = None,
) -> LogChunk:
    """The piece of a log that `query` asks for, without the secrets that `redactor` knows.

    `newest_attempt` and `ended` are the job's, read before this call: what the log holds now is then at least
    what it held when the job ended. WrongUse for an attempt the job never had.
    """
    if not valid_job_id(job):
        raise WrongUse(f"{job!r} is no job's id")
    found = _attempts(home, job, query.rank)
    attempt = query.attempt
    if attempt is None:
        if not found:
            return LogChunk(data=b"", attempt=0, offset=0, ended=ended)
        attempt = found[-1] if query.tail_lines is not None else found[0]
    elif not 1 <= attempt <= max(newest_attempt, *found, 0):
        raise WrongUse(f"job {job} has no attempt {attempt}; its newest is {newest_attempt}")
    later = next((number for number in found if number > attempt), None)
    if attempt not in found:
        over = ended or later is not None
        return LogChunk(data=b"", attempt=attempt, offset=0, ended=over, next_attempt=later)
    path = home.log_path(job, attempt, query.rank)
    # A rank writes into the folder of the attempt that placed its agent: an older one is over once there is a
    # newer, and no sooner.
    over = ended or later is not None
    redactor = redactor or Redactor()
    size = path.stat().st_size
    offset = query.offset if query.tail_lines is None else _tail_offset(path, size, query.tail_lines)
    end = min(
        offset + min(query.limit_bytes, LOG_CHUNK_BYTES), size if over else _settled(path, size, redactor)
    )
    data = redactor.read(path, offset, end) if end > offset else b""
    return LogChunk(
        data=data,
        attempt=attempt,
        offset=offset,
        ended=over and offset + len(data) >= size,
        next_attempt=later,
        times=read_times(path, offset, end) if query.times and data else (),
    )


def remove_old_logs(store: Store, home: Home, keep_s: float | None) -> list[str]:
    """Removes the logs of jobs that ended longer ago than `keep_s` (None: keeps all); returns their ids."""
    if keep_s is None:
        return []
    before_us = now_us() - int(keep_s * 1e6)
    old = [
        row.id
        for row in store.jobs(states=sorted(ENDED))
        if row.ended_us is not None and row.ended_us < before_us
    ]
    removed = [job for job in old if (home.jobs / job).is_dir()]
    for job in removed:
        shutil.rmtree(home.jobs / job, ignore_errors=True)
    return removed


def _attempts(home: Home, job: str, rank: int) -> list[int]:
    """The attempts in which this rank wrote a log, oldest first."""
    folder = home.jobs / job
    try:
        names = [entry.name for entry in folder.iterdir()]
    except FileNotFoundError:
        return []
    numbers = sorted(int(match[1]) for name in names if (match := _ATTEMPT.fullmatch(name)))
    return [number for number in numbers if home.log_path(job, number, rank).is_file()]


def _settled(path: Path, size: int, redactor: Redactor) -> int:
    """Up to where a growing log can be shown: behind that a secret may have been written by half."""
    margin = max(0, redactor.longest_bytes - 1)
    if margin == 0 or size == 0:
        return size
    start = max(0, size - margin)
    with path.open("rb") as file:
        file.seek(start)
        end = file.read(size - start)
    return start + end.rfind(b"\n") + 1  # no secret that is looked for goes over a line's end


def _tail_offset(path: Path, size: int, lines: int) -> int:
    """Where the last `lines` lines begin. A last line without its end counts as one."""
    if lines <= 0:
        return size
    floor = max(0, size - TAIL_BYTES_MAX)
    end, missing = size, lines + 1
    with path.open("rb") as file:
        while end > floor:
            begin = max(floor, end - TAIL_BLOCK_BYTES)
            file.seek(begin)
            block = file.read(end - begin)
            if end == size and not block.endswith(b"\n"):
                missing -= 1
            position = len(block)
            while (position := block.rfind(b"\n", 0, position)) >= 0:
                missing -= 1
                if missing == 0:
                    return begin + position + 1
            end = begin
    return floor
