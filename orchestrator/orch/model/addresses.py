"""Addresses that a storage must never be at: what a machine alone may ask, under whatever spelling. Pure rules on text.

A cloud's metadata service answers every process of a machine at a link-local address, and gives out the machine's own
credentials. Private and loopback addresses are no matter: an S3 server of one's own stands there.
"""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["address_of", "forbidden_address", "forbidden_host", "hosts_in"]

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_FORBIDDEN = tuple(
    ipaddress.ip_network(network)
    for network in (
        "169.254.0.0/16",
        "fe80::/10",
        "fd00:ec2::/32",  # AWS, by IPv6
        "fd20:ce::254/128",  # Google
        "168.63.129.16/32",  # Azure's platform
        "100.100.100.200/32",  # Alibaba
        "192.0.0.192/32",  # Oracle
        "224.0.0.0/4",
        "ff00::/8",
        "255.255.255.255/32",
    )
)
_NAMES = frozenset(("metadata", "metadata.google.internal", "metadata.goog", "instance-data"))
"""Names of such services, for a machine that cannot resolve them and a job that runs on one that can."""
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_NUMBER = re.compile(r"0[xX][0-9a-fA-F]{0,64}|[0-9]{1,64}")
_HOST_KEY = re.compile(r"(?:.*_)?(?:host|hostname|server|endpoint|namenode|address)", re.IGNORECASE)
_DEPTH_MAX = 32


def address_of(host: str) -> _Address | None:
    """The address that a host of numbers means, as the C library reads it: `0xa9.254.43518` too. None: a name."""
    text = host.strip("[]").partition("%")[0].rstrip(".")
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        pass
    parts = text.split(".")
    if len(parts) > 4 or not all(_NUMBER.fullmatch(part) for part in parts):
        return None
    *heads, last = (_number(part) for part in parts)
    if last is None or any(head is None or head > 255 for head in heads) or last >= 256 ** (4 - len(heads)):
        return None
    value = last + sum((head or 0) << (24 - 8 * place) for place, head in enumerate(heads))
    return ipaddress.IPv4Address(value)


def _number(text: str) -> int | None:
    try:
        if text[:2] in {"0x", "0X"}:
            return int(text[2:] or "0", 16)
        return int(text, 8 if len(text) > 1 and text[0] == "0" else 10)
    except ValueError:
        return None


def forbidden_address(address: str) -> bool:
    """Whether nothing may be stored at this address; `address` as `getpeername` gives it, or as anybody writes it."""
    found = address_of(address)
    if found is None:
        return False
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour
        if found in _NAT64:
            inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        if inner is not None and any(inner in network for network in _FORBIDDEN if network.version == 4):
            return True
    return any(found in network for network in _FORBIDDEN if network.version == found.version)


def forbidden_host(host: str) -> bool:
    """The same for a host that may be a name; what a name stands for, only a resolver can say."""
    return host.lower().rstrip(".") in _NAMES or forbidden_address(host)


def hosts_in(options: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(option, host) for everything among a file system's options that may name a machine, however deep."""
    waiting: list[tuple[str, Any, int]] = [(key, value, 0) for key, value in options.items()]
    while waiting:
        key, value, depth = waiting.pop()
        if isinstance(value, dict) and depth < _DEPTH_MAX:
            waiting += [(str(name), item, depth + 1) for name, item in value.items()]
        elif isinstance(value, list | tuple) and depth < _DEPTH_MAX:
            waiting += [(key, item, depth + 1) for item in value]
        elif isinstance(value, str) and (host := _host_in(key, value)):
            yield key, host


def _host_in(key: str, value: str) -> str:
    """The host of a URL, or of an option that names one without a URL; empty where there is none."""
    try:
        if "//" in value:
            return urlsplit(value if "://" in value else value[value.index("//") :]).hostname or ""
        if _HOST_KEY.fullmatch(key) or address_of(value.partition("/")[0].rpartition(":")[0]):
            return urlsplit(f"//{value}").hostname or ""
    except ValueError:
        return ""
    return ""
