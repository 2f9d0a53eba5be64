"""Where checkpoints live: create-only objects under a URL. The only file that knows fsspec.

The promise that everything else stands on: `create` never replaces anything, also when two machines write the
same name in the same moment. On S3 that is If-None-Match, on a file system it is `link` (see local.py).
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from orch_workers.checkpoint.errors import (
    AlreadyExists,
    NotFound,
    StorageError,
    StorageRefused,
    StorageUnavailable,
)
from orch_workers.checkpoint.objects import Entry, Storage, checked_path

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Entry", "FsspecStorage", "S3Storage", "Storage", "open_storage"]

UPLOAD_PART_BYTES = 16 << 20
UPLOAD_PARTS_AT_ONCE = 16
LOOK_FIRST_BYTES = 1 << 20
"""From this size on it is cheaper to look before an upload that would be refused at its end."""
CONNECTIONS_MAX = 32
CONNECT_LIMIT_S = 10
READ_LIMIT_S = 60
TRIES_OF_REQUEST_MAX = 3
TRIES_OF_CLIENT_MAX = 2
"""botocore tries a request so often, and s3fs botocore; short, because whoever commits tries again above
that, for as long as it wants.
"""


class FsspecStorage(Storage):
    """Any fsspec file system whose `pipe_file(mode="create")` refuses to replace."""

    def __init__(self, url: str, filesystem: Any, root: str, *, unfenced: bool = False) -> None:
        super().__init__(url, unfenced=unfenced)
        self._fs = filesystem
        self._root = root.rstrip("/")

    def _full(self, path: str) -> str:
        return f"{self._root}/{checked_path(path)}" if path else self._root

    def _create(self, path: str, buffers: Sequence[memoryview]) -> None:
        if sum(map(len, buffers)) >= LOOK_FIRST_BYTES and self.exists(path):
            raise AlreadyExists(f"{self.url}/{path} exists already")
        body = b"".join(buffers)  # s3fs takes no memoryview
        try:
            self._pipe(self._full(path), body)
        except Exception as error:
            raise _translated(error, f"cannot write {self.url}/{path}") from error

    def _pipe(self, full: str, body: bytes) -> None:
        self._fs.pipe_file(full, body, mode="create")

    def size(self, path: str) -> int:
        try:
            info = self._fs.info(self._full(path))
        except Exception as error:
            raise _translated(error, f"cannot read {self.url}/{path}") from error
        if info["type"] != "file":
            raise NotFound(f"{self.url}/{path} is a folder")
        return int(info["size"])

    def read(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        if end is not None and end <= (start or 0):
            return b""
        try:
            found: bytes = self._fs.cat_file(self._full(path), start=start, end=end)
        except Exception as error:
            if _status(error) == 416:  # the range begins behind the end
                return b""
            raise _translated(error, f"cannot read {self.url}/{path}") from error
        return found

    def delete(self, path: str) -> None:
        try:
            self._fs.rm_file(self._full(path))
        except FileNotFoundError:
            return
        except Exception as error:
            raise _translated(error, f"cannot delete {self.url}/{path}") from error

    def list(self, prefix: str = "") -> list[Entry]:
        try:
            found = self._fs.find(self._full(prefix), detail=True)
        except FileNotFoundError:
            found = {}
        except Exception as error:
            raise _translated(error, f"cannot list {self.url}/{prefix}") from error
        if not found:
            self._assert_present()
        skip = len(self._root) + 1
        entries = [
            Entry(name[skip:], int(info["size"]), _modified_us(info))
            for name, info in found.items()
            if info["type"] == "file" and name.startswith(f"{self._root}/")
        ]
        return sorted(entries)

    def _assert_present(self) -> None:
        """Raises when an empty list may only mean that there is no such place."""


class S3Storage(FsspecStorage):
    """S3 and what speaks it, by s3fs."""

    def _pipe(self, full: str, body: bytes) -> None:
        self._fs.pipe_file(
            full, body, mode="create", chunksize=UPLOAD_PART_BYTES, max_concurrency=UPLOAD_PARTS_AT_ONCE
        )

    def _assert_present(self) -> None:
        bucket = self._root.split("/", 1)[0]
        try:
            self._fs.call_s3("head_bucket", Bucket=bucket)
        except Exception as error:
            translated = _translated(error, f"cannot list {self.url}")
            if isinstance(translated, NotFound):
                raise StorageRefused(f"{self.url}: there is no bucket {bucket!r}") from error
            raise translated from error


def open_storage(
    url: str,
    options: Mapping[str, Any] | None = None,
    env: Mapping[str, str] | None = None,
    *,
    unfenced: bool = False,
) -> Storage:
    """Opens a storage; nothing is read or written yet (`check_writable` does that).

    `url`: a path, `file://…`, `s3://bucket/prefix`, or with `unfenced` whatever fsspec opens. `options`: what
    fsspec takes, for S3 also `region` and `addressing_style`. `env`: the job's variables and secrets, where
    AWS_* are looked up; `os.environ` is not read here, and what is given nowhere the client finds by the
    machine's own provider chain.
    """
    if "::" in url:
        raise StorageRefused(f"{url}: chained URLs are not accepted")
    protocol = urlsplit(url).scheme if "://" in url else "file"
    given = dict(options or {})
    if protocol == "file":
        if given:
            raise StorageRefused(f"{url}: a local storage has no options (given: {', '.join(sorted(given))})")
        from orch_workers.checkpoint.local import LocalStorage

        path = unquote(url.removeprefix("file://")) if "://" in url else url
        return LocalStorage(Path(path), unfenced=unfenced)
    if protocol == "s3":
        return _open_s3(url, given, env or {}, unfenced=unfenced)
    if not unfenced:
        raise StorageRefused(
            f"{url}: orch cannot prove that {protocol} never replaces an object, so two writers could "
            f"both commit "
            f"the same checkpoint; use a path or s3://, or set checkpoint.unfenced: true to accept that"
        )
    return _open_other(url, protocol, given)


def _open_s3(url: str, options: dict[str, Any], env: Mapping[str, str], *, unfenced: bool) -> Storage:
    try:
        from s3fs import S3FileSystem
    except ImportError as error:
        raise StorageRefused(f"{url}: needs s3fs; install it with: pip install 'orch[s3]'") from error
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    if not bucket:
        raise StorageRefused(f"{url}: names no bucket; write s3://bucket/prefix")
    for name, variable in _S3_VARIABLES:
        if env.get(variable):
            options.setdefault(name, env[variable])
    client = dict(options.pop("client_kwargs", {}))
    if region := options.pop("region", None):
        client.setdefault("region_name", region)
    config = {
        "connect_timeout": CONNECT_LIMIT_S,
        "read_timeout": READ_LIMIT_S,
        "max_pool_connections": CONNECTIONS_MAX,
        "retries": {"mode": "standard", "total_max_attempts": TRIES_OF_REQUEST_MAX},
        # Checksums of the client cost most of an upload's time (FIELD.md); the manifest has our own.
        "request_checksum_calculation": "when_required",
        "response_checksum_validation": "when_required",
        **dict(options.pop("config_kwargs", {})),
    }
    if style := options.pop("addressing_style", None):
        config["s3"] = {"addressing_style": style}
    filesystem = S3FileSystem(
        **options,
        client_kwargs=client,
        config_kwargs=config,
        use_listings_cache=False,
        skip_instance_cache=True,
    )
    filesystem.retries = TRIES_OF_CLIENT_MAX
    root = f"{bucket}/{prefix.strip('/')}".rstrip("/")
    return S3Storage(f"s3://{root}", filesystem, root, unfenced=unfenced)


_S3_VARIABLES = (
    ("key", "AWS_ACCESS_KEY_ID"),
    ("secret", "AWS_SECRET_ACCESS_KEY"),
    ("token", "AWS_SESSION_TOKEN"),
    ("profile", "AWS_PROFILE"),
    ("endpoint_url", "AWS_ENDPOINT_URL_S3"),
    ("endpoint_url", "AWS_ENDPOINT_URL"),
    ("region", "AWS_REGION"),
    ("region", "AWS_DEFAULT_REGION"),
)
"""Earlier ones win; options win over all."""


class _UnfencedStorage(FsspecStorage):
    """A file system without a create of its own: looked first, then written. Two writers may both win."""

    def _pipe(self, full: str, body: bytes) -> None:
        if self._fs.exists(full):
            raise FileExistsError(full)
        self._fs.pipe_file(full, body)


def _open_other(url: str, protocol: str, options: dict[str, Any]) -> Storage:
    import fsspec

    try:
        filesystem, root = fsspec.core.url_to_fs(
            url, skip_instance_cache=True, use_listings_cache=False, **options
        )
    except (ImportError, ValueError) as error:
        raise StorageRefused(f"{url}: fsspec cannot open {protocol}: {error}") from error
    return _UnfencedStorage(url.rstrip("/"), filesystem, root, unfenced=True)


def _modified_us(info: Mapping[str, Any]) -> int:
    found = info.get("LastModified") or info.get("mtime") or info.get("created")
    if isinstance(found, datetime):
        return int(found.timestamp() * 1e6)
    return int(found * 1e6) if isinstance(found, (int, float)) else 0


def _status(error: BaseException) -> int | None:
    """The HTTP status behind an error of s3fs, which wraps botocore's ClientError."""
    seen: BaseException | None = error
    for _ in range(4):
        if seen is None:
            return None
        response = getattr(seen, "response", None)
        if isinstance(response, dict):
            return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)) or None
        seen = seen.__cause__
    return None


_REFUSED_BY_CLIENT = {
    "NoCredentialsError",
    "PartialCredentialsError",
    "ProfileNotFound",
    "ParamValidationError",
}


def _translated(error: Exception, what: str) -> StorageError:
    """One of ours for whatever a client raised: their classes and wrapping differ between protocols."""
    status = _status(error)
    sentence = f"{what}: {str(error) or type(error).__name__}"
    if isinstance(error, FileExistsError) or status == 412:
        return AlreadyExists(sentence)
    code = getattr(error.__cause__, "response", {}).get("Error", {}).get("Code")
    if code == "NoSuchBucket":
        return StorageRefused(f"{sentence} (there is no such bucket)")
    if isinstance(error, FileNotFoundError) or status == 404:
        return NotFound(sentence)
    if (
        isinstance(error, PermissionError)
        or status in {401, 403}
        or type(error).__name__ in _REFUSED_BY_CLIENT
    ):
        return StorageRefused(sentence)
    return StorageUnavailable(sentence)
