"""`orch checkpoints pin|unpin|prune|cp|export|rm`: what is refused, what is asked, what is left."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import load_file

from orch.model.errors import OrchError, WrongUse
from support import saved

STEPS = (10, 20, 30)


def state(step):
    return {"weights": np.full((100, 3), step, np.float32), "history": [step, None]}


@pytest.fixture
def catalog(tmp_path):
    return saved.save(tmp_path / "storage", {step: state(step) for step in STEPS})


@pytest.fixture
def url(tmp_path, catalog):
    return str(tmp_path / "storage" / saved.NAME)


def steps(catalog):
    return sorted(point.step for point in catalog.committed())


# pin


def test_pin_and_unpin(cli, url, catalog):
    assert "step 10 (generation 1.1): pinned" in cli.ok(
        "checkpoints", "pin", f"{url}@10", "--note", "figure 3"
    )
    assert "pinned already" in cli.ok("checkpoints", "pin", f"{url}@10", "--note", "other")
    assert list(catalog.pins().values()) == ["figure 3"]
    [one] = cli.json("checkpoints", "unpin", f"{url}@10")["checkpoints"]
    assert (one["step"], one["is_pinned"]) == (10, False)
    assert "was not pinned" in cli.ok("checkpoints", "unpin", f"{url}@10")
    assert catalog.pins() == {}


@pytest.mark.parametrize("verb", ["pin", "unpin", "rm"])
def test_a_step_must_be_named(cli, url, verb):
    assert "names no step" in cli.refused(WrongUse, "checkpoints", verb, url)


# prune


def test_prune_shows_what_would_go_and_why(cli, url, catalog):
    catalog.pin(saved.point(catalog, 10))
    text = cli.ok("checkpoints", "prune", url, "--dry-run", "--keep-last", "1")
    whats = {line.split()[0]: line for line in text.splitlines()[1:]}
    assert "keep" in whats["30"]
    assert "last 1" in whats["30"]
    assert "remove" in whats["20"]
    assert "no rule" in whats["20"]
    assert "pinned" in whats["10"]
    assert steps(catalog) == list(STEPS)


def test_prune_removes_what_it_showed(cli, url, catalog):
    found = cli.json("checkpoints", "prune", url, "--keep-last", "1", "--yes")
    assert [one["step"] for one in found["removed"]] == [20, 10]
    assert [one["step"] for one in found["kept"]] == [30]
    assert (found["dry_run"], found["rules"]["last"]) == (False, 1)
    assert steps(catalog) == [30]
    assert "nothing to remove" in cli("checkpoints", "prune", url, "--keep-last", "1").stderr


def test_prune_keeps_what_is_in_quarantine_for_a_person(cli, url, catalog):
    catalog.quarantine(saved.point(catalog, 20), "bad")
    cli.ok("checkpoints", "prune", url, "--keep-last", "1", "--yes")
    assert steps(catalog) == [20, 30]


def test_prune_needs_rules(cli, url):
    assert "--keep-last" in cli.refused(WrongUse, "checkpoints", "prune", url)


def test_prune_has_the_rules_of_the_job_file(cli, url, catalog):
    import json

    document = {"version": 1, "job": "digits", "spec": {"run": "true", "checkpoint": {"keep": {"last": 2}}}}
    catalog.storage.create(catalog.path("job.json"), json.dumps(document).encode())
    cli.ok("checkpoints", "prune", url, "--yes")
    assert steps(catalog) == [20, 30]


def test_nothing_is_removed_where_nobody_can_be_asked(cli, url, catalog):
    for arguments in (("prune", url, "--keep-last", "1"), ("rm", f"{url}@10")):
        result = cli("checkpoints", *arguments)
        assert result.exit_code == WrongUse.exit_code
        assert "add --yes" in result.stderr
    assert steps(catalog) == list(STEPS)


def test_a_no_removes_nothing(cli, url, catalog, monkeypatch):
    monkeypatch.setattr("orch.cli.output.is_terminal", lambda stream: True)
    assert cli("checkpoints", "rm", f"{url}@10", stdin=b"n\n").exit_code == 1
    assert steps(catalog) == list(STEPS)
    assert cli("checkpoints", "rm", f"{url}@10", stdin=b"y\n").exit_code == 0
    assert steps(catalog) == [20, 30]


# rm


def test_rm_removes_all_of_one(cli, url, catalog):
    assert "is removed" in cli.ok("checkpoints", "rm", f"{url}@20", "--yes")
    assert steps(catalog) == [10, 30]
    assert not [entry for entry in catalog.storage.list(catalog.job_id) if "000000000020" in entry.path]


def test_rm_spares_what_a_job_goes_on_from(cli, url, catalog):
    told = cli.refused(WrongUse, "checkpoints", "rm", f"{url}@30", "--yes")
    assert "newest restore point of a job that may not be over" in told
    assert "--force" in told
    cli.ok("checkpoints", "rm", f"{url}@30", "--yes", "--force")
    assert steps(catalog) == [10, 20]


@pytest.mark.parametrize("is_over", [False, True])
def test_rm_of_the_newest_asks_whether_the_job_is_over(cli, api, tmp_path, is_over):
    from orch.model.states import State

    job = api.job(checkpoint={"storage": str(tmp_path / "jobs")})
    own = saved.save(tmp_path / "jobs", {10: state(10)}, name=job)
    if is_over:
        api.edit(job, state=State.SUCCEEDED)
        cli.ok("checkpoints", "rm", f"{job}@10", "--yes")
        assert steps(own) == []
    else:
        assert "of a job that is not over" in cli.refused(WrongUse, "checkpoints", "rm", f"{job}@10", "--yes")
        assert steps(own) == [10]


def test_rm_spares_what_is_pinned(cli, url, catalog):
    catalog.pin(saved.point(catalog, 10))
    assert "unpin it first" in cli.refused(WrongUse, "checkpoints", "rm", f"{url}@10", "--yes")
    found = cli.json("checkpoints", "rm", f"{url}@10", "--yes", "--force")
    assert found["removed"][0]["step"] == 10
    assert steps(catalog) == [20, 30]
    assert catalog.pins() == {}


def test_rm_takes_a_damaged_one_too(cli, url, catalog):
    saved.file(catalog, "manifests", 20).write_text("{")
    cli.ok("checkpoints", "rm", f"{url}@20", "--yes")
    assert steps(catalog) == [10, 30]


# cp


def test_cp_makes_a_checkpoint_of_its_own(cli, url, tmp_path):
    told = cli.ok("checkpoints", "cp", f"{url}@20", str(tmp_path / "archive"))
    assert f"is in file://{tmp_path}/archive/digits now" in told
    there = str(tmp_path / "archive" / "digits")
    assert "equal bit for bit" in cli.ok("checkpoints", "diff", f"{url}@20", there)
    assert "already" in cli.ok("checkpoints", "cp", f"{url}@20", there), (
        "the job's folder itself is understood too"
    )
    found = cli.json("checkpoints", "cp", f"{url}@20", there)
    assert (found["checkpoint"]["already"], found["to"]) == (True, f"file://{there}")


def test_cp_of_a_damaged_one_makes_none(cli, url, catalog, tmp_path):
    saved.flip_tensor(catalog, 20, "weights")
    told = cli.refused(OrchError, "checkpoints", "cp", f"{url}@20", str(tmp_path / "archive"))
    assert "tensor 'weights' does not match its digest" in told
    assert not (tmp_path / "archive/digits/manifests").exists()


def test_cp_to_what_cannot_be_fenced_is_refused(cli, url):
    assert "cannot prove" in cli.refused(OrchError, "checkpoints", "cp", f"{url}@20", "memory://there")


# export


def test_export(cli, url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = cli.ok("checkpoints", "export", f"{url}@20", "--to", "safetensors")
    assert "digits-20/weights.safetensors  (weights: 1 tensor" in told
    assert load_file("digits-20/weights.safetensors")["weights"].tolist() == [[20] * 3] * 100
    found = cli.json(
        "checkpoints", "export", url, "--to", "safetensors", "--into", "w.safetensors", "--only", "weights"
    )
    assert [file["path"] for file in found["files"]] == ["w.safetensors"]
    assert load_file("w.safetensors")["weights"][0, 0] == 30


def test_export_to_torch(cli, url, tmp_path):
    import torch

    target = tmp_path / "all.pt"
    result = cli("checkpoints", "export", f"{url}@20", "--to", "torch", "--into", str(target))
    assert result.exit_code == 0
    assert "weights: a ndarray became a tensor" in result.stderr
    assert torch.load(target, weights_only=True)["history"] == [20, None]


def test_export_replaces_nothing_unless_told(cli, url, tmp_path):
    target = tmp_path / "w.safetensors"
    target.write_bytes(b"mine")
    arguments = ("checkpoints", "export", f"{url}@20", "--to", "safetensors", "--into", str(target))
    assert "--replace" in cli.refused(WrongUse, *arguments)
    assert target.read_bytes() == b"mine"
    cli.ok(*arguments, "--replace")


def test_export_says_what_it_cannot_do(cli, url, tmp_path, monkeypatch):
    told = cli.refused(WrongUse, "checkpoints", "export", url, "--to", "onnx")
    assert "safetensors, torch" in told
    into = ("--into", str(tmp_path / "out"))
    assert "it holds weights, history" in cli.refused(
        OrchError, "checkpoints", "export", url, "--to", "safetensors", "--only", "model", *into
    )
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    told = cli.refused(OrchError, "checkpoints", "export", url, "--to", "torch", *into)
    assert "needs PyTorch here" in told


def test_cp_needs_a_step(cli, url, tmp_path):
    assert "names no step" in cli.refused(WrongUse, "checkpoints", "cp", url, str(tmp_path / "archive"))
