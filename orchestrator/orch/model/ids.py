"""Names and ids of jobs. An id is the job's name and a short random suffix: `digits-x7k2m`."""

from __future__ import annotations

import re
import unicodedata
from pathlib import PurePath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from random import Random

__all__ = [
    "ID_CHARS_MAX",
    "NAME_ALLOWED",
    "NAME_CHARS_MAX",
    "default_name",
    "make_job_id",
    "name_from",
    "name_problem",
    "valid_job_id",
]

ID_CHARS_MAX = 63
_SUFFIX_CHARS = 5
NAME_CHARS_MAX = ID_CHARS_MAX - 1 - _SUFFIX_CHARS
"""Longest name that leaves room for the suffix of an id."""

NAME_ALLOWED = f"lower-case letters, digits and hyphens between them, at most {NAME_CHARS_MAX} characters"

# No vowels, so that no suffix is a word; no 0, 1, l, so that it can be read aloud and typed.
_SUFFIX_ALPHABET = "bcdfghjkmnpqrstvwxz23456789"
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?")
_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_FALLBACK_NAME = "job"


def valid_job_id(text: str) -> bool:
    """Whether `text` can be a job's id; checked before it is used in a path, a query or an actor's name."""
    return _ID.fullmatch(text) is not None


def make_job_id(name: str, rng: Random) -> str:
    """A new id for a job of that name. Whether it is taken already, only the store can say.

    Raises ValueError for a name that breaks the rules.
    """
    if problem := name_problem(name):
        raise ValueError(f"job name {name[:80]!r} {problem}")
    return f"{name}-{''.join(rng.choices(_SUFFIX_ALPHABET, k=_SUFFIX_CHARS))}"


def name_problem(name: str) -> str | None:
    """What is wrong with a name, as the end of a sentence that begins with the name; None when it is fine."""
    if not name:
        return "is empty"
    if len(name) > NAME_CHARS_MAX:
        return f"is {len(name)} characters long"
    if _NAME.fullmatch(name) is None:
        return "has characters that no job name may have"
    return None


def name_from(text: str) -> str:
    """The valid name nearest to any text: `My Run/é` → `my-run-e`; `job` where nothing is left."""
    plain = unicodedata.normalize("NFKD", text[:1024]).encode("ascii", "ignore").decode().lower()
    name = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:NAME_CHARS_MAX].rstrip("-")
    return name or _FALLBACK_NAME


def default_name(workdir: str) -> str:
    """The name of a job that was given none: that of its folder."""
    return name_from(PurePath(workdir).name)
