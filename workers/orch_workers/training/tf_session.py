"""TensorFlow 1 style (tf.compat.v1): graphs, sessions and their loops, as `orch.tensorflow.SessionHook` and `Saver`.

A graph's state is its global variables; they are read by one `session.run` and set through placeholders.
"""

from __future__ import annotations

import os
import re
from typing import Any, Sequence

from .errors import TrainingError
from .objects import StateHandler
from .protocol import ENV_SOCKET
from .session import Options, open_run
from .tf_data import op_is_stateful

ARGUMENT = "graph"
KEEP = 5
"""As many as tf.train.Saver keeps."""
LOCAL_EVERY_S = 600.0
_SESSION_STATE = re.compile(r"Random|Multinomial|TruncatedNormal|Iterator|Queue|Reader|PyFunc")
"""Operations whose state is in the session: what they draw, or read, next."""


class GraphState:
    """The variables of a graph. Made before the graph is finalized; `session` is set when there is one."""

    def __init__(self, tensorflow: Any, variables: Sequence[Any] | None = None) -> None:
        v1 = tensorflow.compat.v1
        found = list(v1.global_variables() if variables is None else variables)
        self._variables = {variable.op.name: variable for variable in found}
        self._places = {
            name: v1.placeholder(variable.dtype.base_dtype, name=f"orch/{index}")
            for index, (name, variable) in enumerate(self._variables.items())
        }
        self._assigns = [
            v1.assign(variable, self._places[name], validate_shape=False).op
            for name, variable in self._variables.items()
        ]
        self.graph = v1.get_default_graph()
        self.session: Any = None

    def read(self) -> dict[str, Any]:
        found: dict[str, Any] = self.session.run(self._variables)
        return found

    def write(self, values: dict[str, Any]) -> None:
        self.session.run(self._assigns, {place: values[name] for name, place in self._places.items()})

    def misfits(self, stored: dict[str, Any]) -> list[str]:
        found = [
            f"{ARGUMENT}.{name} is in the checkpoint but not in this script"
            for name in stored
            if name not in self._variables
        ]
        for name, variable in self._variables.items():
            path = f"{ARGUMENT}.{name}"
            if name not in stored:
                found.append(f"{path} is in this script but not in the checkpoint")
            elif not variable.shape.is_compatible_with(stored[name].shape):
                found.append(
                    f"{path} has shape {list(stored[name].shape)} in the checkpoint, {variable.shape} in this script"
                )
        return found

    def session_ops(self) -> set[str]:
        """What draws from a state in the session, other than to give variables their first values."""
        initial = _before(variable.initializer for variable in self._variables.values())
        return {
            operation.type
            for operation in self.graph.get_operations()
            if _SESSION_STATE.search(operation.type)
            and op_is_stateful(operation.type)
            and not _after(operation) <= initial
        }


def _before(operations: Any) -> set[Any]:
    """These operations and all that they are computed from."""
    found: set[Any] = set()
    waiting = list(operations)
    while waiting:
        operation = waiting.pop()
        if operation not in found:
            found.add(operation)
            waiting += [tensor.op for tensor in operation.inputs]
    return found


def _after(operation: Any) -> set[Any]:
    """This operation and all that is computed from it."""
    found: set[Any] = set()
    waiting = [operation]
    while waiting:
        one = waiting.pop()
        if one not in found:
            found.add(one)
            waiting += [consumer for tensor in one.outputs for consumer in tensor.consumers()]
    return found


class GraphHandler(StateHandler):
    kind = "tf.Graph"
    order = 0

    def __init__(self, state: GraphState) -> None:
        super().__init__(ARGUMENT, state)

    def capture(self) -> Any:
        return self.target.read()

    def problems(self, stored: Any) -> list[str]:
        found: list[str] = self.target.misfits(stored)
        return found

    def restore(self, stored: Any) -> None:
        self.target.write(stored)

    def why_inexact(self) -> list[str]:
        ops = self.target.session_ops()
        if not ops:
            return []
        named = ", ".join(sorted(ops))
        hidden = f"the graph calls {named}, whose state is in the session and cannot be read"
        return [f"{hidden}: a restart draws other numbers, or data, than an undisturbed run"]


def _begin(state: GraphState, objects: dict[str, Any]) -> Any:
    options = Options(skip="replay", restore=True, seed=None, local_folder=None, local_every_s=LOCAL_EVERY_S)
    return open_run({**objects, ARGUMENT: GraphHandler(state)}, options)


def hook_class(tensorflow: Any) -> Any:
    """`orch.tensorflow.SessionHook`."""

    class SessionHook(tensorflow.compat.v1.train.SessionRunHook):  # type: ignore[misc]
        """For MonitoredTrainingSession(hooks=[…]) and Estimator.train(hooks=[…]): restores when the session is there,
        counts a step whenever the global step has risen, and saves when due.

        metrics: name → tensor, told with each step. objects: what else is part of the state.
        """

        def __init__(self, metrics: dict[str, Any] | None = None, **objects: Any) -> None:
            if ARGUMENT in objects:
                raise TypeError("orch.tensorflow.SessionHook() finds the graph by itself: leave it out")
            self._metrics = dict(metrics or {})
            self._objects = objects
            self._state: Any = None
            self._global_step: Any = None
            self._seen = 0
            self.run: Any = None

        def begin(self) -> None:
            self._global_step = tensorflow.compat.v1.train.get_global_step()
            if self._global_step is None:
                raise TrainingError(
                    "orch.tensorflow.SessionHook needs a global step: "
                    "tf.compat.v1.train.get_or_create_global_step(), given to minimize(…, global_step=…)"
                )
            self._state = GraphState(tensorflow)

        def after_create_session(self, session: Any, coord: Any) -> None:
            if self.run is not None:
                raise TrainingError(
                    "the session was lost and made anew, without what it had learned: a restart of this process goes "
                    "on from the newest snapshot"
                )
            self._state.session = session
            self.run = _begin(self._state, self._objects)
            self._seen = int(session.run(self._global_step))

        def before_run(self, run_context: Any) -> Any:
            fetches = {"metrics": self._metrics, "step": self._global_step}
            return tensorflow.compat.v1.train.SessionRunArgs(fetches)

        def after_run(self, run_context: Any, run_values: Any) -> None:
            session = self._state.session = run_context.session
            step = int(session.run(self._global_step))
            if step > self._seen:
                self._seen = step
                self.run.step(**run_values.results["metrics"])

        def end(self, session: Any) -> None:
            self._state.session = session
            self.run.finish()

    return SessionHook


class _UnderOrch:
    """A Saver's checkpoints as those of a job."""

    def __init__(self, state: GraphState, objects: dict[str, Any]) -> None:
        self._run = _begin(state, objects)

    def newest(self) -> int | None:
        step: int | None = self._run.restored_step
        return step

    def restore(self, step: int) -> None:
        if step != self._run.restored_step:
            raise TrainingError(
                f"under orch a training goes on from its newest state (step {self._run.restored_step}): to begin from "
                f"step {step}, stop the job and go on from that step (`orch checkpoints` lists them)"
            )

    def save(self, step: int) -> None:
        self._run.save_at(step)


def saver_class(tensorflow: Any) -> Any:
    """`orch.tensorflow.Saver`."""

    class Saver:
        """In the place of tf.compat.v1.train.Saver, in loops that save every so many steps.

        Make it when the graph is complete. Under orch the checkpoints are the job's (`checkpoint.keep` says how many),
        by hand they lie in a folder, `max_to_keep` of them.
        """

        def __init__(
            self, var_list: Any = None, *, max_to_keep: int = KEEP, folder: str = ".orch/saver"
        ) -> None:
            self._state = GraphState(tensorflow, var_list)
            self._max_to_keep, self._folder = max_to_keep, folder
            self._behind: Any = None

        def restore(self, session: Any, step: int | None = None) -> int | None:
            """Sets the variables to those of the newest checkpoint, or of `step`; returns its step, None when there is
            none.
            """
            behind = self._open(session)
            wanted = behind.newest() if step is None else step
            if wanted is not None:
                behind.restore(wanted)
            return wanted

        def save(self, session: Any, global_step: Any) -> int:
            """Saves the variables as those of `global_step`, a number, a variable or a tensor; returns that number."""
            behind = self._open(session)
            plain = isinstance(global_step, int) or not hasattr(global_step, "graph")
            step = int(global_step if plain else session.run(global_step))
            behind.save(step)
            return step

        def _open(self, session: Any) -> Any:
            self._state.session = session
            if self._behind is None:
                under = os.environ.get(ENV_SOCKET)
                self._behind = (
                    _UnderOrch(self._state, {})
                    if under
                    else _ByHand(self._state, self._folder, self._max_to_keep)
                )
            return self._behind

    return Saver


class _ByHand:
    """A Saver's checkpoints in a folder, through orch's own engine."""

    def __init__(self, state: GraphState, folder: str, keep: int) -> None:
        import importlib

        engine = importlib.import_module("orch_workers.checkpoint")
        self._state = state
        self._engine = engine.Checkpointer(folder, keep=keep)

    def newest(self) -> int | None:
        steps = [point.step for point in self._engine.list()]
        return max(steps) if steps else None

    def restore(self, step: int) -> None:
        found = self._engine.restore(step=step)
        self._state.write(found.values[ARGUMENT])

    def save(self, step: int) -> None:
        self._engine.save(step, {ARGUMENT: self._state.read()})
