"""The handle of the simulated broker's process."""

from chaos.worlds.world import BrokerState, HandleError, Life
from cluster.simulation.cluster import SimulatedCluster

_TRAVEL_S = 0.001
_START_S = 0.05


class SimulatedBroker:
    """See chaos.worlds.world.Broker. A freeze ends by itself after its TTL, as it does in a live world."""

    def __init__(self, cluster: SimulatedCluster) -> None:
        self._kernel = cluster.kernel
        self._network = cluster.network
        self._broker = cluster.network.broker

    async def kill(self) -> None:
        """See Broker."""
        await self._kernel.sleep(_TRAVEL_S)
        self._refuse_gone("SIGKILL")
        self._broker.kill()

    async def restart(self) -> None:
        """See Broker."""
        self._broker.kill()
        await self._kernel.sleep(_START_S)
        self._broker.restart()

    async def freeze(self, ttl_s: float) -> None:
        """See Broker."""
        await self._kernel.sleep(_TRAVEL_S)
        self._refuse_gone("SIGSTOP")
        self._broker.freeze()
        freezes = self._broker.freezes
        self._kernel.at(self._kernel.now + ttl_s, lambda: self._expire(freezes))

    async def thaw(self) -> None:
        """See Broker."""
        await self._kernel.sleep(_TRAVEL_S)
        self._refuse_gone("SIGCONT")
        self._broker.thaw()

    async def lame_duck(self) -> None:
        """See Broker."""
        await self._kernel.sleep(_TRAVEL_S)
        self._refuse_gone("SIGUSR2")
        self._broker.lame_duck()

    async def inspect(self) -> BrokerState:
        """See Broker."""
        await self._kernel.sleep(_TRAVEL_S)
        broker = self._broker
        life = Life.IS_GONE if not broker.running else Life.STANDS_STILL if broker.frozen else Life.RUNS
        answers = life is Life.RUNS
        return BrokerState(
            life=life,
            pid=broker.life,
            identity=str(broker.life) if answers else "",
            greets=answers and broker.accepts,
            connections=len(self._network.listed) if answers else None,
            slow_consumers=0 if answers else None,
        )

    def _refuse_gone(self, signal: str) -> None:
        if not self._broker.running:
            raise HandleError(f"broker: its process is gone, {signal} reaches nobody")

    def _expire(self, freezes: int) -> None:
        if freezes == self._broker.freezes:
            self._broker.thaw()
