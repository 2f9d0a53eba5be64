"""What all verbs share: the options, the examples of `-h`, and how an error leaves the program."""

import os
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from orch.cli.output import Format, say
from orch.model.errors import NoSuchJob, OrchError
from orch.model.ids import valid_job_id
from orch.model.problems import ProblemsError

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it (128 + SIGINT)."""


class Group(TyperGroup):
    """Turns what orch raises into a sentence on stderr and its exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except ProblemsError as error:
            # Each problem begins with file and line, as editors and people expect it.
            say(error.message)
            raise typer.Exit(error.exit_code) from None
        except OrchError as error:
            say(f"orch: {error.message}")
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            # The reader has seen enough (`orch logs JOB | head`); Python's flush at exit must find no pipe.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from None


def make(help_text: str, *examples: str) -> typer.Typer:
    return typer.Typer(
        cls=Group,
        help=help_text,
        epilog=_epilog(examples),
        no_args_is_help=True,
        rich_markup_mode=None,  # plain help: examples stay on one line and can be copied
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    )


def _epilog(examples: tuple[str, ...]) -> str:
    shown = "\n".join(f"  {example}" for example in examples)
    title = "Example" if len(examples) == 1 else "Examples"
    return f"{title}:\n\n\b\n{shown}"  # \b: as it stands, nothing filled up


Verb = Callable[..., Any]


def verb(app: typer.Typer, *examples: str, name: str | None = None) -> Callable[[Verb], Verb]:
    """Registers a verb, with its examples below the help."""

    def register(function: Verb) -> Verb:
        app.command(name, epilog=_epilog(examples))(function)
        return function

    return register


def _complete_job(incomplete: str) -> list[str]:
    from orch.cli.connect import known_jobs

    return [job for job in known_jobs() if job.startswith(incomplete)]


def _job_id(given: str | None) -> str | None:
    """What cannot be an id goes no further: it would end up in a URL and in file names."""
    if given is not None and not valid_job_id(given):
        raise NoSuchJob(f"{given[:80]!r} cannot be a job's id; `orch status` lists the jobs of this server")
    return given


Job = Annotated[
    str,
    typer.Argument(
        metavar="JOB",
        help="Id of the job.",
        show_default=False,
        autocompletion=_complete_job,
        callback=_job_id,
    ),
]
OptionalJob = Annotated[
    str | None,
    typer.Argument(
        metavar="JOB",
        help="Id of a job; without it, all.",
        autocompletion=_complete_job,
        callback=_job_id,
    ),
]
Variables = Annotated[
    list[str] | None,
    typer.Option("--env", "-e", metavar="NAME=VALUE", help="Add a variable; NAME alone takes its value."),
]
FollowToTheEnd = Annotated[
    bool, typer.Option("--follow", "-f", help="Show its log, and end with its exit code.")
]
Output = Annotated[Format, typer.Option("--output", "-o", help="For people or for programs.")]
Cluster = Annotated[
    str | None,
    typer.Option(
        "--cluster",
        metavar="ADDRESS",
        show_default=False,
        help="HOST:PORT of a Ray cluster, http(s)://… of an orch server, or ssh://[USER@]HOST[:PORT]."
        " Else ORCH_CLUSTER, else the config file, else this machine.",
    ),
]
