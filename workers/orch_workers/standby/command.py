"""Which commands a standby process can be made for: those whose interpreter can be told from the command line.

The standby is started with the very command line of the job, and its interpreter must be seen to read our
``sitecustomize`` first, or the script would run twice. So the command is read here, word for word as the interpreter
would, and the interpreter is asked (`probe`) before it is ever started with the script.
"""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PROBE_LIMIT_S = 30.0
OLDEST = (3, 8)
ENV_ORDER = "ORCH_STANDBY"
SHEBANG_BYTES = 512
_INTERPRETER = re.compile(r"python(\d+(\.\d+)?)?")
# Flags that stand alone. Missing on purpose: -E, -I, -S (our file would not be read), -i (waits for a person).
_FLAGS = frozenset("bBdOPqRsuv")
# What pip writes for an interpreter whose path is too long for a kernel's "#!".
_LONG_SHEBANG = re.compile(rb"#!/bin/sh\n'''exec' (.+?) \"\$0\" \"\$@\"\n")


class UnsupportedError(Exception):
    """There can be no standby for this command; the sentence says why."""


@dataclass(frozen=True)
class PythonCommand:
    """`prefix` starts the interpreter with the job's options, without the script."""

    prefix: tuple[str, ...]
    interpreter: Path


def python_command(argv: Sequence[str], env: Mapping[str, str], cwd: Path) -> PythonCommand:
    """Reads ``python [options] script.py …``, ``python [options] -m module …``, a console script of Python's, each
    also behind ``env NAME=value …``. Raises UnsupportedError for anything else.
    """
    start = 0
    if Path(argv[0]).name == "env":
        start = next((n for n, word in enumerate(argv) if n and "=" not in word), len(argv))
        if start == len(argv) or argv[start].startswith("-"):
            raise UnsupportedError("env is called with options")
        if any(word.startswith(("PATH=", "PYTHONPATH=", "PYTHONHOME=")) for word in argv[1:start]):
            raise UnsupportedError("env changes where the interpreter looks")
    program = _find(argv[start], env, cwd)
    if _INTERPRETER.fullmatch(program.name) and _begins(program).startswith(b"\x7fELF"):
        options = _options(argv[start + 1 :], cwd)
        return PythonCommand((*argv[: start + 1], *options), program)
    shebang = _shebang(program)
    interpreter = _find(shebang[0], env, cwd)
    if not (_INTERPRETER.fullmatch(interpreter.name) and _begins(interpreter).startswith(b"\x7fELF")):
        raise UnsupportedError(f"{program} is run by {interpreter}, which is no Python interpreter")
    if any(not _is_flags(word) for word in shebang[1:]):
        raise UnsupportedError(f"{program} calls its interpreter with {shlex.join(shebang[1:])}")
    return PythonCommand((*argv[:start], *shebang), interpreter)


def _find(word: str, env: Mapping[str, str], cwd: Path) -> Path:
    if os.sep in word:
        path = cwd / word
        found = str(path) if path.is_file() else None
    else:
        found = shutil.which(word, path=env.get("PATH", os.defpath))
    if found is None:
        raise UnsupportedError(f"there is no program {word}")
    return Path(found)


def _begins(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(SHEBANG_BYTES)
    except OSError as error:
        raise UnsupportedError(f"{path} cannot be read: {error.strerror}") from error


def _options(words: Sequence[str], cwd: Path) -> list[str]:
    """The options before the script or ``-m``."""
    found: list[str] = []
    waiting = list(words)
    while waiting:
        word = waiting.pop(0)
        if word in {"-X", "-W", "--check-hash-based-pycs"} and waiting:
            found += [word, waiting.pop(0)]
        elif word.startswith(("-X", "-W")) or _is_flags(word):
            found.append(word)
        elif word[0] == "-" and set(word[1:].partition("m")[0]) <= _FLAGS and "m" in word:
            # `-m module`, `-mmodule`, and flags before that: `-Bm module`
            flags = word[1:].partition("m")[0]
            return [*found, f"-{flags}"] if flags else found
        elif word.startswith("-"):
            raise UnsupportedError(f"the interpreter is called with {word}")
        elif not (cwd / word).is_file():
            raise UnsupportedError(f"{word} is no file")
        else:
            return found
    raise UnsupportedError("the interpreter is called without a script")


def _is_flags(word: str) -> bool:
    return len(word) > 1 and word[0] == "-" and set(word[1:]) <= _FLAGS


def _shebang(program: Path) -> list[str]:
    begins = _begins(program)
    if not program.stat().st_mode & stat.S_IXUSR:
        raise UnsupportedError(f"{program} is no program")
    long = _LONG_SHEBANG.match(begins)
    line = long[1] if long else begins.partition(b"\n")[0].removeprefix(b"#!")
    if not begins.startswith(b"#!"):
        raise UnsupportedError(f"{program} is no Python program")
    words = shlex.split(os.fsdecode(line))
    if words and Path(words[0]).name == "env":
        words = words[1:]
    if not words:
        raise UnsupportedError(f"{program} names no interpreter")
    return words


def hooked(env: Mapping[str, str], hook: Path, order: str) -> dict[str, str]:
    """`env` with our file before everything else, and what it shall do there (training/standby.py)."""
    path = os.pathsep.join(filter(None, (str(hook), env.get("PYTHONPATH"))))
    return {**env, "PYTHONPATH": path, ENV_ORDER: order}


def surely_reads_it(command: PythonCommand) -> bool:
    """Whether the interpreter is known, without being asked, to be new enough to read our file."""
    real = Path(os.path.realpath(command.interpreter))
    version = re.fullmatch(r"python3\.(\d+)", real.name)
    return real == Path(os.path.realpath(sys.executable)) or (
        version is not None and int(version[1]) >= OLDEST[1]
    )


def probe(command: PythonCommand, env: Mapping[str, str], cwd: Path, hook: Path, answer: Path) -> None:
    """Starts the interpreter with nothing to do and sees that it reads our file. Raises UnsupportedError.

    `answer` is a file that may be written.
    """
    answer.unlink(missing_ok=True)
    try:
        subprocess.run(
            [*command.prefix, "-c", ""],
            env=hooked(env, hook, f"probe:{answer}"),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=PROBE_LIMIT_S,
            check=True,
        )
        version, name, customized = ast.literal_eval(answer.read_text())
    except (OSError, ValueError, SyntaxError, subprocess.SubprocessError) as error:
        raise UnsupportedError(
            f"{command.interpreter} does not say what it is ({type(error).__name__})"
        ) from error
    finally:
        answer.unlink(missing_ok=True)
    if name != "cpython" or tuple(version) < OLDEST:
        raise UnsupportedError(f"{command.interpreter} is {name} {'.'.join(map(str, version))}")
    if customized:
        raise UnsupportedError("the user has a usercustomize, which runs after what orch can wait in")
