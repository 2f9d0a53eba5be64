"""A job's folder in storage, taken apart: `s3://bucket/prefix/digits` → `("s3://bucket/prefix", "digits")`."""

from __future__ import annotations

import re
from pathlib import Path

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
NAME_ALLOWED = "lower-case letters, digits and hyphens, at most 63, a letter or digit first"


def split_location(url: str) -> tuple[str, str]:
    """(what `open_storage` takes, what `Catalog` takes). A path may be relative. ValueError with what is wrong."""
    text = url if "://" in url else str(Path(url).expanduser().absolute())
    prefix, _, name = text.rstrip("/").rpartition("/")
    if not _NAME.fullmatch(name):
        raise ValueError(f"{url[:200]!r} ends with {name[:80]!r}; allowed as a name: {NAME_ALLOWED}")
    if prefix.endswith(":/"):
        raise ValueError(f"{url[:200]!r} names nothing but a bucket; write a folder below it")
    return prefix or "/", name
