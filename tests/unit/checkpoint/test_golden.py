"""What was ever written is read, and what is written today is read by those who read what was written first."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch
import xxhash

from golden import make
from golden.reading import GOLDEN, SCHEMAS, documents, read_alone
from golden.state import Tied, odd_tensors, trained, values
from orch_workers.checkpoint import Catalog, Checkpointer, find_and_restore, open_storage, schemas
from orch_workers.checkpoint.verifying import verify
from orch_workers.training.optimizers import OptimizerHandler
from orch_workers.training.snapshot import Adapters, Stored

VERSIONS = ["version-1-unsealed", "version-1"]
"""One for each way in which a format version was ever written; none is ever taken out."""


@pytest.fixture(params=[*VERSIONS, "today"])
def written(request, tmp_path) -> Path:
    """A storage folder: the golden ones (a copy, since reading may leave marks), and one that is written now."""
    folder = tmp_path / "storage"
    if request.param == "today":
        make.make(folder)
        (folder / "expected.json").write_text(json.dumps({str(step): make.expected(step) for step in (2, 3)}))
    else:
        shutil.copytree(GOLDEN / request.param, folder)
    return folder


def expected(written: Path, step: int) -> dict:
    return json.loads((written / "expected.json").read_text())[str(step)]


def test_each_golden_checkpoint_is_there_and_small():
    for version in VERSIONS:
        files = [path for path in (GOLDEN / version).rglob("*") if path.is_file()]
        assert len(files) == 9
        assert sum(path.stat().st_size for path in files) < 100_000


def test_restored_bit_for_bit(written, tmp_path):
    catalog = Catalog(open_storage(str(written)), make.JOB)
    assert [point[:2] for point in catalog.restore_points()] == [make.SECOND, make.FIRST]
    found = find_and_restore(catalog, 0, tmp_path / "restore", world_size=1)
    assert found.rejected == ()
    assert found.point[:2] == make.SECOND
    stored = Stored(found.path, Adapters().codecs())
    assert (stored.step, stored.meta["epoch"], stored.meta["metrics"]) == (3, 1, {"loss": 0.5, "bad": "nan"})
    same_bytes({name: stored.part(name) for name in ("model", "optimizer", "odd")}, expected(written, 3))
    same_values(stored.part("values"), values(3))
    same_types(stored.part("odd"), odd_tensors(3))
    stored.close()


def same_bytes(state: dict, wanted: dict) -> None:
    found: dict[str, dict[str, object]] = {}
    make.collect(state, "", found)
    assert found == {name: one for name, one in wanted.items() if name.split(".")[0] in state}
    assert len(found) >= 16, "of model and optimizer alone"


def same_types(found: dict, wanted: dict) -> None:
    for name, value in wanted.items():
        assert type(found[name]) is type(value), name
        assert found[name].dtype == value.dtype, name
    assert found["transposed"].stride() == wanted["transposed"].stride()


def same_values(found: dict, wanted: dict) -> None:
    """Equal, and of the very same types all the way down."""
    assert found == wanted
    assert [type(value) for value in found["containers"]] == [type(value) for value in wanted["containers"]]
    assert isinstance(found["containers"][5], Counter)
    assert found["containers"][6].default_factory is list
    assert found["containers"][7].maxlen == 3
    assert list(found["containers"][4]) == ["z", "a"]
    assert found["plain"][1] is True
    assert type(found["numpy"]) is np.float32
    assert found["bytes"][1] == b"long " * 60


def test_restored_into_a_model_and_its_optimizer(written):
    """By the library, tied weights tied."""
    model, optimizer = Tied(), None
    optimizer = torch.optim.Adam(model.parameters(), lr=0.5)
    with Checkpointer(written / make.JOB) as checkpoints:
        found = checkpoints.restore({"model": model, "optimizer": optimizer}, random=False)
    assert found.step == 3
    assert model.outside.weight is model.inside.weight
    captured = OptimizerHandler("optimizer", optimizer, {"model": model}, {}).capture()
    same_bytes({"model": model.state_dict(), "optimizer": captured}, expected(written, 3))


def test_every_byte_is_what_its_digests_say(written):
    catalog = Catalog(open_storage(str(written)), make.JOB)
    for point in catalog.committed():
        assert verify(catalog, point, deep=True).problems == ()


def test_read_with_json_and_safetensors_alone(written):
    """What docs/checkpoint-format.md promises to other languages."""
    job = written / make.JOB
    assert read_alone(job)["step"] == 3
    rank = read_alone(job)["ranks"][0]
    wanted = expected(written, 3)
    tied = {"model.outside.weight"}
    found = {name: one for name, one in rank["tensors"].items() if name in wanted}
    assert set(wanted) - tied == set(found)
    for name, one in found.items():
        assert one["hex"] == wanted[name]["hex"], name
        assert one["shape"] == wanted[name]["shape"], name
    assert rank["tree"]["model"]["v"][-1] == [
        "outside.weight",
        {"~": "tensor", "entry": "model.inside.weight"},
    ]
    assert rank["tensors"]["odd.float8_e8m0fnu"]["dtype"] == "F8_E8M0"
    assert rank["tree"]["values"]["far"][0] == {"~": "float", "v": "inf"}
    quarantine = job / "quarantine/000001.000002"
    quarantine.mkdir(parents=True)
    (quarantine / "000000000003.json").write_text("{}")
    assert read_alone(job)["step"] == 2


def test_the_readers_see_what_the_writers_had():
    """Torch computes today what it computed then; else the golden numbers themselves would be in doubt."""
    for version in VERSIONS:
        for step in (2, 3):
            then = expected(GOLDEN / version, step)
            assert {name for name in then if name.startswith("odd")} == {
                f"odd.{name}" for name in odd_tensors(step)
            }
            model, _ = trained(step)
            assert then["model.norm.running_mean"]["hex"] == model.norm.running_mean.numpy().tobytes().hex()


# schemas


def test_the_published_schemas_are_those_of_the_code():
    for name, schema in schemas.schemas().items():
        path = SCHEMAS / name
        again = "python -m orch_workers.checkpoint.schemas docs/schemas"
        assert path.read_text() == schemas.text_of(schema), (
            f"{name} has changed: `{again}`, if that was meant"
        )
    assert {path.name for path in SCHEMAS.glob("checkpoint-*.json")} == set(schemas.schemas())


def test_every_document_is_as_its_schema_says(written):
    catalog = Catalog(open_storage(str(written)), make.JOB)
    catalog.pin(catalog.committed()[0], "a note")
    catalog.quarantine(catalog.committed()[1], "a reason")
    checked = 0
    for schema, document, _ in documents(written / make.JOB):
        jsonschema.Draft202012Validator.check_schema(schema)
        jsonschema.validate(document, schema)
        checked += 1
    assert checked == 8


def test_the_schemas_refuse_what_is_wrong(written):
    for schema, document, _ in documents(written / make.JOB):
        for key in schema["required"]:
            broken = {name: value for name, value in document.items() if name != key}
            with pytest.raises(jsonschema.ValidationError):
                jsonschema.validate(broken, schema)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**document, "version": 3}, schema)


def test_documents_carry_their_own_digest(written):
    """As docs/checkpoint-format.md says, in a few lines of any language; those written first have none."""
    if (
        written.joinpath("golden/manifests/000001.000001/000000000002.json")
        .read_bytes()
        .find(b'"digest":"', -60)
        < 0
    ):
        assert not any(
            b',"digest":"' in path.read_bytes()[-60:] for _, _, path in documents(written / make.JOB)
        )
        return
    for _, document, path in documents(written / make.JOB):
        body, _, _ = path.read_bytes().rpartition(b',"digest":"')
        assert document["digest"] == xxhash.xxh3_128_hexdigest(body)
