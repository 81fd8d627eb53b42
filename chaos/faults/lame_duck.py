"""`lame_duck`: the broker is asked to leave, as before maintenance, and a new one takes its address at the heal.

It tells its clients, takes no new connections, closes the present ones one by one after a grace of seconds, and ends.
With a single broker nobody has another place to go to. It is proved when a fresh connection is greeted no more while
the process of before still answers, or has ended already; the heal, when another process of the broker greets and every
node, the clients too, gets answers over a link that it lists.
"""

from collections.abc import Sequence
from typing import ClassVar

from chaos.experiment import FaultSpec
from chaos.faults.brokers import EXPLAINS, demand_broker, everybody_back, watch, worked
from chaos.faults.fault import Evidence, Lasting
from chaos.worlds.world import BrokerState, Life, World


class LameDuck(Lasting):
    """Lets the broker leave."""

    KIND: ClassVar[str] = "lame_duck"
    COLOUR: ClassVar[str] = "#ddcc77"

    def __init__(self, spec: FaultSpec, nodes: Sequence[str]) -> None:
        demand_broker(spec)
        self._nodes = nodes
        self._before: BrokerState | None = None
        self._leaving = False

    @property
    def explains(self) -> tuple[str, ...]:
        """See Fault."""
        return EXPLAINS

    async def inject(self, world: World) -> None:
        """See Fault."""
        self._before = await world.broker().inspect()
        self._leaving = True
        await world.broker().lame_duck()

    async def verify(self, world: World) -> Evidence:
        """See Fault."""
        return await watch(world, self._takes_nobody)

    async def verify_end(self, world: World) -> Evidence:
        """See Fault."""
        return await watch(world, self._takes_nobody, limit_s=0.0)

    async def heal(self, world: World) -> None:
        """See Fault."""
        if self._leaving:
            await world.broker().restart()
            self._leaving = False

    async def verify_healed(self, world: World, limit_s: float) -> Evidence:
        """See Fault."""
        return await everybody_back(world, self._nodes, self._before, limit_s, renewed=True)

    def _takes_nobody(self, now: BrokerState) -> tuple[bool, str]:
        before = self._before
        if before is None or not worked(before):
            return False, "the broker did not work before"
        if now.greets:
            return False, "a fresh connection is greeted"
        if now.life is Life.IS_GONE:
            return True, "its process has ended"
        if now.life is Life.RUNS and now.identity == before.identity:
            return True, "a fresh connection is not greeted, and the broker of before still answers"
        return False, "the broker does not answer although its process has not ended"
