"""Every way in which a job file is refused: with its line, with what is allowed, and all problems at once."""

from __future__ import annotations

import contextlib
import pickle
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orch.model.jobfile import JobFileError, Problem, load_job
from orch.model.problems import PROBLEMS_MAX

# ---- what is refused: one problem each (text, line, path, part of the message, near match)

ONE_PROBLEM = {
    "empty file": ("", 1, "", "the file is empty", None),
    "comments only": ("# nothing\n", 1, "", "the file is empty", None),
    "a list": ("- run: x\n", 1, "", "the file holds a list", None),
    "plain text": ("python train.py\n", 1, "", "the file holds 'python train.py'", None),
    "no run": ("name: x\n", 1, "run", "is required, and missing", None),
    "duplicate keys": ("run: x\nrun: y\n", 2, "run", "stands here twice (first on line 1)", None),
    "tabs": ("run: x\nresources:\n\tcpus: 1\n", 3, "", "a tab stands here", None),
    "anchor": ("run: &r x\n", 1, "run", "the anchor &r is not read", None),
    "merge key": ("run: x\nenv:\n  <<: {A: b}\n", 3, "env.'<<'", "merge keys are not read", None),
    "10 MB": (b"run: x\n" + b"#" * (10 << 20), None, "", "larger than 1 MiB", None),
    "5,000 brackets": ("run: " + "[" * 5000, 1, "", "more than 32 levels deep", None),
    "not UTF-8": (b"run: x\nname: caf\xe9\n", 2, "", "not UTF-8", None),
    "unknown key": (
        "run: x\ncheckpoint:\n  evry: {steps: 5}\n",
        3,
        "checkpoint.evry",
        "unknown key 'evry'",
        "every",
    ),
    "a word for best": (
        "run: x\ncheckpoint:\n  keep: {best: {metric: loss, mode: lowest}}\n",
        3,
        "checkpoint.keep.best.mode",
        "'lowest' is not possible",
        "min",
    ),
    "a share over all": (
        "run: x\ncheckpoint: {max_overhead: 90%}\n",
        2,
        "checkpoint.max_overhead",
        "'90%' is not possible",
        None,
    ),
    "a share without its sign": (
        "run: x\ncheckpoint: {max_overhead: 1}\n",
        2,
        "checkpoint.max_overhead",
        "1 is not possible",
        "1%",
    ),
    "a share in words": (
        "run: x\ncheckpoint: {max_overhead: little}\n",
        2,
        "checkpoint.max_overhead",
        "'little' is no percentage",
        None,
    ),
    "nearly auto": (
        "run: x\ncheckpoint: {every: automatic}\n",
        2,
        "checkpoint.every",
        "is 'automatic'",
        "auto",
    ),
    "a rule by steps of nothing": (
        "run: x\ncheckpoint:\n  keep: {every_steps: 0}\n",
        3,
        "checkpoint.keep.every_steps",
        "0 is not possible",
        None,
    ),
    "a rule of another name": (
        "run: x\ncheckpoint:\n  keep: {every_hour: 1}\n",
        3,
        "checkpoint.keep.every_hour",
        "unknown key 'every_hour'",
        "every_hours",
    ),
    "unknown far from any": ("run: x\nzzz: 1\n", 2, "zzz", "unknown key 'zzz'", None),
    "key of another place": ("run: x\ngpus: 1\n", 2, "gpus", "unknown key 'gpus'", "resources.gpus"),
    "python name of a key": (
        "run: x\nresources: {memory_bytes: 1}\n",
        2,
        "resources.memory_bytes",
        "unknown",
        "memory",
    ),
    "run a number": ("run: 5\n", 1, "run", "is the number 5", '"5"'),
    "run a truth value": ("run: true\n", 1, "run", "is true", '"true"'),
    "run empty": ("run:\n", 1, "run", "is empty", None),
    "run blank": ("run: '  '\n", 1, "run", "is empty text", None),
    "run a list": ("run: [python, train.py]\n", 1, "run", "is a list", None),
    "run too long": ("run: " + "x" * 70_000, 1, "run", "70000 characters long", None),
    "env a list": ("run: x\nenv: [A]\n", 2, "env", "is a list", None),
    "env value a list": ("run: x\nenv:\n  A: [b]\n", 3, "env.A", "is a list", None),
    "env value empty": ("run: x\nenv: {A: }\n", 2, "env.A", "is empty", None),
    "env name": ("run: x\nenv: {A-B: c}\n", 2, "env.A-B", "can be no environment variable", None),
    "env of orch": ("run: x\nenv: {ORCH_JOB_ID: c}\n", 2, "env.ORCH_JOB_ID", "set by orch itself", None),
    "env of the ranks": ("run: x\nenv: {RANK: 0}\n", 2, "env.RANK", "set by orch itself", None),
    "secret twice": ("run: x\nsecrets: [A, A]\n", 2, "secrets", "names A more than once", None),
    "secret in env": ("run: x\nenv: {A: b}\nsecrets: [A]\n", 3, "secrets", "stands under `env` too", None),
    "outputs as text": ("run: x\noutputs: model.ckpt\n", 2, "outputs", "is the text 'model.ckpt'", None),
    "outputs outside": ("run: x\noutputs:\n  - a\n  - ../b\n", 4, "outputs[1]", "leaves the workdir", None),
    "outputs absolute": ("run: x\noutputs: [/etc/passwd]\n", 2, "outputs[0]", "leaves the workdir", None),
    "workers zero": ("run: x\nresources: {workers: 0}\n", 2, "resources.workers", "0 is not possible", None),
    "negative": ("run: x\nresources: {gpus: -1}\n", 2, "resources.gpus", "-1 is not possible", None),
    "NaN": ("run: x\nresources: {cpus: .nan}\n", 2, "resources.cpus", "nan is not possible", None),
    "half of two GPUs": (
        "run: x\nresources: {gpus: 1.5}\n",
        2,
        "resources.gpus",
        "1.5 is not possible",
        None,
    ),
    "number as text": ("run: x\nresources: {cpus: '2'}\n", 2, "resources.cpus", "'2' is not a number", None),
    "memory without unit": (
        "run: x\nresources: {memory: '8'}\n",
        2,
        "resources.memory",
        "'8' has no unit",
        None,
    ),
    "memory ambiguous": ("run: x\nresources: {memory: 8G}\n", 2, "resources.memory", "ambiguous", None),
    "no interval": ("run: x\ncheckpoint: {every: {}}\n", 2, "checkpoint.every", "names no interval", None),
    "interval a text": ("run: x\ncheckpoint: {every: 5m}\n", 2, "checkpoint.every", "is '5m'", None),
    "interval zero": (
        "run: x\ncheckpoint: {every: {seconds: 0}}\n",
        2,
        "checkpoint.every.seconds",
        "nothing",
        None,
    ),
    "steps a fraction": (
        "run: x\ncheckpoint: {every: {steps: 1.5}}\n",
        2,
        "checkpoint.every.steps",
        "1.5",
        None,
    ),
    "keep nothing": ("run: x\ncheckpoint: {keep: {last: 0}}\n", 2, "checkpoint.keep.last", "0 is not", None),
    "best without metric": (
        "run: x\ncheckpoint: {keep: {best: {mode: max}}}\n",
        2,
        "checkpoint.keep.best.metric",
        "is required",
        None,
    ),
    "best mode": (
        "run: x\ncheckpoint: {keep: {best: {metric: m, mode: mni}}}\n",
        2,
        "checkpoint.keep.best.mode",
        "'mni' is not possible",
        "min",
    ),
    "chained storage": (
        "run: x\ncheckpoint:\n  storage: simplecache::http://169.254.169.254/\n",
        3,
        "checkpoint.storage",
        "chained",
        None,
    ),
    "http storage": (
        "run: x\ncheckpoint: {storage: 'http://h/x'}\n",
        2,
        "checkpoint.storage",
        "written to",
        None,
    ),
    "mistyped storage": (
        "run: x\ncheckpoint: {storage: 's3:/bucket'}\n",
        2,
        "checkpoint.storage",
        "neither a path nor a URL",
        "s3://bucket",
    ),
    "storage a number": (
        "run: x\ncheckpoint: {storage: 5}\n",
        2,
        "checkpoint.storage",
        "is the number 5",
        None,
    ),
    "storage without url": (
        "run: x\ncheckpoint: {storage: {}}\n",
        2,
        "checkpoint.storage.url",
        "is required",
        None,
    ),
    "secret option": (
        "run: x\ncheckpoint: {storage: {url: 's3://b', options: {secret: hush}}}\n",
        2,
        "checkpoint.storage.options",
        "`secrets`",
        None,
    ),
    "budget": (
        "run: x\nrestart: {max_failures: unlimted}\n",
        2,
        "restart.max_failures",
        "no budget",
        "unlimited",
    ),
    "negative budget": (
        "run: x\nrestart: {max_hangs: -1}\n",
        2,
        "restart.max_hangs",
        "-1 is not possible",
        None,
    ),
    "backoff crossed": (
        "run: x\nrestart: {backoff: {initial: 10s, max: 1s}}\n",
        2,
        "restart.backoff.max",
        "less than `initial`",
        None,
    ),
    "hang": ("run: x\nrestart: {hang: atuo}\n", 2, "restart.hang", "'atuo' is no duration", "auto"),
    "ship": ("run: x\nship: nevr\n", 2, "ship", "'nevr' is not possible", "never"),
    "priority": ("run: x\npriority: high\n", 2, "priority", "'high' is not possible", None),
    "missing workdir": ("run: x\nworkdir: nowhere\n", 2, "workdir", "does not exist", None),
    "workdir a file": ("run: x\nworkdir: job.yaml\n", 2, "workdir", "is not a folder", None),
    "workdir empty": ("run: x\nworkdir: ''\n", 2, "workdir", "is empty text", None),
    "name climbs": ("run: x\nname: ../up\n", 2, "name", "no job name may have", "up"),
    "name with spaces": ("run: x\nname: my run\n", 2, "name", "no job name may have", "my-run"),
    "name with emoji": ("run: x\nname: 🦆\n", 2, "name", "no job name may have", "job"),
    "name of 300": ("run: x\nname: " + "n" * 300, 2, "name", "is 300 characters long", "n" * 57),
    "name a number": ("run: x\nname: 7\n", 2, "name", "is the number 7", '"7"'),
    "label with a space": (
        "run: x\nplacement:\n  labels: {market type: spot}\n",
        3,
        "placement.labels.'market type'",
        "is no label",
        None,
    ),
    "label of orch's own": (
        "run: x\nplacement: {labels: {ray.io/node-id: abc}}\n",
        2,
        "placement.labels.'ray.io/node-id'",
        "is used by orch itself",
        None,
    ),
    "label without a value": (
        "run: x\nplacement: {labels: {market-type: 'in()'}}\n",
        2,
        "placement.labels.market-type",
        "is no value that a label can be asked for",
        None,
    ),
    "placed by a word that is none": (
        "run: x\nplacement: {workers: packed}\n",
        2,
        "placement.workers",
        "packed",
        "pack",
    ),
    "metrics without files": ("run: x\nmetrics: {loss: 'l=(.)'}\n", 2, "metrics", "is for scripts", None),
    "metric without a group": (
        "run: x\ncheckpoint: {files: [m]}\nmetrics:\n  loss: 'loss=.*'\n",
        4,
        "metrics.loss",
        "has no group",
        None,
    ),
    "metric that is no expression": (
        "run: x\ncheckpoint: {files: [m]}\nmetrics:\n  loss: 'loss=('\n",
        4,
        "metrics.loss",
        "is no regular expression",
        None,
    ),
    "metric that searches for ever": (
        "run: x\ncheckpoint: {files: [m]}\nmetrics:\n  loss: '(([0-9]+)*)x'\n",
        4,
        "metrics.loss",
        "repeats what repeats",
        None,
    ),
    "rollback of own files": (
        "run: x\ncheckpoint: {files: [m]}\nrestart: {on_nan: rollback}\n",
        3,
        "restart",
        "leaves out data",
        None,
    ),
}


@pytest.mark.parametrize("case", ONE_PROBLEM)
def test_refusals(write, case, refused):
    text, line, path, message, near = ONE_PROBLEM[case]
    error = refused(write(text))
    (problem,) = error.problems
    assert (problem.file, problem.line, problem.path, problem.near) == ("job.yaml", line, path, near)
    assert message in problem.message
    place = f"job.yaml:{line}: " if line else "job.yaml: "
    assert str(error).startswith(place + (f"{path}: " if path else "") + problem.message)
    assert "hush" not in str(error)
    assert "\n" not in str(error)


def test_the_sentence_that_a_person_reads(write, refused):
    assert str(refused(write("run: x\n\ncheckpoint:\n  evry: 5\n"))) == (
        "job.yaml:4: checkpoint.evry: unknown key 'evry' (did you mean 'every'?)"
    )
    assert str(refused(write("run: x\nresources:\n  gpus: -1\n"))) == (
        "job.yaml:3: resources.gpus: -1 is not possible; allowed: a number from 0 to 1024, whole above 1"
    )


def test_all_problems_at_once_in_the_order_of_the_file(write, refused):
    error = refused(
        write(
            "name: ../x\nenv: {A: &a 1, B: *a}\ncheckpoint:\n  evry: 1\n  every: {steps: -1}\n"
            "  storage: http://x\nrestart: {backoff: {max: 1ms}}\nworkdir: nowhere\n"
            "priority: 1\npriority: 2\n"
        ),
        "resources.cpus=no",
    )
    assert [(problem.line, problem.path) for problem in error.problems] == [
        (1, "name"),
        (1, "run"),
        (2, "env.A"),
        (2, "env.B"),
        (4, "checkpoint.evry"),
        (5, "checkpoint.every.steps"),
        (6, "checkpoint.storage"),
        (7, "restart.backoff.max"),
        (8, "workdir"),
        (10, "priority"),
        (None, "resources.cpus"),
    ]


def test_thousands_of_problems_are_counted_not_listed(write, refused):
    error = refused(write("run: x\n" + "".join(f"k{i}: 1\n" for i in range(3000))))
    assert len(error.problems) == 3000
    assert str(error).count("\n") == PROBLEMS_MAX
    assert str(error).endswith("… and 2950 more")


def test_an_alias_bomb(write, refused):
    lines = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30)]
    assert "the anchor &a0 is not read" in str(refused(write("run: x\n" + "\n".join(lines))))


@pytest.mark.parametrize(
    ("path", "message"), [("none.yaml", "no such file"), (".", "is a directory"), ("a\0b", "null")]
)
def test_a_file_that_cannot_be_read(folder, monkeypatch, path, message, refused):
    monkeypatch.chdir(folder)
    assert message in str(refused(path))


def test_a_file_without_an_end_is_not_read_to_it(refused):
    assert "larger than 1 MiB" in str(refused("/dev/zero"))


def test_nothing_is_left_behind(write, folder, refused):
    write("run: x\ncheckpoint: {storage: ck}\n")
    load_job("job.yaml")
    refused("job.yaml", "run=[")
    assert [path.name for path in folder.iterdir()] == ["job.yaml"]


def test_a_password_is_never_shown(write, refused):
    error = refused(
        write("run: x\nenv: {TOKEN: [hush]}\ncheckpoint: {storage: 's3://k:hush@b/x'}\n"),
        "checkpoint.storage.options.password=hush",
    )
    shown = f"{error}{[problem.to_dict() for problem in error.problems]}"
    assert "hush" not in shown


def test_errors_travel(write, refused):
    error = refused(write("run: 5\nname: 7\n"))
    # Our own bytes.
    copy = pickle.loads(pickle.dumps(error))
    assert copy.problems == error.problems
    assert str(copy) == str(error)
    assert [
        Problem.from_dict(problem.to_dict() | {"newer": 1}) for problem in error.problems
    ] == error.problems


# ---- whatever stands in the file


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(seed=st.integers(0, 2**32))
def test_a_damaged_job_file_is_refused_or_read_never_a_crash(write, seed):
    rng = random.Random(seed)
    text = bytearray(
        b"run: python t.py\nname: a\nenv: {A: 1}\noutputs: [a, 'b']\nresources: {cpus: 1, memory: 8GiB}\n"
        b"checkpoint:\n  storage: {url: s3://b/p, options: {x: {y: 1}}}\n  every: {steps: 1}\n"
        b"restart: {max_failures: 1, backoff: {initial: 1s}}\n"
    )
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(text))
        text[at : at + rng.randint(0, 3)] = rng.choice(
            [b"", b"-", b": ", b"[", b"{", b"\n", b"\t", b"'", b"&", b"9"]
        )
    path = write(bytes(text))
    with contextlib.suppress(JobFileError):
        assert load_job(path).spec.run
