"""What orch wants of Ray, on one machine and on every node of a cluster: environment variables of `ray start`.

The one place for them. `orch server environment` prints what a cluster needs; the files in deploy/ carry the same
values, and a test keeps them together. Standard library only: the CLI reads it on every node that starts.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

DETECTION = {
    # The GCS asks every raylet for a sign of life. A killed one refuses each question, so that it is seen dead after
    # threshold times period; one that is frozen or cut off lets each run into its timeout. Two and a half seconds,
    # four times in a row, is what a machine may be busy (swapping, say) without being given up for it.
    # Ray's own values: 5000, 3000, 10000 ms, 5.
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "300",
    "RAY_health_check_timeout_ms": "2500",
    "RAY_health_check_failure_threshold": "4",
    # A connection through which nothing comes back is closed after time and timeout together: the calls that hang in
    # it fail then. Ray's own values: 300 000 and 120 000 ms.
    "RAY_grpc_client_keepalive_time_ms": "5000",
    "RAY_grpc_client_keepalive_timeout_ms": "5000",
    # Ray ends every process that has not reached its GCS for so long, by default 60 s, agents among them and without a
    # word. A GCS that comes back sooner finds everybody there, and a lease (orch.model.lease) is over before that.
    "RAY_gcs_rpc_server_reconnect_timeout_s": "300",
}
"""How soon Ray sees that a node is gone; for every node, the head first of all. Measured: docs/detection.md."""

MANNERS = {
    # Without a token whoever reaches a port of Ray can run code there.
    "RAY_AUTH_MODE": "token",
    # Nothing phones home.
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    # Ray would run its workers, and so the training, at niceness 15.
    "RAY_worker_niceness": "0",
    # A working directory full of the user's modules must not shadow the standard library in our workers.
    "PYTHONSAFEPATH": "1",
}

CLUSTER = {
    # SIGTERM to `ray start --block` drains its node, which is a preemption notice to the agents there, and ends it
    # after so long. Kubernetes and Slurm kill 30 s after their SIGTERM; Ray's own value is those 30 s.
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "25",
}


def cluster_environment(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """For `ray start` on every node of a cluster, and for whatever connects to it. What `environ` (else this process'
    environment) says of detection and draining goes before: those are the operator's to weigh.
    """
    given = os.environ if environ is None else environ
    own = {name: given.get(name, value) for name, value in {**DETECTION, **CLUSTER}.items()}
    return {**own, **MANNERS, "RAY_AUTH_MODE": given.get("RAY_AUTH_MODE", MANNERS["RAY_AUTH_MODE"])}
