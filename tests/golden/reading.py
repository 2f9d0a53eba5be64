"""How the tests read a storage folder as somebody does who has no orch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

GOLDEN = Path(__file__).parent
READER = GOLDEN / "reader.py"
SCHEMAS = GOLDEN.parents[1] / "docs/schemas"


def read_alone(job: Path) -> dict:
    """In a process of its own, which sees to it that nothing of orch is imported."""
    done = subprocess.run(
        [sys.executable, "-I", str(READER), str(job)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def documents(folder: Path):
    """(schema, document) of every JSON object of a job."""
    kinds = {
        "manifests": "manifest",
        "ranks": "rank",
        "generations": "generation",
        "quarantine": "quarantine",
    }
    kinds["pins"] = "pin"
    for path in sorted(folder.rglob("*.json")):
        kind = kinds[path.relative_to(folder).parts[0]]
        yield (
            json.loads((SCHEMAS / f"checkpoint-{kind}.json").read_text()),
            json.loads(path.read_text()),
            path,
        )
