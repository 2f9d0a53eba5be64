from __future__ import annotations

import json
import pickle

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from orch.model.jobfile import spec_from_json
from orch.model.problems import JobFileError
from orch.model.spec import Every, JobSpec, job_schema, unsupported

# The example of DESIGN section 4.
FULL = """
name: digits
run: python train.py --epochs 20
workdir: .
ship: auto
outputs: ["model.ckpt", "plots/**"]
env: {OMP_NUM_THREADS: "1"}
secrets: [WANDB_API_KEY]
python: {requirements: requirements.txt}
resources: {workers: 2, gpus: 1, cpus: 4, memory: 8GiB}
checkpoint:
  storage: s3://bucket/prefix
  every: {steps: 500, seconds: 600, epochs: 1}
  keep: {last: 5, every_hours: 1, best: {metric: val_loss, mode: min, count: 1}}
  files: [model.ckpt]
restart:
  {max_failures: 3, max_hangs: 3, max_preemptions: unlimited, backoff: {initial: 1s, max: 5m}, hang: auto}
priority: 0
"""


def full():
    return JobSpec.model_validate(yaml.safe_load(FULL))


def test_the_design_s_example_is_a_job():
    spec = full()
    assert spec.resources.memory_bytes == 8 << 30
    assert spec.restart.backoff.max_s == 300
    assert spec.checkpoint.storage.url == "s3://bucket/prefix"
    assert spec.outputs == ("model.ckpt", "plots/**")


def test_only_run_is_required_and_defaults_follow_the_field():
    spec = JobSpec(run="true")
    assert spec.checkpoint.every == Every(seconds=600)
    assert spec.checkpoint.keep.last == 5
    assert spec.checkpoint.storage is None
    assert spec.restart.max_preemptions == "unlimited"
    assert (spec.resources.workers, spec.resources.gpus, spec.resources.cpus) == (1, 0, 1)
    with pytest.raises(ValidationError):
        JobSpec.model_validate({})


@pytest.mark.parametrize("spec", [JobSpec(run="x"), full()], ids=["smallest", "full"])
def test_json_round_trip(spec):
    document = json.loads(json.dumps(spec.model_dump(mode="json")))
    assert JobSpec.model_validate(document) == spec
    assert JobSpec.model_validate_json(spec.model_dump_json()) == spec
    assert document["restart"]["backoff"].keys() == {"initial", "max"}
    # Our own bytes: a spec travels to the controller through Ray.
    assert pickle.loads(pickle.dumps(spec)) == spec


def test_every_auto_round_trips():
    spec = JobSpec.model_validate({"run": "x", "checkpoint": {"every": "auto"}})
    assert spec.checkpoint.every == "auto"
    assert JobSpec.model_validate(spec.model_dump(mode="json")) == spec


@pytest.mark.parametrize(
    ("given", "share"), [("1%", 0.01), ("0.5 %", 0.005), (0.02, 0.02), ("50%", 0.5), ("0.01%", 0.0001)]
)
def test_a_share_survives_json(given, share):
    spec = JobSpec.model_validate({"run": "x", "checkpoint": {"max_overhead": given}})
    assert spec.checkpoint.max_overhead == pytest.approx(share)
    assert JobSpec.model_validate(spec.model_dump(mode="json")) == spec


def test_what_is_kept_survives_json():
    keep = {"every_hours": 1.5, "every_steps": 10, "min_age": "1h", "best": {"metric": "acc", "mode": "max"}}
    spec = JobSpec.model_validate({"run": "x", "checkpoint": {"keep": keep}})
    assert spec.checkpoint.keep.min_age_s == 3600
    assert JobSpec.model_validate(spec.model_dump(mode="json")) == spec


@given(
    st.builds(
        dict,
        steps=st.none() | st.integers(1, 10**12),
        seconds=st.none() | st.floats(0.001, 1e8) | st.integers(1, 10**8),
        epochs=st.integers(1, 10**6),
    ),
    st.integers(0, 100) | st.just("unlimited"),
    st.dictionaries(
        st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,5}X", fullmatch=True), st.text("abc é"), max_size=3
    ),
)
def test_any_spec_survives_json(every, failures, env):
    data = {"run": "x", "checkpoint": {"every": every}, "restart": {"max_failures": failures}, "env": env}
    spec = JobSpec.model_validate(data)
    assert JobSpec.model_validate_json(spec.model_dump_json()) == spec


def test_a_spec_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        full().run = "rm -rf /"


def test_numbers_stay_as_they_were_written():
    document = full().model_dump(mode="json")
    assert json.dumps(document["resources"]) == '{"workers": 2, "gpus": 1, "cpus": 4, "memory": 8589934592}'
    assert json.dumps(document["checkpoint"]["every"]) == '{"steps": 500, "seconds": 600, "epochs": 1}'


def test_the_name_is_that_of_the_folder_if_none_is_given():
    assert JobSpec(run="x", workdir="/home/me/My Run").job_name == "my-run"
    assert full().job_name == "digits"


NO_GANGS = ("resources.workers", "more than one worker", "ask for one", lambda job: job.resources.workers > 1)


def test_what_this_version_cannot_do_is_said_and_nothing_else(monkeypatch):
    assert unsupported(JobSpec(run="x", restart={"hang": "off"})) == []
    assert unsupported(full()) == []
    together = JobSpec.model_validate(
        {"run": "x", "resources": {"workers": 2}, "restart": {"on_nan": "rollback"}}
    )
    assert unsupported(together) == []
    monkeypatch.setattr("orch.model.spec.NOT_YET", (NO_GANGS,))
    assert [problem.path for problem in unsupported(together)] == ["resources.workers"]
    learned = JobSpec.model_validate(
        {"run": "x", "checkpoint": {"every": "auto"}, "restart": {"hang": "10m"}}
    )
    assert unsupported(learned) == []
    assert all("not possible in this version" in str(problem) for problem in unsupported(together))


@pytest.mark.parametrize(
    "python",
    [
        {},
        {"version": "3.7"},
        {"version": "2.7"},
        {"version": "3"},
        {"version": 3.11},
        {"version": ">=3.9"},
        {"requirements": "../r.txt"},
        {"requirements": "/r.txt"},
    ],
)
def test_an_environment_that_no_job_can_have(python):
    with pytest.raises(ValidationError):
        JobSpec(run="x", python=python)


def test_an_environment_of_a_version_alone():
    spec = JobSpec(run="x", python={"version": "3.9"})
    assert spec.python.requirements is None


def test_the_server_names_every_problem_of_what_a_client_sends():
    data = {"run": "", "checkpoint": {"storage": {"url": "../x"}}, "priority": 1.5, "name": "a/b"}
    with pytest.raises(JobFileError) as caught:
        spec_from_json(data)
    assert [problem.path for problem in caught.value.problems] == [
        "name",
        "run",
        "checkpoint.storage",
        "priority",
    ]
    for nonsense in (None, [], "x", 5):
        with pytest.raises(JobFileError):
            spec_from_json(nonsense)


def test_errors_do_not_print_values():
    with pytest.raises(ValidationError) as caught:
        JobSpec.model_validate({"run": "x", "env": {"TOKEN": ["hush"]}})
    assert "hush" not in str(caught.value)


def test_the_schema_is_for_editors():
    schema = job_schema()
    assert schema["required"] == ["run"]
    assert schema["additionalProperties"] is False
    assert set(schema["properties"]) == set(JobSpec.model_fields)
    assert "memory" in schema["$defs"]["Resources"]["properties"]
    for name, model in [("the job", schema), *schema["$defs"].items()]:
        for key, rules in model.get("properties", {}).items():
            assert rules.get("description"), f"{name}.{key} has no description"
    json.dumps(schema, allow_nan=False)


def test_the_schema_knows_the_short_forms():
    checkpoint = job_schema()["$defs"]["CheckpointSpec"]["properties"]
    assert {"type": "string"} in checkpoint["storage"]["anyOf"]
    assert checkpoint["every"]["anyOf"][1]["const"] == "auto"
    env = job_schema()["properties"]["env"]["additionalProperties"]
    assert {"string", "number", "boolean"} <= set(env["type"])
