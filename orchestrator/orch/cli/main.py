"""The program `orch`. Importing it loads no machinery: each verb imports what it needs when it runs."""

from orch.cli import (
    about,
    checkpoints,
    code,
    drill,
    ending,
    evaluate,
    goodput,
    logs,
    preempt,
    recover,
    resume,
    server,
    status,
    submit,
)
from orch.cli.app import make

app = make(
    "Runs training jobs on a Ray cluster and does not lose them.",
    "orch submit job.yaml --follow",
    "orch status",
)

for _verbs in (
    submit,
    status,
    goodput,
    logs,
    ending,
    preempt,
    resume,
    checkpoints,
    code,
    evaluate,
    drill,
    recover,
    server,
    about,
):
    _verbs.register(app)


def main() -> None:
    app(prog_name="orch")


if __name__ == "__main__":
    main()
