"""`orch version`: what is installed here."""

import platform

import typer

from orch import __version__
from orch.cli import output
from orch.cli.app import Output, verb
from orch.cli.output import Format

PACKAGES = ("ray", "torch", "fsspec", "s3fs", "sqlalchemy", "pydantic")
"""Those whose version a report of a problem needs; asked from the package data, none is imported."""


def register(app: typer.Typer) -> None:
    verb(app, "orch version", "orch version -o json")(version)


def version(output_format: Output = Format.TABLE) -> None:
    """Versions of orch, Python and the packages that matter."""
    from importlib import metadata

    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    if output_format is Format.JSON:
        output.write_json({"version": output.VERSION, "orch": __version__, **found})
        return
    output.write_line(f"orch {__version__}")
    for package, number in found.items():
        output.write_line(f"{package} {number or 'not installed'}")
