"""S3 and what speaks it, by botocore: bytes go from the snapshot's memory to the socket and back, uncopied.

One object is one PUT with If-None-Match, whatever its size up to 5 GiB: create-only by the same header that
`check_writable` proves, and a writer that dies leaves nothing. Parallelism comes from several shards at once.
Larger ones go up in parts, which nothing fences (`fenced_bytes_max`).
Why not s3fs, boto3's transfers, obstore or the CRT: docs/decisions/2026-11-21-s3-by-botocore.md.
"""

from __future__ import annotations

import contextlib
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from orch_workers.checkpoint.client_errors import status_of, translated
from orch_workers.checkpoint.errors import NotFound, StorageRefused, StorageUnavailable
from orch_workers.checkpoint.objects import Entry, Storage, checked_path

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

S3_SHARD_BYTES = 64 << 20
"""Smaller than on a disk: a shard is one request, and several at once fill the line. Also what a failed
request costs.
"""
_CPUS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
UPLOADS_AT_ONCE = min(16, 2 * _CPUS)
DOWNLOADS_AT_ONCE = min(32, 4 * _CPUS)
"""One connection of S3 carries some 90 MB/s; many of them take processor time from training."""
SEND_BYTES = 1 << 20
RECEIVE_BYTES = 1 << 20
"""Handed to the socket at a time: all that an upload or a download holds in memory of its own."""
PUT_BYTES_MAX = 5 << 30
"""S3's limit for one PUT; what is larger goes up in parts."""
PART_BYTES_MIN = 64 << 20
PARTS_MAX = 10_000
CONNECTIONS_MAX = 64
CONNECT_LIMIT_S = 10
READ_LIMIT_S = 30
"""Without a single byte. Half of what botocore has: a connection that a gateway has lost holds up one commit for so
long, and a retry of what had arrived all the same is recognised.
"""
TRIES_OF_REQUEST_MAX = 3
"""Short, because whoever commits tries again above that, for as long as it wants."""

OPTIONS = frozenset(
    {
        "key",
        "secret",
        "token",
        "profile",
        "endpoint_url",
        "region",
        "addressing_style",
        "anon",
        "client_kwargs",
        "config_kwargs",
    }
)
"""The options of s3fs that this client knows as well; with others s3fs itself serves."""


def config_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Botocore's Config, also s3fs's `config_kwargs`, for what a storage was given."""
    given = dict(options.get("config_kwargs") or {})
    # The payload is not signed and carries no checksum of the client's: both cost more than sending it
    # (FIELD.md). TLS guards it on the way, and the manifest has digests of our own for ever.
    s3 = {"payload_signing_enabled": False, **dict(given.pop("s3", None) or {})}
    if style := options.get("addressing_style"):
        s3["addressing_style"] = style
    return {
        "connect_timeout": CONNECT_LIMIT_S,
        "read_timeout": READ_LIMIT_S,
        "max_pool_connections": CONNECTIONS_MAX,
        "retries": {"mode": "standard", "total_max_attempts": TRIES_OF_REQUEST_MAX},
        "request_checksum_calculation": "when_required",
        "response_checksum_validation": "when_required",
        **given,
        "s3": s3,
    }


def open_client(options: Mapping[str, Any]) -> Any:
    """A botocore client. Raises botocore's own errors (an unknown profile, half a pair of keys)."""
    import botocore.session  # type: ignore[import-untyped]
    from botocore import UNSIGNED
    from botocore.config import Config  # type: ignore[import-untyped]

    config = config_options(options)
    if options.get("anon"):
        config["signature_version"] = UNSIGNED
    session = botocore.session.Session(profile=options.get("profile"))
    given = {
        "region_name": options.get("region"),
        "endpoint_url": options.get("endpoint_url"),
        "aws_access_key_id": options.get("key"),
        "aws_secret_access_key": options.get("secret"),
        "aws_session_token": options.get("token"),
    }
    given = {name: value for name, value in given.items() if value is not None}
    return session.create_client(
        "s3", config=Config(**config), **given | dict(options.get("client_kwargs") or {})
    )


class S3Storage(Storage):
    """A prefix of a bucket."""

    shard_bytes = S3_SHARD_BYTES
    writes_at_once = UPLOADS_AT_ONCE
    reads_at_once = DOWNLOADS_AT_ONCE
    fenced_bytes_max = PUT_BYTES_MAX

    def __init__(self, client: Any, bucket: str, prefix: str, *, unfenced: bool = False) -> None:
        super().__init__(f"s3://{bucket}/{prefix}".rstrip("/"), unfenced=unfenced)
        self._client = client
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._bucket_seen = False

    def _key(self, path: str) -> str:
        return self._prefix + checked_path(path)

    def _create(self, path: str, buffers: Sequence[memoryview]) -> None:
        body, key = Body(buffers), self._key(path)
        try:
            if len(body) > self.fenced_bytes_max:
                self._upload_in_parts(key, body)
            else:
                self._client.put_object(Bucket=self._bucket, Key=key, Body=body, IfNoneMatch="*")
        except Exception as error:
            raise translated(error, f"cannot write {self.url}/{path}") from error

    def size(self, path: str) -> int:
        try:
            found = self._client.head_object(Bucket=self._bucket, Key=self._key(path))
        except Exception as error:
            ours = translated(error, f"cannot read {self.url}/{path}")
            if isinstance(ours, NotFound):
                self._assert_bucket()  # the answer to HEAD does not say which of the two is missing
            raise ours from error
        return int(found["ContentLength"]) if "ContentLength" in found else self._size_by_range(path)

    def _size_by_range(self, path: str) -> int:
        """For proxies that leave the length out where there is no body (microburst does, and some that compress)."""
        with self._reading(path):
            try:
                found = self._client.get_object(Bucket=self._bucket, Key=self._key(path), Range="bytes=0-0")
            except Exception as error:
                if status_of(error) != 416:
                    raise
                return 0  # there is no first byte
            found["Body"].close()
        total = str(found.get("ContentRange", "")).rpartition("/")[2]
        if not total.isdecimal():
            raise StorageUnavailable(f"cannot read {self.url}/{path}: an answer without its length")
        return int(total)

    def read(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        first = start or 0
        if end is not None and end <= first:
            return b""
        wanted = (
            {} if end is None and not first else {"Range": f"bytes={first}-{'' if end is None else end - 1}"}
        )
        with self._reading(path), self._open(path, wanted) as body:
            found: bytes = body.read() if body is not None else b""
        return found

    def read_into(self, path: str, start: int, view: memoryview) -> int:
        done = 0
        if not len(view):
            return done
        wanted = {"Range": f"bytes={start}-{start + len(view) - 1}"}
        with self._reading(path), self._open(path, wanted) as body:
            while body is not None and done < len(view):
                count = body.readinto(view[done : done + RECEIVE_BYTES])
                if not count:
                    break
                done += count
        return done

    @contextlib.contextmanager
    def _reading(self, path: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            raise translated(error, f"cannot read {self.url}/{path}") from error

    @contextlib.contextmanager
    def _open(self, path: str, wanted: dict[str, str]) -> Iterator[Any]:
        """The body of an answer, closed after; None when the range begins behind the end."""
        try:
            body = self._client.get_object(Bucket=self._bucket, Key=self._key(path), **wanted)["Body"]
        except Exception as error:
            if status_of(error) != 416:
                raise
            yield None
            return
        try:
            yield body
        finally:
            body.close()

    def delete(self, path: str) -> None:
        try:
            self._client.delete_object(Bucket=self._bucket, Key=self._key(path))
        except Exception as error:
            ours = translated(error, f"cannot delete {self.url}/{path}")
            if not isinstance(ours, NotFound):
                raise ours from error

    def list(self, prefix: str = "") -> list[Entry]:
        folder = f"{self._key(prefix)}/" if prefix else self._prefix
        found = []
        try:
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=folder)
            for page in pages:
                for item in page.get("Contents", ()):
                    modified_us = int(item["LastModified"].timestamp() * 1e6)
                    found.append(Entry(item["Key"][len(self._prefix) :], int(item["Size"]), modified_us))
        except Exception as error:
            if "NoSuchBucket" in str(error):
                raise self._no_bucket() from error
            raise translated(error, f"cannot list {self.url}/{prefix}") from error
        if not found:
            self._assert_bucket()  # some servers have an empty list for a bucket that is not there
        return sorted(entry for entry in found if not entry.path.endswith("/"))

    def folders(self) -> Sequence[str]:
        found = []
        try:
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=self._prefix, Delimiter="/"
            )
            for page in pages:
                found += [
                    item["Prefix"][len(self._prefix) :].rstrip("/") for item in page.get("CommonPrefixes", ())
                ]
        except Exception as error:
            if "NoSuchBucket" in str(error):
                raise self._no_bucket() from error
            raise translated(error, f"cannot list {self.url}") from error
        if not found:
            self._assert_bucket()
        return sorted(found)

    def _assert_bucket(self) -> None:
        if self._bucket_seen:
            return
        try:
            self._client.head_bucket(Bucket=self._bucket)
        except Exception as error:
            ours = translated(error, f"cannot reach {self.url}")
            raise (self._no_bucket() if isinstance(ours, NotFound) else ours) from error
        self._bucket_seen = True

    def _no_bucket(self) -> StorageRefused:
        return StorageRefused(f"{self.url}: there is no bucket {self._bucket!r}")

    def _upload_in_parts(self, key: str, body: Body) -> None:
        """Create-only at its end, where two may still both win (SeaweedFS 4.48, tried); an error takes the
        parts away again.
        """
        place = {"Bucket": self._bucket, "Key": key}
        place["UploadId"] = self._client.create_multipart_upload(**place)["UploadId"]
        size_bytes = max(PART_BYTES_MIN, -(-len(body) // PARTS_MAX))

        def upload(number: int) -> dict[str, Any]:
            part = body.part(number * size_bytes, size_bytes)
            answer = self._client.upload_part(**place, PartNumber=number + 1, Body=part)
            return {"PartNumber": number + 1, "ETag": answer["ETag"]}

        try:
            with ThreadPoolExecutor(UPLOADS_AT_ONCE, thread_name_prefix="parts") as pool:
                try:
                    parts = list(pool.map(upload, range(-(-len(body) // size_bytes))))
                except BaseException:
                    pool.shutdown(cancel_futures=True)
                    raise
            self._client.complete_multipart_upload(**place, MultipartUpload={"Parts": parts}, IfNoneMatch="*")
        except BaseException:
            with contextlib.suppress(Exception):  # one is going up already
                self._client.abort_multipart_upload(**place)
            raise


class Body:
    """Buffers as one file to read from, without joining them.

    `read` gives a view of what lies there, whatever size is asked for: urllib3 asks for 16 KiB at a time and
    hands on what it gets.
    """

    def __init__(self, buffers: Sequence[memoryview]) -> None:
        self._buffers = tuple(buffers)
        self._size_bytes = sum(map(len, self._buffers))
        self._at = 0

    def __len__(self) -> int:
        return self._size_bytes

    def part(self, start: int, size_bytes: int) -> Body:
        """A body of its own over a stretch of this one."""
        found, position = [], 0
        for buffer in self._buffers:
            first, last = max(0, start - position), min(len(buffer), start + size_bytes - position)
            if first < last:
                found.append(buffer[first:last])
            position += len(buffer)
        return Body(found)

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size_bytes}[whence]
        self._at = min(max(0, base + offset), self._size_bytes)
        return self._at

    def read(self, size: int = -1) -> memoryview:
        position = 0
        for buffer in self._buffers:
            if self._at < position + len(buffer):
                found = buffer[self._at - position :][:SEND_BYTES]
                self._at += len(found)
                return found
            position += len(buffer)
        return memoryview(b"")
