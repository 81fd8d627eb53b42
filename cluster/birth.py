"""What a node is made from: given the same, and the same events at the same times, it decides the same again."""

from random import Random

import msgspec

from cluster.client import ClientNode
from cluster.controller.controller import ControllerNode
from cluster.policy import Policy
from cluster.worker.prewarm import ModelOffer
from cluster.worker.worker import WorkerNode

AnyNode = ControllerNode | WorkerNode | ClientNode


class Birth(msgspec.Struct, frozen=True):
    """role: controller, worker or client. policy: with a worker's memory limit in bytes, if it has one.

    models: those that a worker offers. random_seed: of a controller's stream of random numbers.
    """

    role: str
    name: str
    incarnation: int
    policy: Policy
    models: tuple[ModelOffer, ...] = ()
    random_seed: str = ""

    def node(self) -> AnyNode:
        """A new node. Raises ValueError for a role that there is not."""
        match self.role:
            case "controller":
                return ControllerNode(self.name, self.incarnation, self.policy, Random(self.random_seed))
            case "worker":
                return WorkerNode(self.name, self.incarnation, self.policy, self.models)
            case "client":
                return ClientNode(self.name, self.incarnation, self.policy)
        raise ValueError(f"role: expected controller, worker or client, got {self.role!r}")
