"""Alert rules and dashboard name what the server tells, and Prometheus' own tools have nothing against them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from orch.control.metrics import COUNTERS, GAUGES

MONITORING = Path(__file__).parents[3] / "deploy" / "monitoring"
FAMILIES = {**COUNTERS, **GAUGES}
NAME = re.compile(r"\borch_\w+")
SELECTOR = re.compile(r"(orch_\w+)\{([^}]*)\}")
LABEL = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)")

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None,
    reason="Prometheus' own tools are not installed here (Debian: prometheus)",
)


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((MONITORING / "rules.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    return list(json.loads((MONITORING / "dashboard.json").read_text())["panels"])


def expressions() -> list[str]:
    shown = [target["expr"] for panel in panels() for target in panel.get("targets", ())]
    return [rule["expr"] for rule in rules()] + shown


def test_every_metric_that_is_named_exists() -> None:
    for expression in expressions():
        for name in NAME.findall(expression):
            assert name in FAMILIES, f"{name} in {expression}"
        for name, selector in SELECTOR.findall(expression):
            assert set(LABEL.findall(selector)) <= set(FAMILIES[name].labels), f"{name}{{{selector}}}"
        for _, by in re.findall(r"\b(by|on) \((\w+)\)", expression):
            assert any(by in FAMILIES[name].labels for name in NAME.findall(expression)), expression


def test_the_page_has_the_same_table() -> None:
    page = (MONITORING.parents[1] / "docs" / "operations.md").read_text()
    told = re.findall(r"^\| `(orch_\w+)` \| (.*) \| (.*) \|$", page, re.MULTILINE)
    assert {name: (tuple(re.findall(r"`(\w+)`", labels)), text) for name, labels, text in told} == {
        name: (family.labels, family.help) for name, family in FAMILIES.items()
    }


def test_the_page_says_what_to_do_for_every_alert() -> None:
    page = (MONITORING.parents[1] / "docs" / "operations.md").read_text()
    assert set(re.findall(r"^\| (Orch\w+) \|", page, re.MULTILINE)) == {rule["alert"] for rule in rules()}


def test_every_metric_is_looked_at() -> None:
    """One that nothing shows and nothing watches is not worth its place."""
    used = {name for expression in expressions() for name in NAME.findall(expression)}
    assert FAMILIES.keys() - used == {"orch_info"}


def test_legends_name_labels_that_are_there() -> None:
    for panel in panels():
        for target in panel.get("targets", ()):
            for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
                assert label in {
                    label for name in NAME.findall(target["expr"]) for label in FAMILIES[name].labels
                }


def test_panels_have_numbers_of_their_own_and_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    assert len({panel["id"] for panel in panels()}) == len(panels())
    for panel in panels():
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells


@needs_promtool
def test_prometheus_accepts_the_rules() -> None:
    check("check", "rules", "rules.yaml")


@needs_promtool
def test_the_rules_fire_when_they_should() -> None:
    check("test", "rules", "rules.test.yaml")


@needs_promtool
def test_prometheus_accepts_the_configuration(tmp_path: Path) -> None:
    shutil.copytree(MONITORING, tmp_path, dirs_exist_ok=True)
    (tmp_path / "token").write_text("x")
    check("check", "config", "prometheus.yaml", folder=tmp_path)


def check(*arguments: str, folder: Path = MONITORING) -> None:
    done = subprocess.run(
        ["promtool", *arguments], cwd=folder, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
