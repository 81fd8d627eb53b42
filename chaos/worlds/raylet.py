"""`python -m chaos.worlds.raylet ADDRESS RESOURCE AMOUNT`: one more Ray node on this machine, until its end.

It does what `ray start --block` does for a node that joins, but for two things. `ray start` takes a loopback address
for one of the network's, where nobody listens; and it writes down which cluster later programs of this machine should
join unasked. Ray's own tests start their nodes in this way.
"""

import signal
import sys
import time

from ray._private.node import Node
from ray._private.parameter import RayParams

_POLL_S = 0.5
_STORE_BYTES = 80_000_000
"""Ray takes no smaller object store; nothing of ours goes through it."""


def main(address: str, resource: str, amount: float) -> int:
    """Join the cluster whose GCS is at `address`, and offer so much of `resource`. Returns 1 when Ray's node ends."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    parameters = RayParams(
        gcs_address=address,
        node_ip_address=address.rpartition(":")[0],
        num_cpus=1,
        resources={resource: amount},
        object_store_memory=_STORE_BYTES,
        include_log_monitor=False,
        # Any free port, so that several nodes on a machine cannot claim the same.
        node_manager_port=0,
        dashboard_agent_listen_port=None,
    )
    node = Node(parameters, head=False, shutdown_at_exit=True, spawn_reaper=True)
    while not node.dead_processes():
        time.sleep(_POLL_S)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], float(sys.argv[3])))
