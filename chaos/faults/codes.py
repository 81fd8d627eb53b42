"""Which error codes callers may see because of a fault: what its kind does, and what follows from whom it hits."""

from collections.abc import Sequence

from chaos.faults.roles import is_worker
from cluster.errors import Code

LATE = (Code.DEADLINE_EXCEEDED, Code.FIRST_TOKEN_TIMEOUT, Code.STREAM_STALLED)
"""Of nodes that answer late or not at all, while all others do in time.

A retry is not owed to a request that had used up its attempts or its deadline, whatever the last one met.
"""

LOST = (*LATE, Code.STREAM_BROKEN, Code.WORKER_LOST, Code.WORKER_UNREACHABLE)
"""Of nodes that are away, or as good as that."""


def explained(targets: Sequence[str], nodes: Sequence[str], *codes: Code) -> tuple[str, ...]:
    """The codes of a kind, with those that come of its targets. nodes: all of the cluster."""
    found = list(codes)
    if not all(is_worker(target) for target in targets):
        found.append(Code.CONTROLLER_UNREACHABLE)
    if all(node in targets for node in nodes if is_worker(node)):
        found.append(Code.NO_WORKERS_AVAILABLE)
    return tuple(dict.fromkeys(found))
