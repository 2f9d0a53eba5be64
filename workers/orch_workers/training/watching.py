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

from abc import ABC, abstractmethod
from collections import OrderedDict
from itertools import chain
from operator import attrgetter, eq, itemgetter
from typing import Any, Iterator, Sequence

HOLE = object()
"""Stands in a fixed tree where a value is captured at every save."""

_DEVICES = ("cpu", "cuda")
"""Whose addresses tell memory apart."""


class UnwatchableError(Exception):
    """This object can be kept, but no cheap look tells whether it is still the same."""


class Watch(ABC):
    """Guards one argument of orch.training()."""

    name: str

    @abstractmethod
    def tensors(self) -> list[Any] | None:
        """The live tensors, in the order in which `fixed` has them; None when the members have changed."""

    @abstractmethod
    def fixed(self) -> Any:
        """The argument's state, with HOLE for what `holes` gives."""

    def holes(self) -> Iterator[tuple[list[Any], Any]]:
        """(path below the argument, value) of what is no tensor. Called after `tensors`."""
        return iter(())

    def forget(self) -> None:  # noqa: B027  (most watches hold nothing)
        """Lets go of the values that were seen, so that none outlives the object that holds it."""


class Layouts:
    """What a list of tensors is like: everything that decides which bytes are read and what they mean."""

    def __init__(self, torch: Any, tensors: Sequence[Any]) -> None:
        tensor = torch.Tensor
        self._looks = (type, tensor.data_ptr, tensor.size, tensor.stride, attrgetter("dtype"), tensor.is_neg)
        known: dict[
            Any, Any
        ] = {}  # equal shapes are kept once: what is compared with should fit into a cache
        self._expected = [
            tuple(known.setdefault(part, part) if isinstance(part, tuple) else part for part in looks)
            for looks in self._all(tensors)
        ]
        self._complex = [index for index, found in enumerate(tensors) if found.is_complex()]
        # an address tells the device too, but nothing lives at the address of no bytes
        self._empty = {index: found.device for index, found in enumerate(tensors) if not found.numel()}

    def _all(self, tensors: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
        """Everything of one tensor before anything of the next: each is fetched from memory once."""
        return zip(*(map(look, tensors) for look in self._looks))

    def hold(self, tensors: Sequence[Any]) -> bool:
        """Under a microsecond a tensor."""
        return (
            len(tensors) == len(self._expected)
            and all(map(eq, self._all(tensors), self._expected))
            and not any(tensors[index].is_conj() for index in self._complex)
            and all(tensors[index].device == device for index, device in self._empty.items())
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


_MEMBERS = ("_parameters", "_buffers", "_modules", "_state_dict_hooks", "_state_dict_pre_hooks")
_members_of = itemgetter(*_MEMBERS)
_OWN_WAYS = ("state_dict", "_save_to_state_dict", "_version")
"""With one of these a module, and not its class, says how it is saved."""


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
        if any(methods[:-1] != self._methods_of(self._base)[:-1] for methods in self._methods.values()):
            raise UnwatchableError
        found = self._walk()
        if found is None:
            raise UnwatchableError
        self._structure, members = found
        saved = {id(value) for part in self._modules for value in _saved(part)}
        self._tensors_at = [index for index, value in enumerate(members) if id(value) in saved]
        live = self.tensors()
        assert live is not None
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
        own = module.__dict__
        if any(type(own.get(name)) not in (dict, OrderedDict) for name in _MEMBERS):
            raise UnwatchableError
        self._modules.append(module)
        self._names += [prefix + key for key, value in module._parameters.items() if value is not None]
        left_out = module._non_persistent_buffers_set
        buffers = module._buffers.items()
        self._names += [prefix + key for key, value in buffers if value is not None and key not in left_out]
        for key, child in module._modules.items():
            if child is not None:
                self._collect(child, f"{prefix}{key}.")

    def _methods_of(self, kind: Any) -> tuple[Any, ...]:
        return (kind.state_dict, kind._save_to_state_dict, kind.get_extra_state, kind._version)

    def _compare(self, state: Any, live: list[Any]) -> None:
        """The proof, at the moment the plan is made, that the walk finds what state_dict() gives."""
        if type(state) is not OrderedDict or list(state) != self._names or len(live) != len(state):
            raise UnwatchableError
        for stored, tensor in zip(state.values(), live):
            if not _same_memory(stored, tensor):
                raise UnwatchableError

    def _walk(self) -> tuple[tuple[Any, ...], list[Any]] | None:
        """(names, counts, identities, what is not saved) of all members, and the members; None when a module has come
        to save itself in a way of its own.
        """
        names: list[str] = []
        members: list[Any] = []
        counts: list[int] = []
        left_out: list[Any] = []
        for module in self._modules:
            own = module.__dict__
            parameters, buffers, children, hooks, earlier_hooks = _members_of(own)
            if hooks or earlier_hooks or not own.keys().isdisjoint(_OWN_WAYS):
                return None
            names += parameters
            members += parameters.values()
            counts.append(len(parameters))
            if buffers:
                names += buffers
                members += buffers.values()
                left_out.append(frozenset(own["_non_persistent_buffers_set"]))
            if children:
                names += children
                members += children.values()
            counts.append(len(buffers))
        return (names, counts, list(map(id, members)), left_out), members

    def tensors(self) -> list[Any] | None:
        if list(map(type, self._modules)) != self._types:
            return None
        if any(self._methods_of(kind) != known for kind, known in self._methods.items()):
            return None
        found = self._walk()
        if found is None or found[0] != self._structure:
            return None
        return _picked(found[1], self._tensors_at)

    def fixed(self) -> Any:
        return self._module.state_dict()


def _saved(module: Any) -> Iterator[Any]:
    yield from (value for value in module._parameters.values() if value is not None)
    left_out = module._non_persistent_buffers_set
    yield from (value for key, value in module._buffers.items() if value is not None and key not in left_out)


def _picked(values: list[Any], indexes: list[int]) -> list[Any]:
    if len(indexes) == len(values):
        return values
    return list(itemgetter(*indexes)(values)) if len(indexes) > 1 else [values[index] for index in indexes]


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
        self._group_keys = self._look_at_groups()
        self._keys = list(map(id, self._state()))
        self._entry_keys = [list(entry) for entry in self._state().values()]
        self._structure = self._look(self._state())
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

    def _look_at_groups(self) -> list[tuple[Any, list[str]]]:
        return [(type(group), list(group)) for group in self._optimizer.param_groups]

    def _group_ids(self) -> list[list[int]]:
        return [list(map(id, group["params"])) for group in self._optimizer.param_groups]

    def _entry_names(self) -> list[str]:
        """The name of each entry of the state, in its order."""
        names = [name for group in self._names for name in group]
        by_id = dict(zip((key for group in self._groups for key in group), names))
        keys_of = (*self._entry_keys, *(keys for _, keys in self._group_keys))
        texts = [*names, *(key for keys in keys_of for key in keys)]
        if any(kind is not dict for kind, _ in self._group_keys):
            raise UnwatchableError
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
        if self._look_at_groups() != self._group_keys:
            return None
        if not self._names_are_fixed and self._handler.group_names() != self._names:
            return None
        if self._look(state) != self._structure:
            return None
        self._values = list(chain.from_iterable(map(dict.values, state.values())))
        return _picked(self._values, self._fixed_at)

    def _look(self, state: Any) -> tuple[list[Any], ...]:
        """Kinds, lengths and keys of all entries."""
        entries = state.values()
        return list(map(type, entries)), list(map(len, entries)), list(chain.from_iterable(entries))

    def fixed(self) -> Any:
        state: dict[str, Any] = {name: {} for name in self._by_entry}
        paths = [(name, key) for name, keys in zip(self._by_entry, self._entry_keys) for key in keys]
        fixed = set(self._fixed_at)
        for index, (name, key) in enumerate(paths):
            state[name][key] = self._values[index] if index in fixed else HOLE
        groups = [
            {**{key: HOLE for key in keys if key != "params"}, "params": names}
            for (_, keys), names in zip(self._group_keys, self._names)
        ]
        return {"state": state, "param_groups": groups}

    def holes(self) -> Iterator[tuple[list[Any], Any]]:
        for index, name, key in self._holes:
            yield ["state", name, key], self._values[index]
        for number, group in enumerate(self._optimizer.param_groups):
            for key, value in group.items():
                if key != "params":
                    yield ["param_groups", number, key], value

    def forget(self) -> None:
        self._values = []


def _is_tensor(torch: Any, value: Any) -> bool:
    return type(value) is torch.Tensor or type(value) is torch.nn.Parameter
