"""The links of the simulated world: cuts and shapes of a node's line, and what both of its ends say."""

from chaos.worlds.world import ECHO_S, Cut, HandleError, LinkState, Shape
from cluster.simulation.cluster import SimulatedCluster
from cluster.simulation.line import Shaping
from cluster.simulation.network import Condition, Flow
from cluster.simulation.network import Link as NetworkLink

CONDITIONS: dict[Cut, Condition] = {
    Cut.REFUSE: Condition(refused=True),
    # Toxiproxy's `latency` holds the close behind the held bytes, so the broker hears of it only after the heal.
    Cut.STALL: Condition(Flow.HOLD, Flow.HOLD, close_passes=False),
    Cut.BLACK_HOLE: Condition(Flow.DROP, Flow.DROP, close_passes=False),
    Cut.UPSTREAM: Condition(upstream=Flow.DROP),
    Cut.DOWNSTREAM: Condition(downstream=Flow.DROP),
}
_TRAVEL_S = 0.001
_ECHO_POLL_S = 0.01


class SimulatedLink:
    """See World's Link. A fault's TTL has no meaning here: the world ends with its process."""

    def __init__(self, cluster: SimulatedCluster, node: str) -> None:
        self._cluster = cluster
        self._node = node

    @property
    def _link(self) -> NetworkLink:
        # Each incarnation of the node has its own, behind the same proxy.
        return self._cluster.nodes[self._node].link

    async def cut(self, cut: Cut, ttl_s: float) -> None:
        """See Link."""
        await self._cluster.kernel.sleep(_TRAVEL_S)
        if cut is Cut.RESET:
            self._link.set_condition(CONDITIONS[Cut.REFUSE])
            self._link.set_condition(Condition())
        else:
            self._link.set_condition(CONDITIONS[cut])

    async def shape(self, shape: Shape, ttl_s: float) -> None:
        """See Link."""
        await self._cluster.kernel.sleep(_TRAVEL_S)
        shaping = Shaping(
            latency_s=shape.latency_s,
            jitter_s=shape.jitter_s,
            bytes_per_s=shape.bytes_per_s,
            slice_bytes=shape.slice_bytes,
            slice_delay_s=shape.slice_delay_s,
        )
        if not shape.directions or shaping == Shaping():
            raise HandleError(f"{self._node}: the shape has no effect in any direction")
        up, down = (shaping if way in shape.directions else None for way in ("upstream", "downstream"))
        self._link.shape(up, down)

    async def echo(self, payload_bytes: int = 0) -> float | None:
        """See Link."""
        kernel = self._cluster.kernel
        if not self._cluster.running(self._node):
            raise HandleError(f"{self._node}: its process is gone or stands still, and says nothing of its link")
        began_s = kernel.now
        back_s: list[float] = []
        self._link.round_trip(payload_bytes, lambda: back_s.append(kernel.now))
        while not back_s and kernel.now < began_s + ECHO_S:
            await kernel.sleep(_ECHO_POLL_S)
        return back_s[0] - began_s if back_s else None

    async def restore(self) -> None:
        """See Link."""
        await self._cluster.kernel.sleep(_TRAVEL_S)
        if not self._link.condition.clear:
            self._link.set_condition(Condition())
        self._link.shape(None, None)

    async def inspect(self, cid: int | None = None) -> LinkState:
        """See Link."""
        await self._cluster.kernel.sleep(_TRAVEL_S)
        if not self._cluster.running(self._node):
            raise HandleError(f"{self._node}: its process is gone or stands still, and says nothing of its link")
        answered = self._link.echo()
        counters = self._link.counters(cid)
        return LinkState(
            connected=counters.connected,
            cid=counters.cid,
            answered=answered,
            node_in=counters.node_in,
            node_out=counters.node_out,
            broker_in=counters.broker_in,
            broker_out=counters.broker_out,
            broker_pending_bytes=None if counters.broker_in is None else counters.pending_bytes,
            broker_reason=counters.reason,
            undecoded=counters.undecoded,
        )
