"""Loading a module in place: from the mapped slot straight into the live parameters, one copy and no more."""

# ruff: noqa: SLF001 - whether a module loads as torch does is told by these methods

from __future__ import annotations

from typing import Any, Iterable

from .arrays import numpy_module
from .copying import copy_pairs
from .tensors import bytes_of, is_plain


def loads_as_torch_does(torch: Any, module: Any) -> bool:
    """Whether `load_state_dict` of this module does nothing but copy, when all names and shapes agree."""
    base = torch.nn.Module
    copying = {base._load_from_state_dict}
    for name in ("_NormBase", "_InstanceNorm"):  # theirs only mend what older versions of torch have saved
        for place in (torch.nn.modules.batchnorm, torch.nn.modules.instancenorm):
            copying.add(getattr(getattr(place, name, base), "_load_from_state_dict", None))
    for part in module.modules():
        kind, own = type(part), part.__dict__
        if kind._load_from_state_dict not in copying or kind.load_state_dict is not base.load_state_dict:
            return False
        if kind.state_dict is not base.state_dict or kind._save_to_state_dict is not base._save_to_state_dict:
            return False
        if (
            kind.set_extra_state is not base.set_extra_state
            or kind.get_extra_state is not base.get_extra_state
        ):
            return False
        if any(
            own.get(name)
            for name in own
            if name.startswith("_load_state_dict_") or "state_dict_hooks" in name
        ):
            return False
        if not own.keys().isdisjoint(("load_state_dict", "_load_from_state_dict", "state_dict")):
            return False
    return True


def load_tensors(torch: Any, pairs: Iterable[tuple[Any, Any]]) -> None:
    """Copies (live tensor, borrowed tensor of its shape and dtype), whatever device the live one is on."""
    plain, touched = [], []
    with torch.no_grad():
        for live, stored in pairs:
            if numpy_module() is None or not live.numel() or not is_plain(live) or not is_plain(stored):
                live.detach().copy_(stored)
                continue
            plain.append((bytes_of(torch, live), bytes_of(torch, stored)))
            touched.append(live)
    copy_pairs(plain)
    tell = getattr(getattr(torch.autograd, "graph", None), "increment_version", None)
    if tell is not None:  # as an in-place operation of torch would have
        for live in touched:
            tell(live)
