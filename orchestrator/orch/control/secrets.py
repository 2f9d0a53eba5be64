"""Secrets at rest: sealed with a key of the home folder, bound to their job and their name."""

import json
from collections.abc import Mapping
from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken

from orch.control.home import Home, ensure_private_file, read_private_file
from orch.model.errors import Blocked

__all__ = ["SecretBox", "SecretsLostError"]


class SecretsLostError(Blocked):
    """The stored secrets of a job cannot be opened any more; a person must act."""


class SecretBox:
    """Seals and opens. The key is made when the first secret is sealed."""

    def __init__(self, key_path: Path) -> None:
        self._key_path = key_path

    @classmethod
    def of(cls, home: Home) -> "SecretBox":
        return cls(home.secret_key)

    def seal(self, job: str, values: Mapping[str, str]) -> dict[str, bytes]:
        """What may be stored, by name."""
        if not values:
            return {}
        box = Fernet(ensure_private_file(self._key_path, lambda: Fernet.generate_key().decode("ascii")))
        # The job and the name are inside: a row that was moved to another job does not open there.
        return {
            name: box.encrypt(json.dumps([job, name, value]).encode("ascii"))
            for name, value in values.items()
        }

    def unseal(self, job: str, sealed: Mapping[str, bytes]) -> dict[str, str]:
        """The values by name, to be kept in memory only. SecretsLostError if the key is gone or a new one."""
        if not sealed:
            return {}
        try:
            box = Fernet(read_private_file(self._key_path))
        except FileNotFoundError:
            raise SecretsLostError(self._lost(job, f"the key {self._key_path} is gone")) from None
        except ValueError:
            raise SecretsLostError(self._lost(job, f"{self._key_path} is no key")) from None
        values: dict[str, str] = {}
        for name, token in sealed.items():
            try:
                owner, given, value = json.loads(box.decrypt(token))
            except InvalidToken:
                why = f"the key {self._key_path} is not the one that sealed {name}"
                raise SecretsLostError(self._lost(job, why)) from None
            if (owner, given) != (job, name):
                raise SecretsLostError(
                    self._lost(job, f"what is stored as {name} was sealed for something else")
                )
            values[name] = str(value)
        return values

    @staticmethod
    def _lost(job: str, why: str) -> str:
        return (
            f"the secrets of job {job} cannot be opened: {why}. Put the key back, or set them again: export them"
            f" and run `orch secrets {job}`"
        )
