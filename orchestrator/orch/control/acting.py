"""Whatever the controller changes in the cluster goes through here: only the holder of the store's lease acts.

The store is asked right before every act, so that a controller that slept (SIGSTOP, a frozen machine) while another
one took over does nothing of what it still had in hand. Looking needs no lease.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orch.control.cluster import CALL_LIMIT_S, Cluster
from orch.control.store import Store


class Acts:
    """`Cluster`'s calls that change something. StoreTakenError instead, where another controller acts by now."""

    def __init__(self, store: Store, cluster: Cluster) -> None:
        self._store, self._cluster = store, cluster

    def request_gang(
        self,
        job: str,
        attempt: int,
        bundle: Mapping[str, float],
        workers: int,
        avoid: Sequence[str] = (),
        placement: Mapping[str, Any] | None = None,
    ) -> None:
        self._store.assert_held()
        self._cluster.request_gang(job, attempt, bundle, workers, avoid=avoid, placement=placement)

    def remove_gang(self, job: str, attempt: int) -> None:
        self._store.assert_held()
        self._cluster.remove_gang(job, attempt)

    def start_agent(
        self, config: Mapping[str, Any], *, gang_attempt: int, bundle: Mapping[str, float]
    ) -> Any:
        self._store.assert_held()
        return self._cluster.start_agent(config, gang_attempt=gang_attempt, bundle=bundle)

    def kill_agent(self, job: str, attempt: int, rank: int) -> None:
        self._store.assert_held()
        self._cluster.kill_agent(job, attempt, rank)

    def call(self, handle: Any, method: str, *arguments: Any, limit_s: float = CALL_LIMIT_S) -> Any:
        """Calls an agent and waits for its answer."""
        self._store.assert_held()
        return self._cluster.call(handle, method, *arguments, limit_s=limit_s)

    def tell(self, handle: Any, method: str, *arguments: Any) -> None:
        """Calls an agent without waiting."""
        self._store.assert_held()
        getattr(handle, method).remote(*arguments)
