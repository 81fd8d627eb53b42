"""`broker_kill`: the broker ends at once (SIGKILL) and is away until the heal, which starts it again at its address.

Every connection closes and new ones are refused, so nobody hears anybody. It is proved when the system knows the
process no more, it greets nobody, and no node gets an answer over its link; the heal, when another process of the
broker greets and every node, the clients too, gets answers over a link that it lists.
"""

from collections.abc import Sequence
from typing import ClassVar

from chaos.experiment import FaultSpec
from chaos.faults.brokers import EXPLAINS, demand_broker, everybody_back, hosted, watch, worked
from chaos.faults.fault import Evidence, Lasting
from chaos.worlds.world import BrokerState, Life, World


class BrokerKill(Lasting):
    """Takes the broker away for as long as the fault lasts."""

    KIND: ClassVar[str] = "broker_kill"
    COLOUR: ClassVar[str] = "#ee3377"

    def __init__(self, spec: FaultSpec, nodes: Sequence[str]) -> None:
        demand_broker(spec)
        self._nodes = nodes
        self._before: BrokerState | None = None
        self._down = False

    @property
    def explains(self) -> tuple[str, ...]:
        """See Fault."""
        return EXPLAINS

    async def inject(self, world: World) -> None:
        """See Fault."""
        self._before = await world.broker().inspect()
        self._down = True
        await world.broker().kill()

    async def verify(self, world: World) -> Evidence:
        """See Fault."""
        return await watch(world, self._is_gone, hosted(self._nodes))

    async def verify_end(self, world: World) -> Evidence:
        """See Fault."""
        return await watch(world, self._is_gone, hosted(self._nodes), limit_s=0.0)

    async def heal(self, world: World) -> None:
        """See Fault."""
        if self._down:
            await world.broker().restart()
            self._down = False

    async def verify_healed(self, world: World, limit_s: float) -> Evidence:
        """See Fault."""
        return await everybody_back(world, self._nodes, self._before, limit_s, renewed=True)

    def _is_gone(self, now: BrokerState) -> tuple[bool, str]:
        if not worked(self._before):
            return False, "the broker did not work before"
        if now.life is not Life.IS_GONE:
            return False, f"the system says that its process {now.life}"
        if now.greets or now.identity:
            return False, "somebody answers at its address"
        return True, "its process is gone and nobody answers at its address"
