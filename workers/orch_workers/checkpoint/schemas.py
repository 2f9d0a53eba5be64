"""JSON Schemas of the documents in storage, for readers in other languages (docs/schemas).

`python -m orch_workers.checkpoint.schemas FOLDER` writes them. The manifests' come from the records that are
written and read; the small documents, which are no records, are described here. Additional keys are allowed
everywhere: a reader ignores what it does not know.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from orch_workers.checkpoint.format import FORMAT_VERSION, VERSION_READ_MAX, Manifest, RankManifest

Schema = dict[str, Any]

ADDED_LATER = {"digest", "took_s", "blocked_s", "files", "shared"}
"""Keys that the first documents of version 1 do not have."""
DRAFT = "https://json-schema.org/draft/2020-12/schema"
_GENERATION = {"type": "string", "pattern": r"^[0-9]{6,}\.[0-9]{6,}$"}
_COUNT = {"type": "integer", "minimum": 0}
_DIGEST = {
    "type": "string",
    "pattern": "^[0-9a-f]{32}$",
    "description": "The last key: xxh3-128 of all bytes of the document that stand before the comma that precedes it.",
}


def schemas() -> dict[str, Schema]:
    """File name → schema."""
    return {
        "checkpoint-manifest.json": _of(Manifest, "The manifest: manifests/G/S.json"),
        "checkpoint-rank.json": _of(RankManifest, "A rank's manifest: ranks/G/S/R.json"),
        "checkpoint-generation.json": _generation(),
        "checkpoint-quarantine.json": _mark(
            "A mark: quarantine/G/S.json",
            {
                "reason": {"type": "string"},
                "found_us": _COUNT,
                "needs_version": {"type": "integer", "minimum": 1},
            },
            ["reason", "found_us"],
        ),
        "checkpoint-pin.json": _mark(
            "A pin: pins/G/S.json", {"note": {"type": "string"}, "pinned_us": _COUNT}, ["note", "pinned_us"]
        ),
    }


def _of(record: type[Manifest | RankManifest], title: str) -> Schema:
    schema = record.model_json_schema(mode="validation")
    schema.pop("description", None)
    version: Schema = {"const": FORMAT_VERSION}
    schema["properties"]["version"] = version if record is Manifest else {"enum": [1, VERSION_READ_MAX]}
    schema["properties"]["generation"] = _GENERATION
    schema["properties"]["digest"] = _DIGEST
    # What has a default for older documents is written all the same.
    written = [name for name in schema["properties"] if name not in ADDED_LATER]
    return {"$schema": DRAFT, **schema, "title": title, "required": written}


def _generation() -> Schema:
    fork = {
        "type": "object",
        "properties": {"generation": _GENERATION, "until_step": _COUNT},
        "required": ["generation", "until_step"],
    }
    properties: Schema = {
        "format": {"const": "orch-generation"},
        "version": {"const": FORMAT_VERSION},
        "job": {"type": "string"},
        "generation": _GENERATION,
        "parent": {"anyOf": [_GENERATION, {"type": "null"}]},
        "restored_step": _COUNT,
        "ancestors": {"type": "array", "items": fork, "description": "Newest first."},
    }
    return {
        "$schema": DRAFT,
        "title": "A generation's record: generations/G.json",
        "type": "object",
        "properties": {
            **properties,
            "writer": {
                "type": "string",
                "description": "Tells two processes apart that take the same number.",
            },
            "digest": _DIGEST,
        },
        "required": list(properties),
    }


def _mark(title: str, properties: Schema, required: list[str]) -> Schema:
    return {
        "$schema": DRAFT,
        "title": title,
        "type": "object",
        "properties": {"version": {"const": FORMAT_VERSION}, **properties},
        "required": ["version", *required],
    }


def text_of(schema: Schema) -> str:
    return json.dumps(schema, indent=2) + "\n"


if __name__ == "__main__":
    for name, schema in schemas().items():
        Path(sys.argv[1], name).write_text(text_of(schema), encoding="utf-8")
