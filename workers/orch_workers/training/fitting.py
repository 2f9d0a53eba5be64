"""Putting a stored state into the arguments of orch.training(): all of it or nothing, or what fits of another job's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable, NamedTuple, Sequence

from .errors import MismatchError
from .objects import GeneratorHandler, StateHandler, ValueHandler, compare_arguments

if TYPE_CHECKING:
    from .snapshot import Stored

WILDCARD = "*"


class StartRules(NamedTuple):
    """What of another job's checkpoint a new one begins with."""

    only: tuple[str, ...] = ()
    """Arguments; none: all of them, and the counters and random states."""
    maps: tuple[tuple[str, str], ...] = ()
    """(old, new) names of tensors, each with at most one ``*``, which stands for the same on both sides."""


class Report(NamedTuple):
    """Tensors and arguments by name, as ``argument.tensor``."""

    loaded: list[str]
    skipped: list[str]
    """In the checkpoint, and not loaded; with the reason where it is not that the script lacks it."""
    missing: list[str]
    """In the script, and not in the checkpoint: as the script made it."""
    reshaped: list[str]
    """In both, with shapes that differ: as the script made it."""

    @property
    def is_whole(self) -> bool:
        return not (self.skipped or self.missing or self.reshaped)


def put_all(
    handlers: Sequence[StateHandler],
    stored: Stored,
    label: str,
    *,
    note: Callable[[str, str], None],
    mismatch: Callable[[str], None],
) -> None:
    """Sets every object to what is stored. MismatchError, before anything is changed, where it does not fit."""
    kinds = stored.part("~orch", "kinds")
    live = {handler.name: handler.kind for handler in handlers}
    problems, warnings = compare_arguments(kinds, live)
    for warning in warnings:
        note("warning", warning)
    fitting = _in_order(handler for handler in handlers if kinds.get(handler.name) == handler.kind)
    borrowed = {handler.name: stored.borrowed(handler.name) for handler in fitting}
    for handler in fitting:
        problems += handler.problems(borrowed[handler.name])
    if problems:
        raise MismatchError(label, problems)
    for handler in fitting:
        handler.tell_mismatch = mismatch
        try:
            if not handler.restore_in_place(borrowed.pop(handler.name)):
                handler.restore(stored.part(handler.name))
        except MismatchError:
            raise
        except Exception as error:
            raise MismatchError(label, [f"{handler.name} does not take its state: {error}"]) from error


def _in_order(handlers: Any) -> list[StateHandler]:
    return sorted(handlers, key=lambda handler: handler.order)


def put_what_fits(handlers: Sequence[StateHandler], stored: Stored, rules: StartRules) -> Report:
    """Tensors by their names, mapped; of everything else, what fits as a whole.

    What refers to the model's parameters (an optimizer) is only taken when all of them were loaded under their own
    names: its state would be another model's. MismatchError where nothing at all could be loaded.
    """
    kinds = stored.part("~orch", "kinds")
    if kinds is None:
        raise MismatchError(
            "to start from", ["it was not saved by orch.training, so its arguments are not known"]
        )
    report = Report([], [], [], [])
    named = {handler.name for handler in handlers}
    for name in sorted(set(rules.only) - set(kinds)):
        raise MismatchError("to start from", [f"--only {name}: it has {', '.join(sorted(kinds))}"])
    wanted = [name for name in kinds if not rules.only or name in rules.only]
    report.skipped.extend(f"{name} (not given to orch.training)" for name in wanted if name not in named)
    for handler in _in_order(handler for handler in handlers if handler.name in wanted):
        if kinds[handler.name] != handler.kind:
            report.skipped.append(f"{handler.name} (a {kinds[handler.name]} there, a {handler.kind} here)")
        elif handler.by_name(None) is not None:
            _put_named(handler, stored, rules, report)
        else:
            _put_whole(handler, stored, rules, report)
    if not rules.only:
        fresh = (handler for handler in handlers if handler.name not in kinds)
        report.missing.extend(handler.name for handler in fresh if not isinstance(handler, ValueHandler))
    if not report.loaded:
        raise MismatchError(
            "to start from", ["nothing of it has a name and a shape of this script's", *_of(report)]
        )
    return report


def _of(report: Report) -> list[str]:
    return [f"not in the script: {name}" for name in report.skipped[:5]] + [
        f"not in the checkpoint: {name}" for name in report.missing[:5]
    ]


def _put_named(handler: StateHandler, stored: Stored, rules: StartRules, report: Report) -> None:
    live = handler.by_name(None) or {}
    taken: dict[str, Any] = {}
    there: dict[str, Any] = handler.by_name(stored.part(handler.name)) or {}
    for name, value in there.items():
        target = mapped(handler.name, name, rules.maps)
        shown = _shown(handler.name, name) + (f" -> {target}" if target != name else "")
        if target not in live:
            report.skipped.append(shown)
        elif tuple(value.shape) != tuple(live[target].shape):
            shapes = f"{list(value.shape)} there, {list(live[target].shape)} here"
            report.reshaped.append(f"{shown} ({shapes})")
        else:
            taken[target] = value
            report.loaded.append(shown)
    reshaped = {name for name in live if name not in taken and name in _targets(handler.name, there, rules)}
    report.missing.extend(
        _shown(handler.name, name) for name in live if name not in taken and name not in reshaped
    )
    if taken:
        handler.put_by_name(taken)


def _targets(argument: str, names: Any, rules: StartRules) -> set[str]:
    return {mapped(argument, name, rules.maps) for name in names}


def _put_whole(handler: StateHandler, stored: Stored, rules: StartRules, report: Report) -> None:
    if isinstance(handler, GeneratorHandler) and rules.maps:
        return  # the order of what is drawn is another model's
    if handler.follows_parameters and (not report.is_whole or rules.maps):
        report.skipped.append(f"{handler.name} (not all of the model was loaded under its own names)")
        return
    problems = handler.problems(stored.borrowed(handler.name))
    if problems:
        report.skipped.append(f"{handler.name} ({problems[0]})")
        return
    try:
        if not handler.restore_in_place(stored.borrowed(handler.name)):
            handler.restore(stored.part(handler.name))
    except Exception as error:
        report.skipped.append(f"{handler.name} ({type(error).__name__}: {error})")
        return
    report.loaded.append(handler.name)


def _shown(argument: str, name: str) -> str:
    return f"{argument}.{name}" if name else argument


def mapped(argument: str, name: str, maps: Sequence[tuple[str, str]]) -> str:
    """The name in the script, by the first of `maps` that fits; a pattern may begin with the argument's name."""
    for old, new in maps:
        for prefix in ("", f"{argument}."):
            found = _replaced(prefix + name, old, new)
            if found is not None:
                return found[len(prefix) :] if prefix and found.startswith(prefix) else found
    return name


def _replaced(name: str, old: str, new: str) -> str | None:
    if WILDCARD not in old:
        return new if name == old else None
    before, _, after = old.partition(WILDCARD)
    fits = name.startswith(before) and name.endswith(after) and len(name) >= len(before) + len(after)
    return new.replace(WILDCARD, name[len(before) : len(name) - len(after)], 1) if fits else None
