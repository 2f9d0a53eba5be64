"""`ray start` for a second node on loopback, which Ray's command line refuses where Ray is kept on loopback (raylocal).

Only the command's own process is persuaded; what it starts has the variable in its environment, as the head has.
"""

from __future__ import annotations

from ray._private import ray_constants, services
from ray.scripts import scripts

if __name__ == "__main__":
    ray_constants.ENABLE_RAY_CLUSTER = True
    services.get_node_ip_address = lambda address=None: "127.0.0.1"
    scripts.main()
