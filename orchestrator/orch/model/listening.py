"""Where the API listens beside loopback, and on what terms: with TLS, or with an explicit word.

Light to import: the config file is read by every verb.
"""

from __future__ import annotations

import ipaddress
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orch.model.errors import WrongUse

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping

__all__ = ["LISTEN_ALLOWED", "LISTEN_KEYS", "Listen", "listen_from", "server_context"]

LISTEN_ALLOWED = "ADDRESS:PORT with an IP address of this machine (0.0.0.0: all), such as 0.0.0.0:8443"
LISTEN_KEYS = ("address", "certificate", "key", "names", "insecure")
NAMES_MAX = 32
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL}){{0,31}}\.?")
_KEY_MODE_FORBIDDEN = stat.S_IRWXO | stat.S_IWGRP | stat.S_IXGRP
"""A group may read a key: that is how orchestrators mount one."""


@dataclass(frozen=True, slots=True)
class Listen:
    """One more place, checked: it has TLS, or is loopback, or `insecure` was said."""

    host: str
    port: int
    certificate: str | None = None
    key: str | None = None
    names: tuple[str, ...] = ()
    """Names that it is reached under, beside its address and this machine's own."""
    insecure: bool = False

    @property
    def url(self) -> str:
        name = f"[{self.host}]" if ":" in self.host else self.host
        return f"http{'s' if self.certificate else ''}://{name}:{self.port}"

    def to_dict(self) -> dict[str, Any]:
        return {
            "address": self.url.partition("://")[2],
            "certificate": self.certificate,
            "key": self.key,
            "names": list(self.names),
            "insecure": self.insecure,
        }


def listen_from(document: Mapping[str, Any], base: Path) -> Listen:
    """What LISTEN_KEYS say; relative paths are taken from `base`. ValueError with a sentence."""
    unknown = sorted(document.keys() - set(LISTEN_KEYS))
    if unknown:
        raise ValueError(f"unknown key {unknown[0]!r}; allowed: {', '.join(LISTEN_KEYS)}")
    host, port = _address(document.get("address"))
    files = []
    for key in ("certificate", "key"):
        value = document.get(key)
        if value is not None and (not isinstance(value, str) or not value or "\0" in value):
            raise ValueError(f"`{key}` is no path of a file")
        files.append(None if value is None else str(base / Path(value).expanduser()))
    certificate, private = files
    if (certificate is None) != (private is None):
        raise ValueError("TLS needs both `certificate` and `key`, two files in PEM form")
    insecure = document.get("insecure", False)
    if insecure is not True and insecure is not False:
        raise ValueError(f"`insecure` is {insecure!r}; allowed: true or false")
    if not host.is_loopback and certificate is None and not insecure:
        raise ValueError(
            f"{host} can be reached by other machines, and without TLS the token would cross the network in the open:"
            " name `certificate` and `key` (--tls-cert, --tls-key); or say `insecure: true` (--insecure-listen) where"
            " something else encrypts the way"
        )
    return Listen(str(host), port, certificate, private, _names(document.get("names")), insecure)


def _address(value: Any) -> tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int]:
    if value is None or not isinstance(value, str):
        raise ValueError(f"`address` is missing; allowed: {LISTEN_ALLOWED}")
    text, _, port = value.rpartition(":")
    if not (port.isascii() and port.isdigit() and 1 <= int(port[:6]) <= 65_535):
        raise ValueError(f"{value[:80]!r} has no port; allowed: {LISTEN_ALLOWED}")
    text = "127.0.0.1" if text == "localhost" else text.removeprefix("[").removesuffix("]")
    try:
        # No names: one may stand for another address tomorrow.
        return ipaddress.ip_address(text), int(port)
    except ValueError:
        raise ValueError(f"{value[:80]!r} begins with no IP address; allowed: {LISTEN_ALLOWED}") from None


def _names(value: Any) -> tuple[str, ...]:
    names = [] if value is None else value
    if not isinstance(names, list) or len(names) > NAMES_MAX:
        raise ValueError(f"`names` is no list of at most {NAMES_MAX} names")
    for name in names:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValueError(f"`names`: {str(name)[:80]!r} is no name of a machine")
    return tuple(name.lower().rstrip(".") for name in names)


def server_context(listen: Listen) -> ssl.SSLContext | None:
    """TLS 1.2 or newer; None where there is no certificate. WrongUse: it is no good, or its key is open to others."""
    if listen.certificate is None or listen.key is None:
        return None
    import ssl

    try:
        mode = Path(listen.key).stat().st_mode
        if mode & _KEY_MODE_FORBIDDEN:
            raise WrongUse(
                f"the TLS key {listen.key} is open to others ({stat.S_IMODE(mode):o}), who may know it: have a new one"
                f" made, or `chmod 600 {listen.key}` if nobody else uses this machine"
            )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        # Without a way to ask for a passphrase: a server that starts by itself must not wait for one.
        context.load_cert_chain(listen.certificate, listen.key, password=_no_passphrase)
    except OSError as error:  # ssl.SSLError is one
        raise WrongUse(
            f"TLS with {listen.certificate} and {listen.key} is not possible: {error.strerror or error}"
        ) from None
    return context


def _no_passphrase() -> str:
    raise WrongUse(
        "the TLS key is encrypted with a passphrase, which nobody could type when the server restarts"
    )
