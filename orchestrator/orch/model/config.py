"""The config file of a home folder: `config.yaml`, read as strictly as a job file.

Light to import (no pydantic): the CLI reads it on every call, to find its server.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from orch.model.lease import LEASE_MAX_S, LEASE_MIN_S, LEASE_S
from orch.model.listening import LISTEN_ALLOWED, Listen, listen_from
from orch.model.problems import ConfigError, Problem, format_path, near_match, shown
from orch.model.storage_url import check_storage_options, check_storage_url
from orch.model.strict_yaml import SIZE_BYTES_MAX, Document, Place, parse_yaml
from orch.model.units import (
    DURATION_ALLOWED,
    SIZE_ALLOWED,
    UNLIMITED,
    UnitError,
    parse_duration_s,
    parse_size_bytes,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = [
    "CLUSTER_ALLOWED",
    "CONFIG_KEYS",
    "Config",
    "ConfigError",
    "StorageDefault",
    "cluster_kind",
    "config_file",
    "load_config",
    "orch_home",
]

CONFIG_FILE = "config.yaml"
CONFIG_VARIABLE = "ORCH_CONFIG"
"""Names another file, for one that comes from elsewhere than the home (a ConfigMap, a configuration system)."""
CLUSTER_ALLOWED = (
    "HOST:PORT of a Ray cluster, the http(s):// URL of an orch server, or ssh://[USER@]HOST[:PORT]"
)
RAY_STATES = ("memory", "disk")
"""Where the Ray that orch starts keeps what it knows of the cluster."""
MACHINES_MAX = 10_000
"""Of a kind: more than any autoscaler brings."""
_CPUS_MAX = 65_536
_GPUS_MAX = 1024

_HOST = r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:]+\])"
_CLUSTERS: dict[Literal["ray", "api", "ssh"], re.Pattern[str]] = {
    "ray": re.compile(rf"{_HOST}:[0-9]{{1,5}}"),
    "api": re.compile(rf"https?://{_HOST}(?::[0-9]{{1,5}})?(?:/[A-Za-z0-9._~/-]*)?"),
    "ssh": re.compile(rf"ssh://(?:[A-Za-z0-9_][A-Za-z0-9_.-]*@)?{_HOST}(?::[0-9]{{1,5}})?"),
}


def orch_home(env: Mapping[str, str] | None = None) -> Path:
    """`ORCH_HOME`, else the user's data folder as the platform has it. Makes nothing."""
    given = (os.environ if env is None else env).get("ORCH_HOME", "")
    if given:
        return Path(given).expanduser().absolute()
    import platformdirs

    return Path(platformdirs.user_data_dir("orch", appauthor=False))


def config_file(home: Path, env: Mapping[str, str] | None = None) -> Path:
    given = (os.environ if env is None else env).get(CONFIG_VARIABLE, "")
    return Path(given) if given else home / CONFIG_FILE


def cluster_kind(cluster: str) -> Literal["ray", "api", "ssh"]:
    """What the text of `--cluster` or ORCH_CLUSTER names. Raises ValueError with the end of a sentence.

    Whatever passes is safe as an argument of a command (it cannot begin with a hyphen).
    """
    for kind, pattern in _CLUSTERS.items():
        if pattern.fullmatch(cluster):
            return kind
    if cluster.startswith("ray://"):
        raise ValueError(
            "is an address of Ray Client, which cannot keep jobs alive: name the cluster's own port"
        )
    if cluster == "auto":
        raise ValueError("may pick any Ray that happens to run on this machine: name the one you mean")
    raise ValueError("is no address of a cluster")


@dataclass(frozen=True, slots=True)
class StorageDefault:
    """Where checkpoints go when a job names no storage."""

    url: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Machines:
    """Of one kind, which an autoscaler brings when they are needed."""

    count: int = 1
    cpus: int = 1
    gpus: int = 0
    memory_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Config:
    """What config file and environment say. `origins` tells for every key where its value came from."""

    cluster: str | None = None
    store: str | None = field(default=None, repr=False)  # may hold a password
    storage: StorageDefault | None = None
    port: int = 0
    listen: Listen | None = None
    cpus: int | None = None
    gpus: int | None = None
    keep_logs_s: float | None = None
    lease_s: float = LEASE_S
    ray_state: str = RAY_STATES[0]
    machines: tuple[Machines, ...] = ()
    origins: dict[str, str] = field(default_factory=dict)


class _RefusedError(Exception):
    """A value that a key cannot have."""

    def __init__(self, *problems: Problem) -> None:
        super().__init__()
        self.problems = problems


def _refuse(message: str, allowed: str | None = None, near: str | None = None) -> _RefusedError:
    return _RefusedError(Problem(message, allowed=allowed, near=near))


def _cluster(value: Any, _base: Path) -> str:
    if not isinstance(value, str):
        raise _refuse(f"is {shown(value)}", CLUSTER_ALLOWED)
    try:
        cluster_kind(value)
    except ValueError as error:
        raise _refuse(f"{shown(value)} {error}", CLUSTER_ALLOWED) from None
    return value


def _store(value: Any, _base: Path) -> str:
    # The rest of the URL is the database driver's to judge; it may hold a password, so it is never shown.
    allowed = "postgresql+psycopg://USER@HOST/DATABASE or sqlite:////PATH"
    if not isinstance(value, str) or not value.startswith(("postgresql+psycopg://", "sqlite:///")):
        raise _refuse("is no database of orch's", allowed)
    return value


def _storage(value: Any, base: Path) -> StorageDefault:
    document = {"url": value} if isinstance(value, str) else value
    allowed = "a URL, or a mapping of url and options"
    if not isinstance(document, dict) or not isinstance(document.get("url"), str):
        raise _refuse(
            f"is {shown(value)} without a url" if isinstance(value, dict) else f"is {shown(value)}", allowed
        )
    url, options = document["url"], document.get("options") or {}
    problems = [
        Problem(f"unknown key {shown(key)}", allowed=allowed) for key in document.keys() - {"url", "options"}
    ]
    if not isinstance(options, dict):
        raise _refuse(f"options is {shown(options)}", "a mapping")
    if url and ":" not in url:
        url = os.path.normpath(base / os.path.expanduser(url))  # noqa: PTH111  pathlib raises without a home
    problems += check_storage_url(url) + check_storage_options(options)
    if problems:
        raise _RefusedError(*problems)
    return StorageDefault(url, options)


def _listen(value: Any, base: Path) -> Listen:
    document = {"address": value} if isinstance(value, str) else value
    if not isinstance(document, dict):
        raise _refuse(f"is {shown(value)}", f"{LISTEN_ALLOWED}, or a mapping")
    try:
        return listen_from(document, base)
    except ValueError as error:
        raise _refuse(str(error)) from None


def _whole(minimum: int, maximum: int) -> Callable[[Any, Path], int]:
    def check(value: Any, _base: Path) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
            raise _refuse(f"{shown(value)} is not possible", f"a whole number from {minimum} to {maximum}")
        return value

    return check


def _keep_logs(value: Any, _base: Path) -> float | None:
    if value == UNLIMITED:
        return None
    try:
        return parse_duration_s(value)
    except UnitError as error:
        near = near_match(value, [UNLIMITED]) if isinstance(value, str) else None
        raise _refuse(f"{shown(value)} {error}", f"{UNLIMITED}, or {DURATION_ALLOWED}", near) from None


def _lease(value: Any, _base: Path) -> float:
    allowed = f"a duration from {LEASE_MIN_S:g}s to {LEASE_MAX_S:g}s"
    try:
        lease_s = parse_duration_s(value)
    except UnitError as error:
        raise _refuse(f"{shown(value)} {error}", allowed) from None
    if not LEASE_MIN_S <= lease_s <= LEASE_MAX_S:
        raise _refuse(f"{shown(value)} is not possible", allowed)
    return lease_s


def _ray_state(value: Any, _base: Path) -> str:
    if value not in RAY_STATES:
        near = near_match(value, list(RAY_STATES)) if isinstance(value, str) else None
        raise _refuse(f"{shown(value)} is not possible", " or ".join(RAY_STATES), near)
    return str(value)


_AMOUNTS = {"count": (1, MACHINES_MAX), "cpus": (1, _CPUS_MAX), "gpus": (0, _GPUS_MAX)}


def _machines(value: Any, base: Path) -> tuple[Machines, ...]:
    allowed = "a list of mappings of count, cpus, gpus and memory"
    if not isinstance(value, list) or not all(isinstance(kind, dict) for kind in value):
        raise _refuse(f"is {shown(value)}", allowed)
    found = []
    for kind in value:
        unknown = kind.keys() - {*_AMOUNTS, "memory"}
        if unknown:
            raise _refuse(f"unknown key {shown(min(map(str, unknown)))}", allowed)
        amounts = {name: _whole(*_AMOUNTS[name])(kind[name], base) for name in _AMOUNTS if name in kind}
        try:
            memory_bytes = parse_size_bytes(kind.get("memory", 0))
        except UnitError as error:
            raise _refuse(f"memory: {shown(kind['memory'])} {error}", SIZE_ALLOWED) from None
        found.append(Machines(**amounts, memory_bytes=memory_bytes))
    return tuple(found)


class ConfigKey(NamedTuple):
    check: Callable[[Any, Path], Any]
    attribute: str
    description: str
    variable: str | None = None
    """The environment variable that goes before the file."""


CONFIG_KEYS: dict[str, ConfigKey] = {
    "cluster": ConfigKey(_cluster, "cluster", f"where jobs run: {CLUSTER_ALLOWED}", "ORCH_CLUSTER"),
    "store": ConfigKey(
        _store, "store", "the database of the server; default: a SQLite file of the home", "ORCH_STORE"
    ),
    "storage": ConfigKey(
        _storage, "storage", "storage of jobs that name none; default: a folder of the home"
    ),
    "port": ConfigKey(_whole(0, 65_535), "port", "port of the server on this machine; 0: any that is free"),
    "listen": ConfigKey(
        _listen, "listen", "where the server listens for other machines too; default: nowhere"
    ),
    "cpus": ConfigKey(_whole(1, _CPUS_MAX), "cpus", "CPU cores that a local Ray may give away; default: all"),
    "gpus": ConfigKey(_whole(0, _GPUS_MAX), "gpus", "GPUs that a local Ray may give away; default: all"),
    "ray_state": ConfigKey(
        _ray_state,
        "ray_state",
        "where a local Ray keeps what it knows; `disk`: a head that died comes back to the other machines",
    ),
    "machines": ConfigKey(
        _machines,
        "machines",
        "what an autoscaler brings when it is needed: count, cpus, gpus, memory of each kind",
    ),
    "keep_logs": ConfigKey(_keep_logs, "keep_logs_s", "how long logs of ended jobs stay; default: unlimited"),
    "lease": ConfigKey(
        _lease, "lease_s", f"how long an agent goes on without its cluster; default: {LEASE_S:g}s"
    ),
}


def load_config(home: Path, env: Mapping[str, str] | None = None) -> Config:
    """The config of a home folder: its file, if there is one (or the one that ORCH_CONFIG names, which must be there),
    below ORCH_CLUSTER and ORCH_STORE.

    Raises ConfigError with everything that is wrong.
    """
    environ = os.environ if env is None else env
    document = _read(config_file(home, environ), must_be=bool(environ.get(CONFIG_VARIABLE)))
    problems = list(document.problems) + _unknown_keys(document)
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for name, key in CONFIG_KEYS.items():
        value, place, path = (document.data or {}).get(name), document.place((name,)), name
        if key.variable and environ.get(key.variable):
            value, place, path = environ[key.variable], Place(key.variable), ""
        elif value is None or document.has_refused((name,)):
            continue
        try:
            values[key.attribute] = key.check(value, home)
            origins[name] = str(place)
        except _RefusedError as refused:
            problems += [
                replace(problem.at(place.file, place.line), path=path) for problem in refused.problems
            ]
    if problems:
        raise ConfigError(sorted(problems, key=lambda problem: problem.line or math.inf))
    return Config(**values, origins=origins)


def _unknown_keys(document: Document) -> list[Problem]:
    problems = []
    for name in document.data or {}:
        if name not in CONFIG_KEYS and not document.has_refused((name,)):
            near = near_match(name, list(CONFIG_KEYS))
            allowed = None if near else ", ".join(CONFIG_KEYS)
            problem = Problem(
                f"unknown key {shown(name)}", path=format_path((name,)), allowed=allowed, near=near
            )
            place = document.place((name,))
            problems.append(problem.at(place.file, place.line))
    return problems


def _read(file: Path, *, must_be: bool) -> Document:
    try:
        with file.open("rb") as stream:
            source = stream.read(SIZE_BYTES_MAX + 1)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not must_be:
            return Document(str(file))
        reason = (error.strerror or "unknown error").lower()
        raise ConfigError([Problem(f"cannot be read: {reason}", file=str(file))]) from None
    document = parse_yaml(source, str(file))
    if document.readable and document.data is not None and not isinstance(document.data, dict):
        document.refuse(f"the file holds {shown(document.data)}", 1, allowed="a mapping")
        document.readable = False
    if not document.readable:
        raise ConfigError(document.problems)
    return document
