"""`broker_freeze`: the broker stands still (SIGSTOP) and goes on at the heal (SIGCONT).

For everybody it looks as if all cables were pulled: nothing is refused, nothing arrives, and what was sent meanwhile is
handled late. It is proved when the system calls the process stopped, it greets nobody, and no node gets an answer over
its link; the heal, when the same process greets and every node, the clients too, gets answers over a link that it
lists.
"""

from collections.abc import Sequence
from typing import ClassVar

from chaos.experiment import FaultSpec
from chaos.faults.brokers import EXPLAINS, demand_broker, everybody_back, hosted, watch, worked
from chaos.faults.fault import Evidence, Lasting
from chaos.worlds.world import BrokerState, Life, World


class BrokerFreeze(Lasting):
    """Freezes the broker."""

    KIND: ClassVar[str] = "broker_freeze"
    COLOUR: ClassVar[str] = "#332288"

    def __init__(self, spec: FaultSpec, nodes: Sequence[str]) -> None:
        demand_broker(spec)
        self._nodes = nodes
        self._ttl_s = spec.ttl_s
        self._before: BrokerState | None = None
        self._frozen = False

    @property
    def explains(self) -> tuple[str, ...]:
        """See Fault."""
        return EXPLAINS

    async def inject(self, world: World) -> None:
        """See Fault."""
        self._before = await world.broker().inspect()
        self._frozen = True
        await world.broker().freeze(self._ttl_s)

    async def verify(self, world: World) -> Evidence:
        """See Fault."""
        return await watch(world, self._stands_still, hosted(self._nodes))

    async def verify_end(self, world: World) -> Evidence:
        """See Fault."""
        return await watch(world, self._stands_still, hosted(self._nodes), limit_s=0.0)

    async def heal(self, world: World) -> None:
        """See Fault."""
        if self._frozen:
            await world.broker().thaw()

    async def verify_healed(self, world: World, limit_s: float) -> Evidence:
        """See Fault."""
        return await everybody_back(world, self._nodes, self._before, limit_s, renewed=False)

    def _stands_still(self, now: BrokerState) -> tuple[bool, str]:
        if not worked(self._before):
            return False, "the broker did not work before"
        if now.life is not Life.STANDS_STILL:
            return False, f"the system says that its process {now.life}"
        if now.greets or now.identity:
            return False, "the broker answers"
        return True, "its process is stopped and answers nobody"
