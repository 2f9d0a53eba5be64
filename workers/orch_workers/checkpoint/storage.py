"""Where checkpoints live: create-only objects under a URL. The only file that knows fsspec.

The promise that everything else stands on: `create` never replaces anything, also when two machines write the
same name in the same moment. On S3 that is If-None-Match, on a file system it is `link` (see local.py).
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from orch.model.storage_url import OPENED
from orch_workers.checkpoint.client_errors import status_of, translated
from orch_workers.checkpoint.errors import AlreadyExists, NotFound, StorageRefused
from orch_workers.checkpoint.objects import Entry, Storage, checked_path
from orch_workers.checkpoint.reaching import assert_allowed, guard

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Entry", "FsspecStorage", "S3FsStorage", "Storage", "open_storage"]

JOINED_SHARD_BYTES = 64 << 20
JOINED_AT_ONCE = 2
"""fsspec wants an object in one piece of memory: these are the limit of what is copied together for that. One
tensor that is larger is copied whole.
"""
UPLOAD_PART_BYTES = 16 << 20
UPLOAD_PARTS_AT_ONCE = 16
S3_PUT_BYTES_MAX = 5 << 30
"""S3's limit for one PUT; s3fs uploads what is larger in parts."""
LOOK_FIRST_BYTES = 1 << 20
"""From this size on it is cheaper to look before an upload that would be refused at its end."""
TRIES_OF_CLIENT_MAX = 2
"""s3fs tries again what botocore has; short, because whoever commits tries again above that."""


class FsspecStorage(Storage):
    """Any fsspec file system whose `pipe_file(mode="create")` refuses to replace."""

    shard_bytes = JOINED_SHARD_BYTES
    writes_at_once = JOINED_AT_ONCE

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
            raise translated(error, f"cannot write {self.url}/{path}") from error

    def _pipe(self, full: str, body: bytes) -> None:
        self._fs.pipe_file(full, body, mode="create")

    def size(self, path: str) -> int:
        try:
            info = self._fs.info(self._full(path))
        except Exception as error:
            raise translated(error, f"cannot read {self.url}/{path}") from error
        if info["type"] != "file":
            raise NotFound(f"{self.url}/{path} is a folder")
        return int(info["size"])

    def read(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        if end is not None and end <= (start or 0):
            return b""
        try:
            found: bytes = self._fs.cat_file(self._full(path), start=start, end=end)
        except Exception as error:
            if status_of(error) == 416:  # the range begins behind the end
                return b""
            raise translated(error, f"cannot read {self.url}/{path}") from error
        return found

    def delete(self, path: str) -> None:
        try:
            self._fs.rm_file(self._full(path))
        except FileNotFoundError:
            return
        except Exception as error:
            raise translated(error, f"cannot delete {self.url}/{path}") from error

    def list(self, prefix: str = "") -> list[Entry]:
        try:
            found = self._fs.find(self._full(prefix), detail=True)
        except FileNotFoundError:
            found = {}
        except Exception as error:
            raise translated(error, f"cannot list {self.url}/{prefix}") from error
        if not found:
            self._assert_present()
        skip = len(self._root) + 1
        entries = [
            Entry(name[skip:], int(info["size"]), _modified_us(info))
            for name, info in found.items()
            if info["type"] == "file" and name.startswith(f"{self._root}/")
        ]
        return sorted(entries)

    def folders(self) -> Sequence[str]:
        try:
            found = self._fs.ls(self._root, detail=True)
        except FileNotFoundError:
            found = []
        except Exception as error:
            raise translated(error, f"cannot list {self.url}") from error
        if not found:
            self._assert_present()
        return sorted(
            info["name"].rstrip("/").rpartition("/")[2] for info in found if info["type"] == "directory"
        )

    def _assert_present(self) -> None:
        """Raises when an empty list may only mean that there is no such place."""


class S3FsStorage(FsspecStorage):
    """S3 by s3fs, for options that only s3fs knows; without them s3.py serves, faster."""

    fenced_bytes_max = S3_PUT_BYTES_MAX

    def _pipe(self, full: str, body: bytes) -> None:
        # In one PUT as long as S3 takes it: of two uploads in parts both may win.
        part_bytes = max(UPLOAD_PART_BYTES, len(body) if len(body) <= self.fenced_bytes_max else 0)
        self._fs.pipe_file(
            full, body, mode="create", chunksize=part_bytes, max_concurrency=UPLOAD_PARTS_AT_ONCE
        )

    def _assert_present(self) -> None:
        bucket = self._root.split("/", 1)[0]
        try:
            self._fs.call_s3("head_bucket", Bucket=bucket)
        except Exception as error:
            ours = translated(error, f"cannot list {self.url}")
            if isinstance(ours, NotFound):
                raise StorageRefused(f"{self.url}: there is no bucket {bucket!r}") from error
            raise ours from error


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
    protocol = url.partition("://")[0] if "://" in url else "file"
    if protocol not in OPENED:
        raise StorageRefused(f"{url}: {protocol!r} is no protocol that orch opens")
    given = dict(options or {})
    if protocol == "file":
        if given:
            raise StorageRefused(f"{url}: a local storage has no options (given: {', '.join(sorted(given))})")
        from orch_workers.checkpoint.local import LocalStorage

        path = unquote(url.removeprefix("file://")) if "://" in url else url
        return LocalStorage(Path(path), unfenced=unfenced)
    if protocol in {"s3", "s3a"}:
        return _open_s3(url, given, env or {}, unfenced=unfenced)
    if not unfenced:
        raise StorageRefused(
            f"{url}: orch cannot prove that {protocol} never replaces an object, so two writers could "
            f"both commit "
            f"the same checkpoint; use a path or s3://, or set checkpoint.unfenced: true to accept that"
        )
    assert_allowed(url, given)
    return _open_other(url, protocol, given)


def _open_s3(url: str, options: dict[str, Any], env: Mapping[str, str], *, unfenced: bool) -> Storage:
    bucket, _, prefix = url.partition("://")[2].partition("/")
    prefix = prefix.strip("/")
    for name, variable in _S3_VARIABLES:
        if env.get(variable):
            options.setdefault(name, env[variable])
    try:
        from orch_workers.checkpoint import s3

        if not bucket:
            raise StorageRefused(f"{url}: names no bucket; write s3://bucket/prefix")
        assert_allowed(url, options)
        if set(options) <= s3.OPTIONS:
            client = s3.open_client(options)
            guard(client)
            return s3.S3Storage(client, bucket, prefix, unfenced=unfenced)
        return _open_s3fs(f"{bucket}/{prefix}".rstrip("/"), options, unfenced=unfenced)
    except ImportError as error:
        raise StorageRefused(f"{url}: needs s3fs; install it with: pip install 'orch[s3]'") from error
    except StorageRefused:
        raise
    except Exception as error:
        raise StorageRefused(f"{url}: cannot be opened: {error}") from error


def _open_s3fs(root: str, options: dict[str, Any], *, unfenced: bool) -> Storage:
    from s3fs import S3FileSystem

    from orch_workers.checkpoint import s3

    config = s3.config_options(options)
    client = dict(options.pop("client_kwargs", {}))
    if region := options.pop("region", None):
        client.setdefault("region_name", region)
    for ours in ("addressing_style", "config_kwargs"):
        options.pop(ours, None)
    filesystem = S3FileSystem(
        **options,
        client_kwargs=client,
        config_kwargs=config,
        use_listings_cache=False,
        skip_instance_cache=True,
    )
    filesystem.retries = TRIES_OF_CLIENT_MAX
    return S3FsStorage(f"s3://{root}", filesystem, root, unfenced=unfenced)


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
