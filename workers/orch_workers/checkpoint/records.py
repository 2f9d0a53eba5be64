"""The small documents beside the manifests: a generation's record, and the mark of quarantine."""

from __future__ import annotations

import json
import time
from typing import Any

from orch_workers.checkpoint.chain import Chain, Generation
from orch_workers.checkpoint.errors import Damaged, WrittenByNewer
from orch_workers.checkpoint.format import FORMAT_VERSION, VERSION_READ_MAX, parse_sealed, sealed, shown
from orch_workers.training.slots import format_generation

GENERATION_BYTES_MAX = 64 << 20
MARK_BYTES_MAX = 64 << 10
REASON_CHARS_MAX = 4000


def generation_record(chain: Chain, job: str) -> bytes:
    """`generations/G.json`."""
    document = {"format": "orch-generation", "version": FORMAT_VERSION, "job": job, **chain.to_json()}
    return sealed(json.dumps(document, separators=(",", ":"), sort_keys=True).encode())


def parse_generation_record(data: bytes, path: str, *, job: str, generation: Generation) -> Chain:
    """The chain that a generation wrote down, or Damaged with what is wrong with it. `path` is for the error."""
    document = parse_sealed(data, path)
    version = document.get("version") if isinstance(document, dict) else None
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise WrittenByNewer(path, version, FORMAT_VERSION)
    try:
        chain = Chain.from_json(document)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise Damaged(f"{path}: no generation's record ({shown(error)})") from error
    if version != FORMAT_VERSION or document.get("job") != job:
        raise Damaged(f"{path}: of version {shown(version)} and job {shown(document.get('job'))!r}")
    if chain.generation != generation:
        raise Damaged(f"{path}: is the record of {format_generation(chain.generation)}")
    return chain


def quarantine_mark(reason: str, needs_version: int | None) -> bytes:
    """`quarantine/G/S.json`."""
    document: dict[str, Any] = {
        "version": FORMAT_VERSION,
        "reason": reason[:REASON_CHARS_MAX],
        "found_us": time.time_ns() // 1000,
    }
    if needs_version is not None:
        document["needs_version"] = needs_version
    return json.dumps(document).encode()


def reason_of(mark: bytes) -> str:
    """Why something is in quarantine."""
    try:
        return str(json.loads(mark)["reason"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return "its mark in quarantine does not read"


def is_void(mark: bytes) -> bool:
    """Whether an older orch set it because it could not read what this one can."""
    try:
        return 0 < int(json.loads(mark)["needs_version"]) <= VERSION_READ_MAX
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return False
