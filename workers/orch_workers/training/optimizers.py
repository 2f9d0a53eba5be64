"""Optimizer state by parameter name.

`Optimizer.state_dict()` numbers the parameters in the order of its groups; a script that builds its groups in
another order would then load the wrong moments without a word. Here the numbers are replaced by names, found
by walking `param_groups`: ``<argument>.<parameter name>`` for what a module given to orch.training() holds,
``group<i>.param<j>`` for the rest. Not DCP's `get_optimizer_state_dict`: it performs a step before the first
one and fails on shared parameters and LBFGS (tried).
"""

from __future__ import annotations

from typing import Any

from .objects import StateHandler
from .sharded import is_sharded, like, places_of

_LISTED_MAX = 5


class OptimizerHandler(StateHandler):
    kind = "optimizer"
    follows_parameters = True
    order = 1

    def __init__(self, name: str, target: Any, modules: dict[str, Any], loose: dict[str, Any]) -> None:
        super().__init__(name, target)
        self.modules = modules
        self._loose = loose

    def places(self) -> list[dict[str, Any]]:
        named = zip(self.group_names(), self.target.param_groups)
        held = {name: value for names, group in named for name, value in zip(names, group["params"])}
        return places_of(held, f"{self.name}.state")

    def capture(self) -> dict[str, Any]:
        found: dict[str, Any] = dict(self.target.state_dict())
        numbers: dict[int, str] = {}
        groups = []
        for names, group in zip(self.group_names(), found["param_groups"]):
            numbers.update(zip(group["params"], names))
            groups.append({**group, "params": names})
        found["state"] = {numbers.get(key, key): value for key, value in found["state"].items()}
        found["param_groups"] = groups
        return found

    def problems(self, stored: Any) -> list[str]:
        live = self.group_names()
        groups = stored["param_groups"]
        if len(groups) != len(live):
            there, here = f"{len(groups)} parameter groups", len(live)
            return [f"{self.name} has {there} in the checkpoint, {here} in this script"]
        found = []
        for index, (names, group) in enumerate(zip(live, groups)):
            if sorted(names) == sorted(group["params"]):
                continue
            gone = [name for name in group["params"] if name not in names]
            new = [name for name in names if name not in group["params"]]
            found.append(
                f"group {index} of {self.name} is over other parameters: "
                f"only in the checkpoint: {_listed(gone)}; only in this script: {_listed(new)}"
            )
        return found

    def restore(self, stored: Any) -> None:
        packed = self.target.state_dict()["param_groups"]
        names = self.group_names()
        numbers: dict[Any, Any] = {}
        groups = []
        for live, wanted, group in zip(packed, names, stored["param_groups"]):
            numbers.update(zip(wanted, live["params"]))
            merged = {**group, "params": live["params"]}
            if "param_names" in live:
                merged["param_names"] = live["param_names"]
            groups.append(merged)
        kept = self._divided(stored["state"])
        state = {numbers.get(key, key): value for key, value in kept.items()}
        self.target.load_state_dict({**stored, "state": state, "param_groups": groups})
        self._keep_types(kept)

    def _divided(self, state: dict[Any, Any]) -> dict[Any, Any]:
        """Of parameters that are divided over the ranks the state is, too: pieces as what the optimizer expects."""
        by_name = {
            name: parameter
            for names, group in zip(self.group_names(), self.target.param_groups)
            for name, parameter in zip(names, group["params"])
            if is_sharded(parameter)
        }

        def fit(parameter: Any, value: Any) -> Any:
            return like(parameter, value) if getattr(value, "orch_sharded", False) else value

        return {
            name: {key: fit(by_name[name], value) for key, value in entry.items()}
            if name in by_name and isinstance(entry, dict)
            else entry
            for name, entry in state.items()
        }

    def _keep_types(self, stored: dict[Any, Any]) -> None:
        """`load_state_dict` casts state to its parameter's dtype and device; what was saved otherwise stays
        so.
        """
        for names, group in zip(self.group_names(), self.target.param_groups):
            for name, parameter in zip(names, group["params"]):
                live = self.target.state.get(parameter)
                if not isinstance(live, dict):
                    continue
                for key, value in stored.get(name, {}).items():
                    loaded: Any = live.get(key)
                    if not hasattr(value, "dtype") or not hasattr(loaded, "device") or loaded is value:
                        continue
                    was_on_cpu = getattr(value, "orch_device", "cpu") == "cpu"
                    if was_on_cpu and loaded.device.type != "cpu":
                        live[key] = value
                    elif loaded.dtype != value.dtype:
                        live[key] = value.to(loaded.device)

    def group_names(self) -> list[list[str]]:
        """The names of each group's parameters."""
        by_identity: dict[int, str] = {}
        for argument, module in self.modules.items():
            for name, parameter in module.named_parameters(remove_duplicate=False):
                by_identity.setdefault(id(parameter), f"{argument}.{name}")
        for argument, parameter in self._loose.items():
            by_identity.setdefault(id(parameter), argument)
        return [
            [
                by_identity.get(id(parameter), f"group{i}.param{j}")
                for j, parameter in enumerate(group["params"])
            ]
            for i, group in enumerate(self.target.param_groups)
        ]


def _listed(names: list[str]) -> str:
    if not names:
        return "none"
    more = len(names) - _LISTED_MAX
    return ", ".join(names[:_LISTED_MAX]) + (f" and {more} more" if more > 0 else "")
