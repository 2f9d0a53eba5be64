"""Formats of one header and the bytes behind it: safetensors and NumPy's .npy."""

from __future__ import annotations

import ast
import json
import math
import os
import re
from typing import IO

HEADER_BYTES_MAX = 100_000_000
"""What safetensors itself accepts."""
NPY_MAGIC = b"\x93NUMPY"


def safetensors_problem(stream: IO[bytes]) -> str:
    """What is wrong with a safetensors file; "" when it is whole."""
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    length = int.from_bytes(stream.read(8), "little")
    if size < 8 or length > min(HEADER_BYTES_MAX, size - 8):
        return "it ends before its header"
    try:
        header = json.loads(stream.read(length))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        end = max(ends, default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        return f"its header does not read ({error})"
    if end != size - 8 - length:
        return f"it has {size} bytes and should have {8 + length + end}"
    return ""


def npy_problem(stream: IO[bytes]) -> str:
    """What is wrong with a .npy file; "" when it is whole, or holds objects."""
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    head = stream.read(12)
    if len(head) < 12 or head[:6] != NPY_MAGIC:
        return "it ends before its header"
    wide = head[6] > 1
    length = int.from_bytes(head[8:12] if wide else head[8:10], "little")
    begin = (12 if wide else 10) + length
    stream.seek(12 if wide else 10)
    text = stream.read(length)
    try:
        described = ast.literal_eval(text.decode("latin-1").strip())
        found = re.fullmatch(r"[<>|=]?[biufcSUV?](\d+)", described["descr"])
        width = int(found[1]) * (4 if "U" in described["descr"] else 1) if found else None
        expected = None if width is None else begin + width * math.prod(described["shape"])
    except (ValueError, SyntaxError, TypeError, KeyError, RecursionError) as error:
        return f"its header does not read ({error})"
    if expected is not None and size != expected:
        return f"it has {size} bytes and should have {expected}"
    return ""
