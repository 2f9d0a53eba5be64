"""`orch checkpoints list|show|verify|diff`, on a bare folder and on a job."""

from __future__ import annotations

import json
import subprocess
import sys

import jsonschema
import numpy as np
import pytest

from orch.cli.checkpoints_meter import Meter
from orch.cli.checkpoints_place import Address, parse_address, split_url
from orch.cli.checkpoints_tables import checkpoints_table, short_span
from orch.model.errors import NoServer, NoSuchJob, OrchError, WrongUse
from orch_workers.checkpoint import Checkpointer
from support import saved


def state(step):
    return {"weights": np.full((100, 3), step, np.float32), "history": [step, None]}


@pytest.fixture
def catalog(tmp_path):
    return saved.save(tmp_path / "storage", {step: state(step) for step in (10, 20, 30)})


@pytest.fixture
def url(tmp_path, catalog):
    return str(tmp_path / "storage" / saved.NAME)


# who is meant


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("digits-x7k2m", Address("digits-x7k2m")),
        ("digits-x7k2m@12", Address("digits-x7k2m", 12)),
        ("digits-x7k2m@1.2:12", Address("digits-x7k2m", 12, (1, 2))),
        ("s3://bucket/prefix/job@7", Address("s3://bucket/prefix/job", 7)),
        ("abfs://container@account/job", Address("abfs://container@account/job")),
        ("abfs://container@account/job@3", Address("abfs://container@account/job", 3)),
        ("./folder/job", Address("./folder/job")),
    ],
)
def test_addresses(text, expected):
    assert parse_address(text) == expected


@pytest.mark.parametrize(
    "text", ["", "@3", "job@", "job@latest", "job@-1", "job@1.2", "a\nb", "job@1.2:", "job@" + "9" * 19]
)
def test_what_is_no_address_is_refused(text):
    with pytest.raises(WrongUse, match="JOB@STEP"):
        parse_address(text)


def test_a_url_ends_with_the_job(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert split_url("s3://bucket/a/b/job/") == ("s3://bucket/a/b", "job")
    assert split_url("./job") == (str(tmp_path), "job")
    for bad in ("s3://bucket", "s3://bucket/Job", "/"):
        with pytest.raises(WrongUse, match="name the job's own folder"):
            split_url(bad)


def test_a_folder_above_the_job_is_refused_with_the_jobs_in_it(cli, url):
    told = cli.refused(NoSuchJob, "checkpoints", "list", url.removesuffix(f"/{saved.NAME}"))
    assert "holds no checkpoints" in told
    assert "digits" in told
    cli.refused(NoSuchJob, "checkpoints", "list", f"{url}-other")


# list


def test_list_needs_no_server_and_no_job(cli, url, catalog):
    catalog.pin(saved.point(catalog, 10), "figure 3")
    catalog.quarantine(saved.point(catalog, 20), "a test says so")
    lines = cli.ok("checkpoints", "list", url).splitlines()
    assert lines[0].split() == [
        "STEP", "EPOCH", "AGE", "SIZE", "TOOK", "BLOCKED", "GENERATION", "WHERE", "METRICS", "KEPT",
    ]  # fmt: skip
    assert [line.split()[0] for line in lines[1:]] == ["30", "20", "10"]
    assert "storage, newest" in lines[1]
    assert "quarantined: a test says so" in lines[2]
    assert "pinned (figure 3)" in lines[3]
    assert "loss=" in lines[1]


@pytest.mark.parametrize(
    ("width", "columns"),
    [
        (60, "STEP AGE WHERE KEPT"),
        (80, "STEP AGE SIZE GENERATION WHERE KEPT"),
        (200, "STEP EPOCH AGE SIZE TOOK BLOCKED GENERATION WHERE METRICS KEPT"),
    ],
)
def test_a_narrow_terminal_does_without_what_is_needed_least(cli, url, catalog, width, columns):
    catalog.quarantine(saved.point(catalog, 20), "a long reason " * 5)
    documents = cli.json("checkpoints", "list", url)["checkpoints"]
    table = checkpoints_table(documents, width)
    assert [column.header for column in table.columns] == columns.split()


def test_list_as_a_document(cli, url, catalog):
    catalog.pin(saved.point(catalog, 10), "figure 3")
    found = cli.json("checkpoints", "list", url)
    assert {key: found[key] for key in ("version", "job", "rules")} == {
        "version": 1,
        "job": "digits",
        "rules": None,
    }
    assert found["storage"].startswith("file:///")
    newest, _, oldest = found["checkpoints"]
    assert set(newest) == {
        "generation", "step", "epoch", "time", "age_s", "size_bytes", "duration_s", "blocked_s", "on_chain",
        "restorable", "newest", "places", "metrics", "kept", "pinned", "quarantined", "problem",
    }  # fmt: skip
    assert (newest["generation"], newest["step"], newest["newest"]) == ("000001.000001", 30, True)
    assert newest["places"] == ["storage"]
    assert newest["time"].endswith("Z")
    assert (oldest["pinned"], oldest["kept"]) == ("figure 3", "pinned")


def with_a_server(api, catalog, tmp_path, **spec) -> str:
    """A job whose checkpoints are in `catalog`'s storage, under its own id."""
    job = api.job(checkpoint={"storage": str(tmp_path / "jobs"), "keep": {"last": 1}}, **spec)
    own = saved.save(tmp_path / "jobs", {step: state(step) for step in (10, 20)}, name=job)
    assert own.job_id == job
    return job


def test_a_job_is_found_through_its_server_with_the_rules_of_its_file(cli, api, tmp_path, catalog):
    job = with_a_server(api, catalog, tmp_path)
    found = cli.json("checkpoints", "list", job)
    assert found["rules"]["last"] == 1
    newest, older = found["checkpoints"]
    assert "last 1" in newest["kept"]
    assert older["kept"] is None


def test_how_long_a_save_took_is_known_without_a_server(cli, tmp_path):
    folder = tmp_path / "run"
    with Checkpointer(folder) as checkpoints:
        checkpoints.save(1, {"answer": 42})
    [one] = cli.json("checkpoints", "list", str(folder))["checkpoints"]
    assert one["duration_s"] > 0
    assert one["blocked_s"] > 0
    shown = cli.ok("checkpoints", "list", str(folder))
    assert short_span(one["duration_s"]) in shown
    assert short_span(one["blocked_s"]) in shown


def test_secrets_come_from_here_and_never_from_the_server(cli, api, tmp_path, monkeypatch):
    seen = {}
    job = api.job(
        secrets=["AWS_SECRET_ACCESS_KEY", "OTHER"],
        env={"AWS_REGION": "eu-1"},
        checkpoint={
            "storage": {"url": "s3://bucket/prefix", "options": {"endpoint_url": "http://127.0.0.1:1"}}
        },
    )

    def refuses(url, options, env, *, unfenced=False):
        from orch_workers.checkpoint import StorageRefused

        seen.update(url=url, options=options, env=dict(env))
        raise StorageRefused("no credentials")

    monkeypatch.setattr("orch_workers.checkpoint.open_storage", refuses)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "mine")
    monkeypatch.setenv("AWS_REGION", "elsewhere")
    monkeypatch.delenv("OTHER", raising=False)
    told = cli.refused(OrchError, "checkpoints", "list", job)
    assert seen["url"] == "s3://bucket/prefix"
    assert seen["options"] == {"endpoint_url": "http://127.0.0.1:1"}
    assert (seen["env"]["AWS_SECRET_ACCESS_KEY"], seen["env"]["AWS_REGION"]) == ("mine", "eu-1")
    assert "no credentials" in told


def test_without_a_server_the_homes_own_storage_is_looked_into(cli, home):
    saved.save(home.root / "storage", {10: state(10)}, name="digits-x7k2m")
    assert cli.json("checkpoints", "list", "digits-x7k2m")["checkpoints"][0]["step"] == 10
    told = cli.refused(NoServer, "checkpoints", "list", "other-x7k2m")
    assert "name the storage instead of the job" in told


def test_an_option_is_for_a_url(cli, url):
    assert cli("checkpoints", "list", "digits-x7k2m", "--option", "a=b").exit_code == WrongUse.exit_code
    told = cli.refused(WrongUse, "checkpoints", "list", url, "--option", "nonsense")
    assert "NAME=VALUE" in told
    assert "has no options" in cli.refused(
        OrchError, "checkpoints", "list", url, "--option", "endpoint_url=x"
    )


# show


def test_show(cli, url):
    text = cli.ok("checkpoints", "show", f"{url}@20")
    assert "step 20, epoch 2, generation 1.1" in text
    assert "ndarray" in text
    assert "100×3" in text
    assert "0-0.safetensors" in text
    assert "history.0: 20" not in text
    assert "history.0: 20" in cli.ok("checkpoints", "show", f"{url}@20", "--values")


def test_show_as_a_document(cli, url):
    one = cli.json("checkpoints", "show", url)["checkpoint"]
    assert (one["step"], one["newest"], one["world_size"], one["kind"]) == (30, True, 1, "state")
    weights = next(tensor for tensor in one["tensors"] if tensor["name"] == "weights")
    assert (weights["dtype"], weights["shape"], weights["size_bytes"]) == ("F32", [100, 3], 1200)
    sizes = [tensor["size_bytes"] for tensor in one["tensors"]]
    assert sizes == sorted(sizes, reverse=True)
    assert {argument["name"]: argument["kind"] for argument in one["arguments"]} == {
        "weights": "ndarray", "history": "value", "~orch": "orch's own",
    }  # fmt: skip
    assert one["tree"]["history"] == [30, None]


def test_a_step_that_is_not_there(cli, url):
    assert "has no checkpoint of step 7; it has steps 30, 20, 10" in cli.refused(
        OrchError, "checkpoints", "show", f"{url}@7"
    )


# verify


def test_verify_says_good(cli, url):
    assert cli.ok("checkpoints", "verify", url).startswith(
        "step 30 (generation 1.1): good: every object is there"
    )
    lines = cli.ok("checkpoints", "verify", url, "--deep", "--all").splitlines()
    assert [line.split(":")[0] for line in lines] == [
        f"step {step} (generation 1.1)" for step in (30, 20, 10)
    ]
    assert all("every digest matches" in line for line in lines)


@pytest.mark.parametrize("what", saved.damages())
def test_verify_finds_damage_and_says_what_to_do(cli, url, catalog, what):
    damage, _, _ = saved.damages()[what]
    damage(catalog, 20)
    result = cli("checkpoints", "verify", url, "--deep", "--all")
    assert result.exit_code == 1
    assert "step 20 (generation 1.1): BAD" in result.stdout
    assert "step 30 (generation 1.1): good" in result.stdout
    assert "--quarantine" in result.stderr
    assert f"orch checkpoints rm {url}@20" in result.stderr
    assert catalog.quarantined() == {}


def test_verify_marks_when_it_is_told_to(cli, url, catalog):
    saved.flip_tensor(catalog, 30, "weights")
    result = cli("checkpoints", "verify", url, "--deep", "--quarantine", "-o", "json")
    assert result.exit_code == 1
    [one] = json.loads(result.stdout)["checkpoints"]
    assert (one["good"], one["deep"], one["step"]) == (False, True, 30)
    assert one["quarantined"] == one["problems"][0]
    assert [point.step for point in catalog.restore_points()] == [20, 10]
    assert "no restart takes them" in result.stderr
    assert cli.ok("checkpoints", "verify", url).startswith("step 20")


# diff


def test_diff_of_equals(cli, url):
    assert "equal bit for bit" in cli.ok("checkpoints", "diff", f"{url}@20", f"{url}@20")


def test_diff_shows_tensors_and_values(cli, url):
    result = cli("checkpoints", "diff", f"{url}@10", f"{url}@30")
    assert result.exit_code == 1
    [line] = [line for line in result.stdout.splitlines() if line.startswith("weights")]
    assert line.split() == ["weights", "changed", "F32", "[100,", "3]", "300", "(100.0%)", "20", "2"]
    assert any(line.split() == ["history.0", "10", "30"] for line in result.stdout.splitlines())


def test_diff_between_jobs_as_a_document(cli, url, tmp_path):
    saved.save(
        tmp_path / "other", {30: state(30) | {"weights": np.full((100, 3), np.nan, np.float32)}}, name="other"
    )
    result = cli("checkpoints", "diff", url, str(tmp_path / "other" / "other"), "-o", "json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert (found["equal"], found["before"]["job"], found["after"]["job"]) == (False, "digits", "other")
    [weights] = [one for one in found["tensors"] if one["name"] == "weights"]
    assert (weights["differing"], weights["max_abs"], weights["relative_norm"]) == (300, "nan", "nan")


# all of them

VERBS = ("list", "show", "verify", "diff", "pin", "unpin", "prune", "cp", "export", "rm", "import")


@pytest.mark.parametrize("verb", VERBS)
def test_each_has_its_help_with_an_example(cli, verb):
    text = cli.ok("checkpoints", verb, "-h")
    assert f"\n    orch checkpoints {verb} " in text


def test_there_are_no_others(cli):
    text = cli.ok("checkpoints", "-h")
    commands = text.split("Commands:\n")[1].split("\n\n")[0]
    assert [line.split()[0] for line in commands.splitlines()] == list(VERBS)


def test_status_does_not_pay_for_them():
    code = (
        "import sys; import orch.cli.main; heavy = ('numpy', 'pydantic', 'xxhash', 'fsspec', 'rich');"
        "print([name for name in heavy if name in sys.modules or 'orch_workers.checkpoint' in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


# progress


def test_long_work_says_how_far_it_is(monkeypatch, capsys):
    clock = iter([100.0, 102.0, 106.0, 107.0])
    monkeypatch.setattr("orch.cli.checkpoints_meter.time.monotonic", lambda: next(clock))
    with Meter("copying step 7", 4 << 20) as meter:
        meter.moved(1 << 20)
        meter.moved(1 << 20)
        meter.moved(1 << 20)
    assert capsys.readouterr().err == "copying step 7: 2.0 MiB of 4.0 MiB, 341.3 KiB/s, 6s left\n"


def test_a_schema_is_published_for_what_is_in_storage():
    from orch_workers.checkpoint.schemas import schemas

    for schema in schemas().values():
        jsonschema.Draft202012Validator.check_schema(schema)
