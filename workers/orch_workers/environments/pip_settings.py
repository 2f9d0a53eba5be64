"""What pip is told on this machine about where packages come from, as uv wants it: uv reads nothing of pip's.

Without this a machine whose administrator has set up an index for pip would have uv ask PyPI.
"""

from __future__ import annotations

import configparser
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

SECTIONS = ("global", "install")
"""Of pip's files; the later goes before."""
_DECIDING = (
    *("UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_INDEX", "UV_EXTRA_INDEX_URL", "UV_FIND_LINKS"),
    *("UV_CONSTRAINT", "UV_OVERRIDE", "UV_PRERELEASE", "UV_RESOLUTION", "UV_TORCH_BACKEND"),
)
_TRUE = frozenset({"1", "true", "yes", "on", "y", "t"})


@dataclass(frozen=True)
class Settings:
    """`environment` for uv, `options` of `uv pip install` that have no variable."""

    environment: dict[str, str] = field(default_factory=dict)
    options: tuple[str, ...] = ()

    @property
    def identity(self) -> dict[str, str]:
        """What of it decides which packages are found, without names and passwords."""
        found = {name: self.environment[name] for name in _DECIDING if self.environment.get(name)}
        bare = {name: " ".join(map(_without_login, value.split())) for name, value in found.items()}
        return bare | {"options": " ".join(self.options)}


def settings(environment: Mapping[str, str]) -> Settings:
    """`environment` is what uv is to be started with: what stands there in uv's own words goes before pip's, and pip's
    variables before its files, as pip has it.
    """
    pip = _of_files(environment) | _of_variables(environment)
    found: dict[str, str] = {}
    # pip separates by white space what uv separates by commas here.
    for name, variable, separator in (
        ("index-url", "UV_DEFAULT_INDEX", " "),
        ("extra-index-url", "UV_INDEX", " "),
        ("find-links", "UV_FIND_LINKS", ","),
        ("trusted-host", "UV_INSECURE_HOST", " "),
        ("constraint", "UV_CONSTRAINT", " "),
        ("cert", "SSL_CERT_FILE", " "),
        ("proxy", "ALL_PROXY", " "),
        ("timeout", "UV_HTTP_TIMEOUT", " "),
    ):
        words = pip.get(name, "").split()
        if words:
            found[variable] = separator.join(words)
    if "UV_INDEX" in found:
        # pip takes the best version of all indexes; uv looks no further than the first that knows the name.
        found["UV_INDEX_STRATEGY"] = "unsafe-best-match"
    if _is_true(pip.get("pre", "")):
        found["UV_PRERELEASE"] = "allow"
    for new, old in (("UV_DEFAULT_INDEX", "UV_INDEX_URL"), ("UV_INDEX", "UV_EXTRA_INDEX_URL")):
        if old in environment:
            found.pop(new, None)
    options = ("--no-index",) if _is_true(pip.get("no-index", "")) else ()
    own = {name: value for name, value in environment.items() if name.startswith("UV_") and value}
    return Settings({**found, **own}, options)


def _of_variables(environment: Mapping[str, str]) -> dict[str, str]:
    found = {}
    for name, value in environment.items():
        if name.startswith("PIP_") and value:
            found[_name(name[4:])] = value
    return found


def _of_files(environment: Mapping[str, str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for path in _files(environment):
        parser = configparser.RawConfigParser()
        try:
            with path.open(encoding="utf-8") as file:
                parser.read_file(file)
        except (OSError, UnicodeDecodeError, configparser.Error):
            continue  # pip would complain; a job's environment may not need what stands there
        for section in SECTIONS:
            if parser.has_section(section):
                found.update((_name(name), value) for name, value in parser.items(section))
    return found


def _name(name: str) -> str:
    name = name.lower().replace("_", "-")
    return name.removeprefix("default-") if name == "default-timeout" else name


def _files(environment: Mapping[str, str]) -> list[Path]:
    """As pip orders them; the later goes before."""
    named = environment.get("PIP_CONFIG_FILE")
    if named == os.devnull:
        return []
    home = Path(environment.get("HOME") or Path.home())
    wide = [Path(part) / "pip/pip.conf" for part in environment.get("XDG_CONFIG_DIRS", "/etc/xdg").split(":")]
    own = Path(environment.get("XDG_CONFIG_HOME") or home / ".config") / "pip/pip.conf"
    files = [
        *reversed(wide),
        Path("/etc/pip.conf"),
        home / ".pip/pip.conf",
        own,
        Path(sys.prefix) / "pip.conf",
    ]
    return files + ([Path(named)] if named else [])


def _is_true(value: str) -> bool:
    return value.strip().lower() in _TRUE


def _without_login(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) if parts.username else url
