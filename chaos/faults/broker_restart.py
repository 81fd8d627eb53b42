"""`broker_restart`: the broker ends and is started again at once, at its address.

Every connection breaks, what was on its way is lost, and everybody has to come back. It is proved when another process
of the broker greets in its place; healed, when every node, the clients too, gets answers over a link that it lists. The
fault is over with the restart.
"""

from collections.abc import Sequence
from typing import ClassVar

from chaos.experiment import FaultSpec
from chaos.faults.brokers import EXPLAINS, demand_broker, everybody_back, watch, worked
from chaos.faults.fault import Evidence
from chaos.worlds.world import BrokerState, Life, World


class BrokerRestart:
    """Puts a new broker in the place of the old one."""

    KIND: ClassVar[str] = "broker_restart"
    COLOUR: ClassVar[str] = "#117733"

    def __init__(self, spec: FaultSpec, nodes: Sequence[str]) -> None:
        demand_broker(spec)
        self._nodes = nodes
        self._before: BrokerState | None = None
        self._under_way = False

    @property
    def explains(self) -> tuple[str, ...]:
        """See Fault."""
        return EXPLAINS

    async def inject(self, world: World) -> None:
        """See Fault."""
        self._before = await world.broker().inspect()
        self._under_way = True
        await world.broker().restart()
        self._under_way = False

    async def verify(self, world: World) -> Evidence:
        """See Fault."""
        return await watch(world, self._is_another)

    async def sustain(self, world: World, until_s: float) -> None:
        """See Fault. There is nothing to keep up."""

    async def verify_end(self, world: World) -> Evidence:
        """See Fault."""
        return await watch(world, self._is_another, limit_s=0.0)

    async def heal(self, world: World) -> None:
        """See Fault."""
        if self._under_way:
            await world.broker().restart()
            self._under_way = False

    async def verify_healed(self, world: World, limit_s: float) -> Evidence:
        """See Fault."""
        return await everybody_back(world, self._nodes, self._before, limit_s, renewed=True)

    def _is_another(self, now: BrokerState) -> tuple[bool, str]:
        before = self._before
        if before is None or not worked(before):
            return False, "the broker did not work before"
        if now.life is not Life.RUNS or not now.greets:
            return False, "the broker greets nobody"
        if now.identity in ("", before.identity) or now.pid == before.pid:
            return False, "it is still the broker of before"
        return True, "another process answers at the broker's address, and calls itself another server"
