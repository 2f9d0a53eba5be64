"""The home folder of the server machine: where everything lies, and who may read it.

Light to import: the CLI finds the server through it.
"""

import contextlib
import json
import os
import secrets
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

from orch.model.errors import NoServer, WrongUse

__all__ = ["Home", "ServerRecord", "ensure_private_file", "read_private_file", "write_private_file"]

PRIVATE_FILE_BYTES_MAX = 64 << 10
"""Tokens, keys and server.json are short; a longer file is something else."""
_TOKEN_BYTES = 32


@dataclass(frozen=True, slots=True)
class ServerRecord:
    """`server.json`: where the server of this home answers."""

    url: str
    pid: int
    version: str
    ray_address: str


@dataclass(frozen=True, slots=True)
class Home:
    """Paths below `root`. Nothing is made before `ensure`."""

    root: Path

    @classmethod
    def find(cls, env: Mapping[str, str] | None = None) -> Self:
        """`ORCH_HOME`, else the user's data folder as the platform has it."""
        from orch.model.config import orch_home  # its YAML reader costs time that a known home need not pay

        return cls(orch_home(env))

    def ensure(self) -> Self:
        """Makes the folder and its parts, readable by their owner alone; WrongUse if they are another's."""
        for folder in (self.root, self.storage, self.jobs, self.node, self.ray, self.gcs, self.uploads):
            try:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                raise WrongUse(
                    f"cannot make {folder}: {error.strerror}; set ORCH_HOME to a folder of yours"
                ) from error
        if hasattr(os, "getuid") and self.root.stat().st_uid != os.getuid():
            raise WrongUse(f"{self.root} belongs to another user; set ORCH_HOME to a folder of yours")
        if self.root.stat().st_mode & 0o077:
            self.root.chmod(0o700)
        return self

    @property
    def config(self) -> Path:
        return self.root / "config.yaml"

    @property
    def token(self) -> Path:
        return self.root / "token"

    @property
    def ray_token(self) -> Path:
        return self.root / "ray-token"

    @property
    def secret_key(self) -> Path:
        return self.root / "secret.key"

    @property
    def server_json(self) -> Path:
        return self.root / "server.json"

    @property
    def listen(self) -> Path:
        """What `orch server start --listen` said, until the next start."""
        return self.root / "listen.json"

    @property
    def database(self) -> Path:
        return self.root / "orch.db"

    @property
    def storage(self) -> Path:
        """Where checkpoints go when a job names no storage."""
        return self.root / "storage"

    @property
    def jobs(self) -> Path:
        """Logs, one folder per job; they stay when the job is over."""
        return self.root / "jobs"

    @property
    def node(self) -> Path:
        """Working area of this machine's agents."""
        return self.root / "node"

    @property
    def ray(self) -> Path:
        return self.root / "ray"

    @property
    def gcs(self) -> Path:
        return self.root / "gcs"

    @property
    def uploads(self) -> Path:
        """Code zips, `<digest>.zip`, from their upload until the job's storage has them."""
        return self.root / "uploads"

    def attempt_folder(self, job: str, attempt: int) -> Path:
        return self.jobs / job / f"attempt-{attempt:06d}"

    def log_path(self, job: str, attempt: int, rank: int) -> Path:
        return self.attempt_folder(job, attempt) / f"rank-{rank}.log"

    def ensure_token(self) -> str:
        """The API's bearer token, made at the first call."""
        return ensure_private_file(self.token, _new_token)

    def ensure_ray_token(self) -> str:
        return ensure_private_file(self.ray_token, _new_token)

    def read_token(self) -> str:
        """NoServer if there is none yet."""
        try:
            return read_private_file(self.token)
        except FileNotFoundError:
            raise NoServer(
                f"no server was ever started in {self.root}; start one with `orch server start`"
            ) from None

    def write_server(self, record: ServerRecord) -> None:
        write_private_file(self.server_json, json.dumps(asdict(record)) + "\n")

    def read_server(self) -> ServerRecord | None:
        """None when no server was started here, or none that this version can read."""
        try:
            document: Any = json.loads(read_private_file(self.server_json))
            return ServerRecord(**{field.name: document[field.name] for field in fields(ServerRecord)})
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def ray_lives(self) -> bool:
        """Whether the Ray that this home started is there: it restarts a controller that died."""
        try:
            pid = int(json.loads((self.root / "ray.json").read_text())["gcs_pid"])
            return b"gcs_server" in Path(f"/proc/{pid}/cmdline").read_bytes()
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def forget_server(self) -> None:
        self.server_json.unlink(missing_ok=True)


def read_private_file(path: Path) -> str:
    """The text of a file with a secret in it, stripped; WrongUse if others than its owner can read it."""
    with path.open("rb") as file:
        mode = os.fstat(file.fileno()).st_mode
        if os.name == "posix" and mode & 0o077:
            raise WrongUse(
                f"{path} can be read by others than you ({mode & 0o777:o}), who may know what it protects."
                f" Remove it to have a new one made, or `chmod 600 {path}` if nobody else uses this machine"
            )
        text = file.read(PRIVATE_FILE_BYTES_MAX + 1)
    if len(text) > PRIVATE_FILE_BYTES_MAX:
        raise WrongUse(f"{path} is longer than {PRIVATE_FILE_BYTES_MAX} bytes: that is no file of orch's")
    try:
        return text.decode("ascii").strip()
    except UnicodeDecodeError:
        raise WrongUse(f"{path} is damaged: it holds bytes that orch never writes; remove it") from None


def write_private_file(path: Path, text: str) -> None:
    """Replaces `path` in one step with a 0600 file."""
    temporary = _temporary_beside(path, text)
    try:
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def ensure_private_file(path: Path, make: Callable[[], str]) -> str:
    """What `path` holds; made with `make()` if it is not there. Of two at once one wins, and both read it."""
    with contextlib.suppress(FileNotFoundError):
        return read_private_file(path)
    temporary = _temporary_beside(path, make() + "\n")
    try:
        # A link, not a rename: it fails where the other one was first, and nobody ever sees an empty file.
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return read_private_file(path)


def _temporary_beside(path: Path, text: str) -> Path:
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mkstemp makes it 0600
    with os.fdopen(descriptor, "wb") as file:
        file.write(text.encode("ascii"))
        file.flush()
        os.fsync(file.fileno())
    return Path(name)


def _new_token() -> str:
    return secrets.token_hex(_TOKEN_BYTES)
