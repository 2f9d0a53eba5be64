"""Job files that nobody would write.

Whatever they hold, they are taken or refused with the documented error, quickly and in little memory; each comes from
a seed of its own, which repeats it.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from orch.api.models import SubmitBody, parse_submission
from orch.model.config import CONFIG_KEYS, load_config
from orch.model.errors import OrchError
from orch.model.jobfile import load_job
from orch.model.spec import job_schema

CPU_S_MAX = 1.0
MEMORY_BYTES_MAX = 200 << 20
"""More than the process has already, for one file."""
SILENCE_S_MAX = 300.0
"""Of the process that reads them: something in C that no signal interrupts."""
ROOT = Path(__file__).parents[2]
TOKENS = (
    b"\0", b"\t", b"\r", b"\n", b": ", b"- ", b"&a ", b"*a", b"<<: ", b"!!python/object:os.system ", b"!!binary ",
    b"%YAML 9.9\n", b"---\n", b"...\n", b"|\n", b">+9\n", b"{", b"}", b"[", b"]", b"'", b'"', b"\\x00",
    b'"\\ud800"', b"\xff\xfe", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\xe2\x80\xa8", b"9" * 5000, b"1e999999999",
    b"-.inf", b".nan", b"0x" + b"f" * 70, b"0o9", b"~", b"null", b"yes", b"1:30", b"2026-01-01", b"#", b"? ",
    b"$(id)", b"`id`", b"../../etc/passwd", b"file:///etc/passwd", b"s3://169.254.169.254/",
    b"simplecache::http://169.254.169.254/", b"http://[::ffff:169.254.169.254]", b"\xf0\x9f\x92\xa3",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**70), 10**400, 0.1, -0.0, 1e308, float("inf"),
    float("nan"), "", " ", "\0", "a", "x" * 5000, "x" * 200_000, "é\u202e\u0000", "\ud800", "1", "1s", "1h30m",
    "99999999999999w", "8GiB", "1e9GiB", "auto", "never", "unlimited", "*", "**/*", "../x", "/etc/passwd", "~/x",
    "a\nb", "(a+)+$", "(" * 500, "[a-z", "(?P<x>a)", "(?R)", "\\", "%s%n", "s3://b/x", "s3://b/../x",
    "s3://k:secret@b", "memory://x", "http://169.254.169.254", "::", "gs://", [], {}, [[]], [{}], {"": 1},
    {"a": {"b": 1}}, ["a"] * 3000, {str(number): number for number in range(2000)},
)  # fmt: skip


class LateError(BaseException):
    """More processor time than one file may take."""


def keys_of(schema: dict[str, Any]) -> list[str]:
    """Every key that a job file knows, at any depth."""
    found: set[str] = set()
    waiting: list[Any] = [schema]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            found |= set(node.get("properties") or {})
            waiting += node.values()
        elif isinstance(node, list):
            waiting += node
    return sorted(found)


SCHEMA = job_schema()
KEYS = [*keys_of(SCHEMA), *CONFIG_KEYS, "<<", "", "__class__", "model_config", "\u202e"]
EXAMPLES = [path.read_bytes() for path in sorted((ROOT / "examples").rglob("job*.yaml"))]


def tree(rng: random.Random, depth: int = 0) -> Any:
    """Known keys in unknown places, with values that no key wants."""
    if depth > 4 or rng.random() < 0.3:
        return rng.choice(VALUES)
    if rng.random() < 0.25:
        return [tree(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {rng.choice(KEYS): tree(rng, depth + 1) for _ in range(rng.randrange(1, 6))}


def spec(rng: random.Random) -> dict[str, Any]:
    """A job that is nearly one: each key where it belongs."""

    def node(schema: dict[str, Any], depth: int) -> Any:
        if rng.random() < 0.25:
            return tree(rng, 3)
        if "$ref" in schema:
            schema = definitions[schema["$ref"].rpartition("/")[2]]
        properties = schema.get("properties")
        if not properties or depth > 5:
            return rng.choice(
                (*schema.get("enum", ()), schema.get("default"), *VALUES[:12], "a", "1s", "s3://b/x")
            )
        names = rng.sample(sorted(properties), rng.randrange(len(properties) + 1))
        return {name: node(properties[name], depth + 1) for name in names}

    definitions = SCHEMA["$defs"]
    found = node(SCHEMA, 0)
    return found if isinstance(found, dict) else {"run": found}


def bomb(rng: random.Random) -> bytes:
    deep = rng.choice((10, 31, 33, 2000, 100_000))
    many = rng.choice((100, 19_999, 200_000))
    return rng.choice(
        (
            b"[" * deep + b"]" * deep,
            b"{a: " * deep + b"}" * deep,
            b"".join(b" " * number + b"a:\n" for number in range(min(deep, 1000))),
            b"- " * deep + b"a",
            b"? " * deep,
            b"a: &a [x]\nb: &b [*a,*a,*a]\nc: [*b,*b,*b]\n" * 3,
            b"run: " + b"9" * many,
            b"run: '" + b"x" * many + b"'",
            b"".join(b"k%d: 1\n" % number for number in range(many // 10)),
            b"run: x\n" * many,
            b"#" * many,
            b"run: x\nenv: {" + b"".join(b"A%d: 1," % number for number in range(many // 100)) + b"}",
            b"run: |\n" + b"  x\n" * (many // 10),
            b"\n" * many,
            rng.randbytes(rng.randrange(2000)),
            b"run: x\nmetrics: {a: '" + b"(" * (deep % 3000) + b")" * (deep % 3000) + b"'}\ncheckpoint: {files: [x]}",
        )
    )  # fmt: skip


def changed(rng: random.Random, data: bytes) -> bytes:
    """A good file with something wrong in it."""
    made = bytearray(data)
    for _ in range(rng.randrange(1, 6)):
        at = rng.randrange(len(made) + 1)
        end = min(len(made), at + rng.randrange(12))
        how = rng.randrange(5)
        if how == 0:
            made[at:at] = rng.choice(TOKENS)
        elif how == 1:
            del made[at:end]
        elif how == 2:
            made[at:at] = made[at:end] * rng.randrange(1, 40)
        elif how == 3 and at < len(made):
            made[at] = rng.randrange(256)
        else:
            made[at:end] = rng.choice(TOKENS)
    return bytes(made)


def job_file(rng: random.Random) -> bytes:
    kind = rng.random()
    if kind < 0.45:
        return changed(rng, rng.choice(EXAMPLES))
    if kind < 0.55:
        return bomb(rng)
    document = spec(rng) if kind < 0.85 else tree(rng)
    return json.dumps(document, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")


def read_file(rng: random.Random) -> None:
    overrides = [
        f"{rng.choice(KEYS)}.{rng.choice(KEYS)}={rng.choice(VALUES)}" for _ in range(rng.randrange(2))
    ]
    load_job(
        "-", overrides, stdin=io.BytesIO(job_file(rng)), name=rng.choice((None, None, "a", "../x", "\ud800"))
    )


def read_request(rng: random.Random) -> None:
    body = {"spec": spec(rng), "secrets": tree(rng, 3), "name": rng.choice((None, "a", "../x"))}
    if rng.random() < 0.5:
        body = {"spec": spec(rng), "base_dir": "/srv"}
    parse_submission(SubmitBody.model_validate_json(json.dumps(body)))


def read_config(rng: random.Random, folder: Path) -> None:
    (folder / "config.yaml").write_bytes(job_file(rng))
    load_config(folder, {})


def one(seed: str, folder: Path) -> str:
    """What became of it. Raises what no file may raise."""
    rng = random.Random(seed)
    kinds: list[tuple[str, Callable[[], None]]] = [
        ("job file", lambda: read_file(rng)),
        ("request", lambda: read_request(rng)),
        ("config file", lambda: read_config(rng, folder)),
    ]
    name, act = rng.choices(kinds, (6, 3, 1))[0]
    try:
        act()
    except (OrchError, ValidationError) as error:
        str(error).encode()  # it goes into answers and logs
        return f"{name} refused"
    return f"{name} taken"


def fuzz(seed: int, count: int) -> dict[str, Any]:
    """Reads `count` of them in a process that may not have much. AssertionError with the seed of the first bad one."""
    context = multiprocessing.get_context("fork")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_read_all, args=(sending, seed, count))
    process.start()
    sending.close()
    told: dict[str, Any] = {}
    try:
        while not told:
            at = told.get("at")
            assert receiving.poll(SILENCE_S_MAX), f"it hangs after {at}"
            found = receiving.recv()
            told = found if "at" not in found else {}
    except EOFError:
        raise AssertionError(f"the process that read them died (seed {seed})") from None
    finally:
        process.kill()
        process.join()
    assert "failed" not in told, told["failed"]
    return told


def _read_all(sending: Any, seed: int, count: int) -> None:
    def late(*_: object) -> None:
        raise LateError

    signal.signal(signal.SIGPROF, late)
    sys.setrecursionlimit(1000)  # as a fresh interpreter has it
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES_MAX,) * 2)
    became: Counter[str] = Counter()
    longest = 0.0
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for number in range(count):
            name = f"{seed} {number}"
            began = time.process_time()
            signal.setitimer(signal.ITIMER_PROF, 2 * CPU_S_MAX)
            try:
                became[one(name, Path(folder))] += 1
            except BaseException:
                sending.send(
                    {"failed": f"support.fuzzing_jobs.one({name!r}): {traceback.format_exc()[-3000:]}"}
                )
                return
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
            took = time.process_time() - began
            longest = max(longest, took)
            if took > CPU_S_MAX:
                sending.send(
                    {"failed": f"support.fuzzing_jobs.one({name!r}) took {took:.2f} s of the processor"}
                )
                return
            if number % 500 == 0:
                sending.send({"at": number})
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        os.chdir("/")
    sending.send({"files": count, **became, "longest_s": round(longest, 3), "peak_bytes": grown})
