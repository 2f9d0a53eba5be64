"""Version 2: a step of two ranks that share what is the same on them, read as long as there is an orch."""

from __future__ import annotations

import json
import shutil

import jsonschema
import pytest

from golden import make
from golden.reading import GOLDEN, documents, read_alone
from orch_workers.checkpoint import Catalog, find_and_restore, open_storage
from orch_workers.checkpoint.verifying import verify
from orch_workers.training.snapshot import Adapters, Stored


@pytest.fixture(params=["version-2", "today"])
def written(request, tmp_path):
    folder = tmp_path / "storage"
    if request.param == "today":
        make.make_ranks(folder)
        wanted = {str(rank): make.collected(make.parts_of_rank(rank)) for rank in (0, 1)}
        (folder / "expected.json").write_text(json.dumps(wanted))
    else:
        shutil.copytree(GOLDEN / request.param, folder)
    return folder


def expected(written, rank: int) -> dict:
    return json.loads((written / "expected.json").read_text())[str(rank)]


def test_restored_bit_for_bit_on_each_rank(written, tmp_path):
    catalog = Catalog(open_storage(str(written)), make.JOB)
    assert verify(catalog, catalog.restore_points()[0], deep=True).problems == ()
    for rank in (0, 1):
        found = find_and_restore(catalog, rank, tmp_path / f"restore-{rank}", world_size=2)
        assert found is not None
        stored = Stored(found.path, Adapters().codecs())
        parts = {name: stored.part(name) for name in ("model", "optimizer", "odd")}
        stored.close()
        wanted = {name: one for name, one in expected(written, rank).items() if name.split(".")[0] in parts}
        assert make.collected(parts) == wanted


def test_read_with_json_and_safetensors_alone(written):
    for rank, found in enumerate(read_alone(written / make.JOB)["ranks"]):
        wanted = expected(written, rank)
        assert set(wanted) - {"model.outside.weight"} == set(found["tensors"]) & set(wanted)
        for name in set(found["tensors"]) & set(wanted):
            assert found["tensors"][name]["hex"] == wanted[name]["hex"], name


def test_every_document_is_as_its_schema_says(written):
    found = {path.name: document for schema, document, path in documents(written / make.JOB)}
    for schema, document, _ in documents(written / make.JOB):
        jsonschema.validate(document, schema)
    assert {document["version"] for name, document in found.items() if name in ("0.json", "1.json")} == {2}
