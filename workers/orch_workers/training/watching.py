"""Guards of a plan: is everything that the last snapshot copied still the same memory, laid out the same way?

A plan (planning.py) knows where each tensor's bytes go. It holds as long as modules, optimizers and tensors have
the same members and each tensor the same type, address, shape, strides and element type; a guard that misses a
change would save what is no longer the state. So a watch walks what `state_dict()` would walk, by the same
attributes, and is made only for objects whose `state_dict()` is torch's own and gives, at that moment, exactly
what the walk gives. Everything else takes the slow and certain way: it is captured and encoded at every save.

Nothing is told apart by value: `==` on tensors compares elements, and two step counters are often equal.
"""

# ruff: noqa: SLF001 - state_dict() reads these members; only a walk over the same ones can stand in for it

from __future__ import annotations

from collections import OrderedDict
from operator import attrgetter, eq, is_, itemgetter
from typing import Any, Iterator, Sequence

HOLE = object()
"""Stands in a fixed tree where a value is captured at every save."""

_DEVICES = ("cpu", "cuda")
"""Whose addresses tell memory apart."""


class UnwatchableError(Exception):
    """This object can be kept, but no cheap look tells whether it is still the same."""


class Watch:
    """Guards one argument of orch.training()."""

    name: str

    def tensors(self) -> list[Any] | None:
        """The live tensors, in the order in which `fixed` has them; None when the members have changed."""
        raise NotImplementedError

    def fixed(self) -> Any:
        """The argument's state, with HOLE for what `holes` gives."""
        raise NotImplementedError

    def holes(self) -> Iterator[tuple[list[str], Any]]:
        """(path below the argument, value) of what is no tensor. Called after `tensors`."""
        return iter(())

    def forget(self) -> None:
        """Lets go of the values that were seen, so that none outlives the object that holds it."""


class Layouts:
    """What a list of tensors is like: everything that decides which bytes are read and what they mean."""

    def __init__(self, torch: Any, tensors: Sequence[Any]) -> None:
        self._torch = torch
        self._types = list(map(type, tensors))
        self._addresses = list(map(torch.Tensor.data_ptr, tensors))
        self._sizes = [tensor.size() for tensor in tensors]
        self._strides = [tensor.stride() for tensor in tensors]
        self._dtypes = [tensor.dtype for tensor in tensors]
        self._devices = [tensor.device for tensor in tensors]
        self._complex = [index for index, tensor in enumerate(tensors) if tensor.is_complex()]
        # an address tells the device too, but nothing lives at the address of no bytes
        self._empty = [index for index, tensor in enumerate(tensors) if not tensor.numel()]

    def hold(self, tensors: Sequence[Any]) -> bool:
        """Half a microsecond a tensor. No list of tuples is built: the garbage collector would come by."""
        tensor = self._torch.Tensor
        return (
            list(map(type, tensors)) == self._types
            and list(map(tensor.data_ptr, tensors)) == self._addresses
            and all(map(eq, map(tensor.size, tensors), self._sizes))
            and all(map(eq, map(tensor.stride, tensors), self._strides))
            and all(map(is_, map(attrgetter("dtype"), tensors), self._dtypes))
            and not any(map(tensor.is_neg, tensors))
            and not any(tensors[index].is_conj() for index in self._complex)
            and all(tensors[index].device == self._devices[index] for index in self._empty)
        )


def assert_watchable(torch: Any, tensors: Sequence[Any]) -> None:
    for tensor in tensors:
        if type(tensor) not in (torch.Tensor, torch.nn.Parameter) or tensor.layout != torch.strided:
            raise UnwatchableError
        if tensor.device.type not in _DEVICES or tensor.is_neg() or tensor.is_conj():
            raise UnwatchableError


class TensorWatch(Watch):
    def __init__(self, torch: Any, name: str, tensor: Any) -> None:
        assert_watchable(torch, [tensor])
        self.name = name
        self._tensor = tensor

    def tensors(self) -> list[Any]:
        return [self._tensor]

    def fixed(self) -> Any:
        return self._tensor.detach()


class ModuleWatch(Watch):
    """A torch.nn.Module all of whose parts save themselves as torch.nn.Module does."""

    def __init__(self, torch: Any, name: str, module: Any) -> None:
        self.name = name
        self._module = module
        self._base = torch.nn.Module
        self._modules: list[Any] = []
        self._names: list[str] = []
        self._collect(module, "")
        self._types: list[Any] = list(map(type, self._modules))
        self._methods = {kind: self._methods_of(kind) for kind in self._types}
        if any(methods != self._methods_of(self._base) for methods in self._methods.values()):
            raise UnwatchableError
        self._members = self._look()
        live = self.tensors()
        if live is None or any(map(_has_hooks, self._modules)):
            raise UnwatchableError
        assert_watchable(torch, live)
        self._compare(module.state_dict(), live)

    @property
    def names_as_torch_does(self) -> bool:
        """Whether named_parameters() follows from what is watched here."""
        base = self._base
        standard = (base.named_parameters, base.named_modules, base._named_members)
        found = {(kind.named_parameters, kind.named_modules, kind._named_members) for kind in self._types}
        return found == {standard}

    def _collect(self, module: Any, prefix: str) -> None:
        members = (module.__dict__.get(name) for name in ("_parameters", "_buffers", "_modules"))
        if any(type(found) not in (dict, OrderedDict) for found in members):
            raise UnwatchableError
        self._modules.append(module)
        self._names += [prefix + key for key, value in module._parameters.items() if value is not None]
        self._names += [prefix + key for key, value in _saved_buffers(module) if value is not None]
        for key, child in module._modules.items():
            if child is not None:
                self._collect(child, f"{prefix}{key}.")

    def _methods_of(self, kind: Any) -> tuple[Any, ...]:
        return (kind.state_dict, kind._save_to_state_dict, kind.get_extra_state)

    def _compare(self, state: Any, live: list[Any]) -> None:
        """The proof, at the moment the plan is made, that the walk finds what state_dict() gives."""
        if type(state) is not OrderedDict or list(state) != self._names or len(live) != len(state):
            raise UnwatchableError
        for stored, tensor in zip(state.values(), live):
            if not _same_memory(stored, tensor):
                raise UnwatchableError

    def _look(self) -> list[Any]:
        """Names, counts and identities of all members, flat; hooks and what else changes a state_dict."""
        found: list[Any] = []
        for module in self._modules:
            parameters, buffers, children = module._parameters, module._buffers, module._modules
            found += (len(parameters), len(buffers), len(children), module._version)
            found += parameters
            found += map(id, parameters.values())
            if buffers:
                found += buffers
                found += map(id, buffers.values())
                found += sorted(module._non_persistent_buffers_set)
            if children:
                found += children
                found += map(id, children.values())
            if _has_hooks(module):
                found.append(module._state_dict_hooks)
        return found

    def tensors(self) -> list[Any] | None:
        modules = self._modules
        if list(map(type, modules)) != self._types or self._look() != self._members:
            return None
        if any(self._methods_of(kind) != known for kind, known in self._methods.items()):
            return None
        live: list[Any] = []
        for module in modules:
            live += module._parameters.values()
            if module._buffers:
                live += (value for _, value in _saved_buffers(module))
        return [tensor for tensor in live if tensor is not None]

    def fixed(self) -> Any:
        return self._module.state_dict()


def _has_hooks(module: Any) -> bool:
    """Whether this module, and not its class, says how it is saved."""
    own = module.__dict__
    return bool(
        module._state_dict_hooks
        or module._state_dict_pre_hooks
        or "state_dict" in own
        or "_save_to_state_dict" in own
    )


def _saved_buffers(module: Any) -> list[tuple[str, Any]]:
    left_out = module._non_persistent_buffers_set
    return [(key, value) for key, value in module._buffers.items() if key not in left_out]


def _same_memory(one: Any, other: Any) -> bool:
    return bool(
        hasattr(one, "data_ptr")
        and one.data_ptr() == other.data_ptr()
        and one.shape == other.shape
        and one.stride() == other.stride()
        and one.dtype is other.dtype
    )


class OptimizerWatch(Watch):
    """A torch.optim.Optimizer that keeps, per parameter, a dict with names; by `handler`, which names the
    parameters (optimizers.py).
    """

    def __init__(self, torch: Any, handler: Any, *, names_are_fixed: bool) -> None:
        """names_are_fixed: all modules that name parameters are watched themselves."""
        self.name = handler.name
        self._handler = handler
        self._optimizer = handler.target
        self._type = type(self._optimizer)
        self._method = torch.optim.Optimizer.state_dict
        self._names_are_fixed = names_are_fixed
        self._names = handler.group_names()
        self._groups = self._group_ids()
        self._keys = list(map(id, self._state()))
        self._entry_keys = [list(entry) for entry in self._state().values()]
        self._by_entry = self._entry_names()
        self._values: list[Any] = []
        values = [value for entry in self._state().values() for value in entry.values()]
        self._fixed_at = [index for index, value in enumerate(values) if _is_tensor(torch, value)]
        paths = [(name, key) for name, keys in zip(self._by_entry, self._entry_keys) for key in keys]
        fixed = set(self._fixed_at)
        self._holes = [(index, *path) for index, path in enumerate(paths) if index not in fixed]
        live = self.tensors()
        if live is None:
            raise UnwatchableError
        assert_watchable(torch, live)
        self._compare()

    def _state(self) -> Any:
        state = self._optimizer.state
        if not isinstance(state, dict) or any(type(entry) is not dict for entry in state.values()):
            raise UnwatchableError
        return state

    def _group_ids(self) -> list[list[int]]:
        return [list(map(id, group["params"])) for group in self._optimizer.param_groups]

    def _entry_names(self) -> list[str]:
        """The name of each entry of the state, in its order."""
        names = [name for group in self._names for name in group]
        by_id = dict(zip((key for group in self._groups for key in group), names))
        texts = [*names, *(key for keys in self._entry_keys for key in keys)]
        if any(type(text) is not str or text.startswith("~") for text in texts):
            raise UnwatchableError  # such a dict is no plain JSON object, and paths into it are others
        if len(set(names)) != len(names) or any(key not in by_id for key in self._keys):
            raise UnwatchableError
        return [by_id[key] for key in self._keys]

    def _compare(self) -> None:
        """The proof that the walk finds what the handler captures."""
        captured = self._handler.capture()
        if set(captured) != {"state", "param_groups"} or list(captured["state"]) != self._by_entry:
            raise UnwatchableError
        entries = zip(captured["state"].values(), self._state().values())
        if any(one is not other for one, other in entries):
            raise UnwatchableError

    def tensors(self) -> list[Any] | None:
        optimizer = self._optimizer
        state = optimizer.state
        if type(optimizer) is not self._type or self._type.state_dict is not self._method:
            return None
        own = vars(optimizer)
        hooks = own.get("_optimizer_state_dict_pre_hooks"), own.get("_optimizer_state_dict_post_hooks")
        if "state_dict" in own or any(hooks):
            return None
        if list(map(id, state)) != self._keys or self._group_ids() != self._groups:
            return None
        if not self._names_are_fixed and self._handler.group_names() != self._names:
            return None
        values: list[Any] = []
        for entry, keys in zip(state.values(), self._entry_keys):
            if type(entry) is not dict or list(entry) != keys:
                return None
            values += entry.values()
        self._values = values
        if not self._holes:
            return values
        found = self._fixed_at
        return list(itemgetter(*found)(values)) if len(found) > 1 else [values[index] for index in found]

    def fixed(self) -> Any:
        state: dict[str, Any] = {name: {} for name in self._by_entry}
        paths = [(name, key) for name, keys in zip(self._by_entry, self._entry_keys) for key in keys]
        fixed = set(self._fixed_at)
        for index, (name, key) in enumerate(paths):
            state[name][key] = self._values[index] if index in fixed else HOLE
        return {"state": state, "param_groups": HOLE}

    def holes(self) -> Iterator[tuple[list[str], Any]]:
        for index, name, key in self._holes:
            yield ["state", name, key], self._values[index]
        yield ["param_groups"], self._handler.named_groups(self._names)

    def forget(self) -> None:
        self._values = []


def _is_tensor(torch: Any, value: Any) -> bool:
    return type(value) is torch.Tensor or type(value) is torch.nn.Parameter
