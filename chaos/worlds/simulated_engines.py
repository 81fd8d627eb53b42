"""Engines and clocks of a simulated world's nodes."""

from collections.abc import Awaitable, Callable

from chaos.worlds.world import HandleError
from cluster.engine.impairment import Impairment
from cluster.engine.meter import EngineState
from cluster.node import MemoryLimit
from cluster.protocol import Evict, Prewarm
from cluster.simulation.cluster import SimulatedCluster
from cluster.simulation.shell import SimulatedNode
from cluster.worker.worker import WorkerNode

_TRAVEL_S = 0.001
_STATE_POLL_S = 0.005


class SimulatedEngine:
    """See chaos.worlds.world.Engine."""

    def __init__(self, cluster: SimulatedCluster, node: str) -> None:
        self._cluster = cluster
        self._node = node
        self._limits = 0

    async def impair(self, impairment: Impairment, ttl_s: float) -> None:
        """See Engine."""
        await self._cluster.kernel.sleep(_TRAVEL_S)
        self._running().impair(impairment, ttl_s)

    async def restore(self) -> None:
        """See Engine."""
        await self._cluster.kernel.sleep(_TRAVEL_S)
        engine = self._running().engine
        assert engine is not None
        engine.restore()

    async def limit_memory(self, bytes_max: int | None, ttl_s: float) -> None:
        """See Engine."""
        kernel = self._cluster.kernel
        await kernel.sleep(_TRAVEL_S)
        node = self._running()
        self._limits += 1
        limits = self._limits
        if bytes_max is not None:
            kernel.at(kernel.now + ttl_s, lambda: self._unlimit(node, limits))
            node.feed(MemoryLimit(bytes_max))
        else:
            node.feed(MemoryLimit(self._cluster.memory_bytes_max))

    async def evict(self, model: str, limit_s: float) -> bool:
        """See Engine."""
        return await self._until(Evict(model), "cold", limit_s)

    async def prewarm(self, model: str, limit_s: float) -> bool:
        """See Engine."""
        return await self._until(Prewarm(model), "warm", limit_s)

    async def _until(self, message: Evict | Prewarm, state: str, limit_s: float) -> bool:
        kernel = self._cluster.kernel
        await kernel.sleep(_TRAVEL_S)
        node = self._running()
        assert isinstance(node.node, WorkerNode)
        node.hear(message)
        end_s = kernel.now + limit_s
        while node.node.models().get(message.model) != state:
            if kernel.now >= end_s:
                return False
            await kernel.sleep(_STATE_POLL_S)
        return True

    async def inspect(self) -> EngineState:
        """See Engine."""
        await self._cluster.kernel.sleep(_TRAVEL_S)
        node = self._running()
        assert node.engine is not None
        assert isinstance(node.node, WorkerNode)
        return node.engine.state(node.node, node.now())

    def _running(self) -> SimulatedNode:
        if not self._cluster.running(self._node):
            raise HandleError(f"{self._node}: its process is gone or stands still, and its engine with it")
        return self._cluster.nodes[self._node]

    def _unlimit(self, node: SimulatedNode, limits: int) -> None:
        if limits == self._limits and not node.ended and not node.frozen:
            node.feed(MemoryLimit(self._cluster.memory_bytes_max))


class SimulatedClock:
    """See chaos.worlds.world.NodeClock."""

    def __init__(self, cluster: SimulatedCluster, node: str, restart: Callable[[], Awaitable[None]]) -> None:
        self._cluster = cluster
        self._node = node
        self._restart = restart

    async def set_ahead(self, ahead_s: float) -> None:
        """See NodeClock."""
        self._cluster.clock_ahead_s[self._node] = ahead_s
        await self._restart()

    async def ahead(self) -> float:
        """See NodeClock."""
        await self._cluster.kernel.sleep(_TRAVEL_S)
        if not self._cluster.running(self._node):
            raise HandleError(f"{self._node}: its process is gone or stands still, and tells no time")
        return self._cluster.nodes[self._node].now() - self._cluster.kernel.now
