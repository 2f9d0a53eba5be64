"""How long an agent may go on without its cluster. What is decided with it: `orch_policies.lease`."""

LEASE_S = 120.0
LEASE_MIN_S, LEASE_MAX_S = 2.0, 240.0
"""The longest is below the time after which Ray itself ends a process that cannot reach its cluster (300 s on nodes
that orch starts): whoever is ended by Ray writes nothing into storage first."""
