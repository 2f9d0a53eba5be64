"""From `job.yaml` to a checked JobSpec, or to every reason why not, each with its file and line."""

from __future__ import annotations

import copy
import os
import sys
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from orch.model import ids
from orch.model.errors import WrongUse
from orch.model.explain import explain
from orch.model.problems import JobFileError, Path, Problem, format_path, near_match, shown, shown_path
from orch.model.spec import JobSpec, job_schema, unsupported
from orch.model.storage_url import check_storage_url, missing_extra
from orch.model.strict_yaml import SIZE_BYTES_MAX, Document, Place, parse_yaml

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import BinaryIO

__all__ = [
    "JobFileError",
    "LoadedJob",
    "Problem",
    "changed_spec",
    "check_storage_url",
    "env_options",
    "job_schema",
    "load_job",
    "missing_extra",
    "secret_values",
    "spec_from_json",
]

STDIN = "-"
DEFAULT = "default"
_OVERRIDES_MAX = 1000
_STORAGE: Path = ("checkpoint", "storage")


@dataclass(frozen=True, slots=True)
class LoadedJob:
    """A job file that was read and found good.

    `origins` says for every leaf of the spec (as `checkpoint.keep.last`) where its value came from:
    `job.yaml line 7`, `--set resources.cpus`, `--env`, `--name`, or `default`. `base_dir` is what relative
    paths were taken from: the file's folder, for standard input the current one.
    """

    spec: JobSpec
    origins: dict[str, str]
    base_dir: FilePath
    file: str


def load_job(
    path: str | os.PathLike[str],
    overrides: Sequence[str] = (),
    *,
    env: Mapping[str, str] | None = None,
    name: str | None = None,
    stdin: BinaryIO | None = None,
) -> LoadedJob:
    """Reads and checks a job file (`-` for standard input).

    `overrides` are the texts of `--set`, `env` adds to the job's own (`--env`), `name` is `--name`. Relative
    `workdir` and `checkpoint.storage` become absolute; a job without a name gets its workdir's.
    Raises JobFileError with everything that is wrong. Changes nothing anywhere.
    """
    source, file, base_dir = _read(path, stdin)
    document = parse_yaml(source, file)
    if document.readable:
        _check_top(document)
    if not document.readable:
        raise JobFileError(document.problems)
    if len(overrides) > _OVERRIDES_MAX:
        raise WrongUse(f"--set is given {len(overrides)} times; at most {_OVERRIDES_MAX} are read")
    for override in overrides:
        _apply_override(document, override)
    for variable, value in (env or {}).items():
        if _encodable(variable + value):
            _put(document, ("env", variable), value, Place("--env"))
        else:
            document.problems.append(Problem(f"{shown(variable)} is not UTF-8 text", file="--env"))
    if name is not None:
        _put(document, ("name",), name, Place("--name"))
    _take_variables_as_written(document)
    _resolve_paths(document, base_dir)
    spec = _validated(document)
    return LoadedJob(spec, _origins(spec, document), base_dir, file)


def _read(path: str | os.PathLike[str], stdin: BinaryIO | None) -> tuple[bytes, str, FilePath]:
    if path == STDIN:
        return (stdin or sys.stdin.buffer).read(SIZE_BYTES_MAX + 1), "standard input", FilePath.cwd()
    file = FilePath(path)
    name = _printable(os.fspath(path))
    try:
        with file.open("rb") as stream:
            # One byte over the limit is enough to refuse it; /dev/zero has no end.
            return stream.read(SIZE_BYTES_MAX + 1), name, file.absolute().parent
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else str(error)) or "unknown error"
        raise JobFileError([Problem(f"cannot be read: {reason.lower()}", file=name)]) from None


def _encodable(text: str) -> bool:
    """Arguments that are not UTF-8 arrive with half surrogates in them, which no file or answer can hold."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _check_top(document: Document) -> None:
    if isinstance(document.data, dict):
        return
    found = "the file is empty" if document.data is None else f"the file holds {shown(document.data)}"
    document.refuse(found, document.place(()).line, allowed="a mapping, with `run` as its only required key")
    document.readable = False


def _apply_override(document: Document, override: str) -> None:
    """`--set a.b=c`; the value is YAML, `null` takes the key out."""
    target, separator, text = override.partition("=")
    # The value stays out of what is shown: it may be private.
    option = _printable(f"--set {target[:80]}")
    keys = target.split(".")
    if not separator or not all(keys) or not _encodable(target):
        message = f"{shown(override)} names no key and value"
        document.problems.append(Problem(message, file="--set", allowed="KEY=VALUE such as resources.cpus=2"))
        return
    value = parse_yaml(
        text.encode("utf-8", "surrogatepass"), option
    )  # half surrogates are refused as no UTF-8
    document.problems += [problem.at(option, None) for problem in value.problems]
    if value.readable:
        _put(document, tuple(keys), value.data, Place(option), value)


def _put(document: Document, path: Path, value: Any, place: Place, written: Document | None = None) -> None:
    """Sets one value, making mappings on the way; everything below `path` gets a new place."""
    container = document.data
    for length, piece in enumerate(path[:-1], start=1):
        if container.get(piece) is None:
            container[piece] = {}
        elif path[:length] == _STORAGE and isinstance(container[piece], str):
            # `storage: URL` is short for `storage: {url: URL}`, so options can be set beside it.
            container[piece] = {"url": container[piece]}
            document.places[(*_STORAGE, "url")] = document.place(_STORAGE)
        container = container[piece]
        if not isinstance(container, dict):
            around = format_path(path[:length])
            message = f"{around} is {shown(container)}, so nothing can be set inside it"
            document.problems.append(Problem(message, file=place.file, path=format_path(path)))
            return
    for known in [known for known in document.places if known[: len(path)] == path]:
        del document.places[known]
        document.texts.pop(known, None)
    if value is None:
        container.pop(path[-1], None)
        return
    container[path[-1]] = value
    document.places[path] = place
    if written is not None:
        document.places |= dict.fromkeys((path + below for below in written.places), place)
        document.texts |= {path + below: text for below, text in written.texts.items()}


def _take_variables_as_written(document: Document) -> None:
    """`OMP_NUM_THREADS: 1` and `VERSION: 1.10` mean these very characters; only an empty value is refused."""
    env = document.data.get("env")
    if isinstance(env, dict):
        for variable, value in env.items():
            if isinstance(value, bool | int | float):
                env[variable] = document.texts.get(("env", variable), value)


def _resolve_paths(document: Document, base_dir: FilePath) -> None:
    data = document.data
    workdir = data.get("workdir", ".")
    if isinstance(workdir, str) and workdir and "\0" not in workdir:
        data["workdir"] = _absolute(workdir, base_dir)
        if data.get("name") is None:
            data["name"] = ids.default_name(data["workdir"])
            document.places[("name",)] = Place(f"{DEFAULT} (the workdir's name)")
    checkpoint = data.get("checkpoint")
    if not isinstance(checkpoint, dict):
        return
    storage = checkpoint.get("storage")
    if isinstance(storage, str):
        checkpoint["storage"] = _storage_path(storage, base_dir)
    elif isinstance(storage, dict) and isinstance(storage.get("url"), str):
        storage["url"] = _storage_path(storage["url"], base_dir)


def _storage_path(storage: str, base_dir: FilePath) -> str:
    # Whatever looks like a URL, mistyped ones too, is left for the check of URLs to judge.
    return storage if not storage or ":" in storage else _absolute(storage, base_dir)


def _absolute(path: str, base_dir: FilePath) -> str:
    return os.path.normpath(base_dir / os.path.expanduser(path))  # noqa: PTH111  pathlib raises without a home


def _validated(document: Document) -> JobSpec:
    problems = list(document.problems)
    spec: JobSpec | None = None
    try:
        spec = JobSpec.model_validate(document.data)
    except ValidationError as error:
        found = explain(error, JobSpec, document.data)
    else:
        found = [(_path_of(problem.path), problem) for problem in unsupported(spec)]
    found += _workdir_problems(document)
    for path, problem in found:
        if not document.has_refused(path):
            place = document.place(path)
            problems.append(problem.at(place.file, place.line))
    if spec is None or problems:
        raise JobFileError(
            sorted(problems, key=lambda problem: (problem.file != document.file, problem.line or 0))
        )
    return spec


def changed_spec(spec: Mapping[str, Any], overrides: Sequence[str], env: Mapping[str, str]) -> JobSpec:
    """The spec of a job that exists with other values (`--set`, `--env`). JobFileError with all that is wrong."""
    document = Document("the job", data=copy.deepcopy(dict(spec)))
    for override in overrides:
        _apply_override(document, override)
    for variable, value in env.items():
        _put(document, ("env", variable), value, Place("--env"))
    _take_variables_as_written(document)
    problems = list(document.problems)
    try:
        changed = JobSpec.model_validate(document.data)
    except ValidationError as error:
        found = explain(error, JobSpec, document.data)
        placed = [problem.at(document.place(path).file, None) for path, problem in found]
        raise JobFileError([*problems, *placed]) from None
    if problems:
        raise JobFileError(problems)
    return changed


def spec_from_json(data: Any) -> JobSpec:
    """The spec that a client sent (`spec.model_dump(mode="json")`). Raises JobFileError."""
    try:
        return JobSpec.model_validate(data)
    except ValidationError as error:
        raise JobFileError(problem for _, problem in explain(error, JobSpec, data)) from None


def _path_of(text: str) -> Path:
    return tuple(text.split("."))


def _workdir_problems(document: Document) -> list[tuple[Path, Problem]]:
    workdir = document.data.get("workdir")
    if not isinstance(workdir, str) or not workdir or document.data.get("ship") == "never":
        # A folder that is not shipped need not exist where the job is submitted.
        return []
    problem = Problem("", path="workdir", value=shown_path(workdir), allowed="an existing folder")
    try:
        if os.path.isdir(workdir):  # noqa: PTH112  pathlib raises for what cannot be looked at
            return []
        exists = os.path.lexists(workdir)
    except ValueError:
        exists = False
    message = f"{shown_path(workdir)} is not a folder" if exists else f"{shown_path(workdir)} does not exist"
    return [(("workdir",), Problem(message, path=problem.path, value=problem.value, allowed=problem.allowed))]


def _origins(spec: JobSpec, document: Document) -> dict[str, str]:
    return {format_path(path): _origin(path, document) for path in _leaves(spec.model_dump(mode="json"), ())}


def _origin(path: Path, document: Document) -> str:
    for length in range(len(path), 0, -1):
        if place := document.places.get(path[:length]):
            # Below a mapping of the file, what it does not name is a default; below `storage: URL` it is not.
            if length < len(path) and isinstance(_at(document.data, path[:length]), dict):
                return DEFAULT
            return str(place)
    return DEFAULT


def _at(data: Any, path: Path) -> Any:
    for piece in path:
        data = data[piece]
    return data


def _leaves(value: Any, path: Path) -> list[Path]:
    if isinstance(value, dict) and value:
        return [leaf for key, below in value.items() for leaf in _leaves(below, (*path, key))]
    return [path]


def env_options(options: Sequence[str], environ: Mapping[str, str]) -> dict[str, str]:
    """`--env NAME=VALUE`, or `--env NAME` for the value that NAME has here. Raises WrongUse."""
    variables: dict[str, str] = {}
    for option in options:
        variable, separator, value = option.partition("=")
        if not separator and variable not in environ:
            raise WrongUse(f"--env {shown(option)}: no such variable is set here; write NAME=VALUE")
        variables[variable] = value if separator else environ[variable]
    return variables


def secret_values(spec: JobSpec, environ: Mapping[str, str]) -> dict[str, str]:
    """The values of the job's secrets, taken from the environment of who submits. Raises WrongUse."""
    missing = [secret for secret in spec.secrets if secret not in environ]
    if missing:
        names = ", ".join(missing)
        near = near_match(missing[0], list(environ))
        hint = f" (did you mean {near!r}?)" if near else ""
        raise WrongUse(
            f"secrets: {names} not set in the environment of this command{hint}: export and submit again"
        )
    return {secret: environ[secret] for secret in spec.secrets}
