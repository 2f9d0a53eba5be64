"""Labels of machines, as a job asks for them: what Ray's label selectors understand, checked before Ray sees it."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator

from orch.model import fields
from orch.model.problems import shown

_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
_KEY = re.compile(rf"(?:[a-z0-9.-]{{1,253}}/)?{_NAME}")
_RULE = re.compile(rf"!?{_NAME}|!?in\({_NAME}(?:, ?{_NAME})*\)")
NODE_LABEL = "ray.io/node-id"
"""Ray gives it to every node; orch uses it to keep off machines that are to go away."""
LABELS_MAX = 20


def _label(value: str) -> str:
    if not _KEY.fullmatch(value):
        fields.refuse(f"{shown(value)} is no label", allowed="such as market-type or ray.io/accelerator-type")
    if value == NODE_LABEL:
        fields.refuse(f"{value} is used by orch itself", allowed="any other label")
    return value


def _rule(value: str) -> str:
    if not _RULE.fullmatch(value):
        fields.refuse(
            f"{shown(value)} is no value that a label can be asked for",
            allowed="such as spot, !spot, in(A100,H100) or !in(A100,H100)",
        )
    return value


Label = Annotated[str, AfterValidator(_label)]
LabelRule = Annotated[str, AfterValidator(_rule)]
