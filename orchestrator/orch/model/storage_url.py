"""Which storage URLs a job may name. Pure rules on text; whether it can be written, only the storage can say.

fsspec opens far more than is safe here: chained URLs reach through caches to any host
(`simplecache::http://169.254.169.254/`), its local file system keeps `..`, and many of its protocols
overwrite without a word, so that two writers could both "win" (DESIGN section 6).
"""

from __future__ import annotations

import math
import re
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from orch.model.addresses import forbidden_host, hosts_in
from orch.model.problems import Problem, near_match, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = [
    "NO_STORAGE",
    "OPENED",
    "STORAGE_ALLOWED",
    "check_storage_options",
    "check_storage_url",
    "missing_extra",
    "split_storage_url",
]

STORAGE_ALLOWED = "an absolute path, or a URL of file, s3, gs, gcs, az or abfs"

_PROTOCOLS = ("file", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss")
_UNFENCED = ("adl", "dbfs", "hdfs", "jfs", "lakefs", "oci", "oss", "sftp", "smb", "ssh", "tos")
"""Only with `checkpoint.unfenced`. None of them follows a redirect of HTTP to a machine that nobody named."""
OPENED = frozenset((*_PROTOCOLS, *_UNFENCED, "memory"))
"""What the checkpoint engine opens at all; memory is for programs that try things out."""
_NEVER = {
    "memory": "is lost with the process that holds it",
    "http": "cannot be written to",
    "https": "cannot be written to",
    "data": "cannot be written to",
    "github": "cannot be written to",
    "git": "cannot be written to",
    "reference": "cannot be written to",
}
_NEVER |= dict.fromkeys(
    ("simplecache", "filecache", "blockcache", "cached", "dir", "zip", "tar", "libarchive", "asynclocal"),
    "wraps another file system, and only a plain one can be named",
)
_EXTRAS = {
    "s3": ("s3fs", 'pip install "orch[s3]"'),
    "gs": ("gcsfs", "pip install gcsfs"),
    "az": ("adlfs", "pip install adlfs"),
}
_EXTRA_OF = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "az": "az", "abfs": "az", "abfss": "az"}

NO_STORAGE = "is an address of the machine itself (link-local, or a cloud's metadata service), and no storage"

_URL_CHARS_MAX = 1024
_URL = re.compile(r"([^/:]*)://(.*)", re.DOTALL)
_BUCKET = re.compile(r"(?:[A-Za-z0-9._-]+@)?[A-Za-z0-9][A-Za-z0-9._-]*(?::[0-9]{1,5})?")

# A secret in a job file would be kept in the store and shown by status; `secrets` is the place for it.
_SECRET_OPTION = re.compile(
    r".*(?:secret|passw|passphrase|credential|token|private_?key|account_?key|api_?key|access_?key(?!_?id)|shared_?key"
    r"|connection_?string|(?:^|_)sas(?:_|$)).*",
    re.IGNORECASE,
)
_NO_SECRET = frozenset(("", "anon", "cloud", "cache", "browser", "google_default"))
"""What such an option may say all the same: where a client is to look (gcsfs' `token`)."""
_URL_WITH_PASSWORD = re.compile(r"//[^/@\s]*:[^/@\s]+@")


def split_storage_url(url: str) -> tuple[str, str]:
    """`s3://bucket/prefix` → `("s3", "bucket/prefix")`; a plain path → `("file", path)`."""
    found = _URL.fullmatch(url)
    return (found[1], found[2]) if found else ("file", url)


def check_storage_url(url: str, *, unfenced: bool = False) -> list[Problem]:
    """Why this URL cannot be a job's storage; empty when it can.

    `unfenced` lets through protocols of which nothing is known about create-only writes.
    """
    message, near = _url_problem(url, unfenced=unfenced) or (None, None)
    if message is None:
        return []
    return [Problem(message, value=_without_password(url), allowed=STORAGE_ALLOWED, near=near)]


def _without_password(url: str) -> str:
    return shown(re.sub(r"//[^/@]*:[^/@]*@", "//…@", url))


def _url_problem(url: str, *, unfenced: bool) -> tuple[str, str | None] | None:
    if not url or not url.isprintable() or url != url.strip() or len(url) > _URL_CHARS_MAX:
        return "is no storage: it is empty, too long, or has characters no path may have", None
    if "::" in url:
        return f"{_without_password(url)} is a chained URL, which could reach any host", None
    found = _URL.fullmatch(url)
    if found is None:
        return _path_problem(url)
    protocol, rest = found[1], found[2]
    if protocol in _NEVER:
        return f"{protocol}:// {_NEVER[protocol]}", None
    if protocol in _UNFENCED:
        if not unfenced:
            hint = "; `checkpoint.unfenced: true` accepts that two writers could overwrite each other"
            return f"{shown(protocol)} is not known to refuse overwriting a file{hint}", None
    elif protocol not in _PROTOCOLS:
        near = near_match(protocol, _PROTOCOLS)
        more = "" if near or unfenced else f" (with `checkpoint.unfenced: true` also {', '.join(_UNFENCED)})"
        return f"{shown(protocol)} is no protocol that orch opens{more}", f"{near}://{rest}" if near else None
    if protocol == "file":
        return _path_problem(rest)
    return _remote_problem(protocol, rest)


def _remote_problem(protocol: str, rest: str) -> tuple[str, str | None] | None:
    bucket, _, prefix = rest.partition("/")
    if re.search(r"[^@]*:[^@]*@", bucket):
        return "a password in a URL would be stored and shown: name credentials under `secrets`", None
    if not bucket:
        return f"names no bucket after {protocol}://", None
    if not _BUCKET.fullmatch(bucket):
        return f"{shown(bucket)} can be no bucket", None
    host = bucket.rpartition("@")[2].partition(":")[0]
    # A bucket's name is no host: one that is called `metadata` may be.
    if (protocol in _UNFENCED or "@" in bucket) and forbidden_host(host):
        return f"{shown(host)} {NO_STORAGE}", None
    if any(character in prefix for character in "?#*[]\\ "):
        return "has characters that no prefix may have (space, ? # * [ ] \\)", None
    segments = prefix.removesuffix("/").split("/")
    if prefix and any(segment in {"", ".", ".."} for segment in segments):
        return "has an empty, '.' or '..' part in its prefix", None
    return None


def _path_problem(path: str) -> tuple[str, str | None] | None:
    if not path.startswith("/"):
        if typo := re.fullmatch(r"([a-z0-9]+):/?([^/].*)", path):
            return f"{shown(path)} is neither a path nor a URL", f"{typo[1]}://{typo[2]}"
        return f"{shown(path)} is not an absolute path", None
    segments = path.split("/")
    if ".." in segments:
        return "has '..' in it: write the path out", None
    if not any(segment not in {"", "."} for segment in segments):
        return "is the root of the file system: name a folder", None
    return None


def check_storage_options(options: dict[str, Any]) -> list[Problem]:
    """Options for the file system: no secrets (they go to `secrets`), no numbers that JSON cannot hold, and no
    machine that is no storage.
    """
    problems = [
        Problem(f"the option {shown(key)}: {shown(host)} {NO_STORAGE}")
        for key, host in hosts_in(options)
        if forbidden_host(host)
    ]
    for key, value in _walk(options):
        hidden = _SECRET_OPTION.fullmatch(key) and _may_be_secret(value)
        if hidden or (isinstance(value, str) and _URL_WITH_PASSWORD.search(value)):
            message = (
                f"the option {shown(key)} would be stored and shown: name the credential under `secrets` "
                "(for S3 AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY), and remove it here"
            )
            problems.append(Problem(message))
        elif isinstance(value, float) and not math.isfinite(value):
            problems.append(Problem(f"the option {shown(key)} is {value}", allowed="finite numbers"))
    return problems


def _may_be_secret(value: Any) -> bool:
    return not (value is None or isinstance(value, bool) or (isinstance(value, str) and value in _NO_SECRET))


def _walk(options: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    waiting: list[tuple[str, Any]] = list(options.items())
    while waiting:
        key, value = waiting.pop(0)
        yield key, value
        if isinstance(value, dict):
            waiting.extend(value.items())
        elif isinstance(value, list):
            waiting.extend((key, item) for item in value)


def missing_extra(url: str, find: Callable[[str], object | None] = find_spec) -> Problem | None:
    """The package that this machine lacks for such a URL, and how to install it; None when there is none.

    Asked where the storage is used: by the server, and by a client about to start a server on its machine.
    """
    protocol, _ = split_storage_url(url)
    extra = _EXTRA_OF.get(protocol)
    if extra is None:
        return None
    module, command = _EXTRAS[extra]
    if find(module) is not None:
        return None
    return Problem(
        f"{protocol}:// needs the package {module}, which is not installed here: {command}",
        path="checkpoint.storage",
        value=_without_password(url),
    )
