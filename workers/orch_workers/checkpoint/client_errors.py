"""One of our errors for whatever a storage's client raised: their classes and wrapping differ."""

from __future__ import annotations

from typing import Any

from orch_workers.checkpoint.errors import (
    AlreadyExists,
    NotFound,
    StorageError,
    StorageRefused,
    StorageUnavailable,
)

CAUSES_MAX = 4
"""So far down a chain of causes the client's own error is looked for."""

_REFUSED_BY_CLIENT = {
    "NoCredentialsError",
    "PartialCredentialsError",
    "CredentialRetrievalError",
    "ProfileNotFound",
    "ParamValidationError",
}


def translated(error: BaseException, what: str) -> StorageError:
    """`what` begins the sentence: "cannot read s3://bucket/object"."""
    if (ours := _refused_by_us(error)) is not None:
        return StorageRefused(f"{what}: {ours}")
    status, code = status_of(error), _code_of(error)
    sentence = f"{what}: {str(error) or type(error).__name__}"
    if isinstance(error, FileExistsError) or status == 412:
        return AlreadyExists(sentence)
    if code == "NoSuchBucket":
        return StorageRefused(f"{sentence} (there is no such bucket)")
    if isinstance(error, FileNotFoundError) or status == 404:
        return NotFound(sentence)
    refused = isinstance(error, PermissionError) or status in {401, 403}
    if refused or type(error).__name__ in _REFUSED_BY_CLIENT:
        return StorageRefused(sentence)
    return StorageUnavailable(sentence)


def _refused_by_us(error: BaseException) -> StorageRefused | None:
    """Where the client met a refusal of orch's own (`reaching.guard`) and wrapped it."""
    seen: BaseException | None = error
    for _ in range(CAUSES_MAX):
        if seen is None:
            break
        if isinstance(seen, StorageRefused):
            return seen
        seen = getattr(seen, "kwargs", {}).get("error") or seen.__cause__ or seen.__context__
    return None


def status_of(error: BaseException) -> int | None:
    """The HTTP status behind an error of botocore, also where s3fs has wrapped it."""
    status = _response_of(error).get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return int(status) or None


def _code_of(error: BaseException) -> str | None:
    code = _response_of(error).get("Error", {}).get("Code")
    return None if code is None else str(code)


def _response_of(error: BaseException) -> dict[str, Any]:
    seen: BaseException | None = error
    for _ in range(CAUSES_MAX):
        if seen is None:
            break
        response = getattr(seen, "response", None)
        if isinstance(response, dict):
            return response
        seen = seen.__cause__
    return {}
