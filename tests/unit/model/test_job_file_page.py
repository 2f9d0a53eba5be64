"""docs/job-file.md names every key, and its examples are jobs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from orch.model.config import CONFIG_KEYS
from orch.model.explain import all_keys
from orch.model.jobfile import spec_from_json
from orch.model.problems import format_path
from orch.model.spec import JobSpec, unsupported
from orch.model.strict_yaml import parse_yaml

PAGE = Path(__file__).parents[3].joinpath("docs", "job-file.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("text", EXAMPLES)
def test_examples_are_jobs_that_this_version_runs(text):
    document = parse_yaml(text.encode(), "docs/job-file.md")
    assert document.problems == []
    assert unsupported(spec_from_json(document.data)) == []


def test_there_are_examples():
    assert len(EXAMPLES) == 6


def test_every_key_is_documented():
    rows = set(re.findall(r"^\| `([a-z_.]+)` \|", PAGE, re.MULTILINE))
    keys = {format_path(path) for path in all_keys(JobSpec)}
    whole = {key for key in keys if any(other.startswith(f"{key}.") for other in keys)}
    # Parts of these stand in their own row.
    parts = {key for key in keys if key.startswith(("checkpoint.keep.best.", "stop.", "start_from."))}
    assert keys - whole - parts <= rows
    assert rows <= keys | set(CONFIG_KEYS)
    assert set(CONFIG_KEYS) <= rows


def test_the_whole_example_shows_the_defaults():
    shown = spec_from_json(parse_yaml(EXAMPLES[1].encode(), "x").data)
    default = JobSpec(run=shown.run)
    assert shown.restart == default.restart
    assert shown.checkpoint.every == default.checkpoint.every
    assert shown.checkpoint.keep == default.checkpoint.keep
    for name in ("workdir", "ship", "priority"):
        assert getattr(shown, name) == getattr(default, name)
    resources = default.resources.model_dump() | {"memory": shown.resources.memory_bytes}
    assert shown.resources.model_dump() == resources
