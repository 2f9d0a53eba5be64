"""The S3 clients that orch is compared with, each as fast as it was found to be on this kind of machine.

All against the same server, without TLS, without client checksums, and without signatures over the payload, because
orch sends none either; all with connections to spare. The state is one stretch of memory.

- s3fs: `pipe_file`, objects of 256 MiB in parts of 16 MiB, 16 at once, as FIELD.md found it fastest (it takes bytes
  only, so every object is copied); reads by `cat_ranges`, 16 MiB each, 8 at once.
- boto3: its classic transfer manager, objects of 256 MiB in parts of 16 MiB, 8 at once, from and into memory.
- obstore: one PUT for each 64 MiB, 4 at once, straight from memory (quicker here than its uploads in parts); reads by
  `get_range`, 16 MiB each, 8 at once, copied into place.
- CRT: s3transfer's manager over awscrt, parts of 16 MiB, a target of 40 Gbit/s; where awscrt is installed.
"""

from __future__ import annotations

import importlib.util
import io
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol

from tests.support.seaweed import ACCESS_KEY, BUCKET, SECRET_KEY, SeaweedFS

if TYPE_CHECKING:
    from collections.abc import Callable

LARGE_BYTES = 256 << 20
PART_BYTES = 16 << 20
PUT_BYTES = 64 << 20
PUTS_AT_ONCE = 4
AT_ONCE = 8
S3FS_AT_ONCE = 16
CONNECTIONS = 64
CRT_BITS_PER_S = 40e9
REGION = "us-east-1"


class Client(Protocol):
    def upload(self, prefix: str, view: memoryview) -> None: ...

    def download(self, prefix: str, view: memoryview) -> None:
        """What `upload` of this client put there; `view` is memory that has been touched."""


def all_of(server: SeaweedFS) -> dict[str, Client]:
    makers: dict[str, Callable[[SeaweedFS], Client]] = {"s3fs": S3fs, "boto3": Boto3, "obstore": Obstore}
    if importlib.util.find_spec("awscrt"):
        makers["CRT"] = Crt
    return {name: make(server) for name, make in makers.items()}


def _config() -> dict[str, Any]:
    return {
        "max_pool_connections": CONNECTIONS,
        "request_checksum_calculation": "when_required",
        "response_checksum_validation": "when_required",
        "s3": {"payload_signing_enabled": False, "addressing_style": "path"},
    }


def _stretches(view: memoryview, size_bytes: int) -> list[tuple[int, memoryview]]:
    return [(at, view[at : at + size_bytes]) for at in range(0, len(view), size_bytes)]


class S3fs:
    def __init__(self, server: SeaweedFS) -> None:
        from s3fs import S3FileSystem

        self._fs = S3FileSystem(
            key=ACCESS_KEY,
            secret=SECRET_KEY,
            endpoint_url=server.endpoint,
            client_kwargs={"region_name": REGION},
            config_kwargs=_config(),
            use_listings_cache=False,
            skip_instance_cache=True,
        )

    def upload(self, prefix: str, view: memoryview) -> None:
        for at, part in _stretches(view, LARGE_BYTES):
            path = f"{BUCKET}/{prefix}/{at}"
            self._fs.pipe_file(path, bytes(part), chunksize=PART_BYTES, max_concurrency=S3FS_AT_ONCE)

    def download(self, prefix: str, view: memoryview) -> None:
        for at, whole in _stretches(view, LARGE_BYTES):
            places = _stretches(whole, PART_BYTES)
            starts = [start for start, _ in places]
            ends = [start + len(part) for start, part in places]
            paths = [f"{BUCKET}/{prefix}/{at}"] * len(places)
            found = self._fs.cat_ranges(paths, starts, ends, batch_size=AT_ONCE)
            for (_, part), data in zip(places, found, strict=True):
                part[:] = data


class Boto3:
    def __init__(self, server: SeaweedFS) -> None:
        import boto3
        from boto3.s3.transfer import TransferConfig
        from botocore.config import Config

        self._client = boto3.session.Session().client(
            "s3",
            endpoint_url=server.endpoint,
            region_name=REGION,
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            config=Config(**_config()),
        )
        self._transfer = TransferConfig(
            multipart_threshold=PART_BYTES,
            multipart_chunksize=PART_BYTES,
            max_concurrency=AT_ONCE,
            io_chunksize=1 << 20,
            preferred_transfer_client="classic",
        )

    def upload(self, prefix: str, view: memoryview) -> None:
        for at, part in _stretches(view, LARGE_BYTES):
            self._client.upload_fileobj(InMemory(part), BUCKET, f"{prefix}/{at}", Config=self._transfer)

    def download(self, prefix: str, view: memoryview) -> None:
        for at, part in _stretches(view, LARGE_BYTES):
            self._client.download_fileobj(BUCKET, f"{prefix}/{at}", InMemory(part), Config=self._transfer)


class Obstore:
    def __init__(self, server: SeaweedFS) -> None:
        from obstore.store import S3Store

        self._store = S3Store(
            BUCKET,
            endpoint=server.endpoint,
            region=REGION,
            access_key_id=ACCESS_KEY,
            secret_access_key=SECRET_KEY,
            unsigned_payload=True,
            client_options={"allow_http": True, "timeout": "120s"},
        )

    def upload(self, prefix: str, view: memoryview) -> None:
        import obstore

        def put(place: tuple[int, memoryview]) -> None:
            obstore.put(self._store, f"{prefix}/{place[0]}", place[1], mode="create")

        with ThreadPoolExecutor(PUTS_AT_ONCE) as pool:
            list(pool.map(put, _stretches(view, PUT_BYTES)))

    def download(self, prefix: str, view: memoryview) -> None:
        import obstore

        def get(place: tuple[int, memoryview]) -> None:
            at, part = place
            start = at % PUT_BYTES
            path = f"{prefix}/{at - start}"
            part[:] = memoryview(obstore.get_range(self._store, path, start=start, end=start + len(part)))

        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(get, _stretches(view, PART_BYTES)))


class Crt:
    def __init__(self, server: SeaweedFS) -> None:
        import botocore.session
        from botocore.config import Config
        from s3transfer.crt import (
            BotocoreCRTCredentialsWrapper,
            BotocoreCRTRequestSerializer,
            CRTTransferManager,
            create_s3_crt_client,
        )

        session = botocore.session.Session()
        session.set_credentials(ACCESS_KEY, SECRET_KEY)
        provider = BotocoreCRTCredentialsWrapper(session.get_credentials()).to_crt_credentials_provider()
        client = create_s3_crt_client(
            REGION,
            provider,
            target_throughput=CRT_BITS_PER_S / 8,
            part_size=PART_BYTES,
            use_ssl=False,
            verify=False,
        )
        config = Config(request_checksum_calculation="when_required", s3={"addressing_style": "path"})
        given = {"region_name": REGION, "endpoint_url": server.endpoint, "config": config}
        self._manager = CRTTransferManager(client, BotocoreCRTRequestSerializer(session, given))

    def upload(self, prefix: str, view: memoryview) -> None:
        parts = _stretches(view, LARGE_BYTES)
        done = [self._manager.upload(InMemory(part), BUCKET, f"{prefix}/{at}") for at, part in parts]
        for future in done:
            future.result()

    def download(self, prefix: str, view: memoryview) -> None:
        parts = _stretches(view, LARGE_BYTES)
        done = [self._manager.download(BUCKET, f"{prefix}/{at}", InMemory(part)) for at, part in parts]
        for future in done:
            future.result()


class InMemory(io.RawIOBase):
    """A file over a stretch of memory."""

    def __init__(self, view: memoryview) -> None:
        super().__init__()
        self._view, self._at = view, 0

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: len(self._view)}[whence]
        self._at = base + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        found = self._view[self._at : self._at + len(buffer)]
        buffer[: len(found)] = found
        self._at += len(found)
        return len(found)

    def write(self, data: Any) -> int:
        self._view[self._at : self._at + len(data)] = data
        self._at += len(data)
        return len(data)
