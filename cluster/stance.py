"""How a node stands, in the words in which an experiment can wait for it."""

from cluster.controller.controller import ControllerNode
from cluster.node import Node
from cluster.worker.worker import WorkerNode


def stance(node: Node) -> dict[str, float]:
    """Counts by name, see chaos.timing.STATES; nothing for a client."""
    gauges = node.gauges()
    match node:
        case WorkerNode():
            made = node.streams()
            return {
                "stream_token": max(made, default=0),
                "prefill": made.count(0),
                "loading": list(node.models().values()).count("loading"),
                "queue": gauges.queue_depth,
            }
        case ControllerNode():
            breakers = [state for _, state in node.workers().values()]
            return {
                "queue": gauges.queue_depth,
                "half_open": breakers.count("half_open"),
                "handover": gauges.session_moves,
            }
    return {}
