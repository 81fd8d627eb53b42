"""`broker_restart`: the broker ends and is started again at once, at its address.

Every connection breaks, what was on its way is lost, and everybody has to come back. It is proved when another process
of the broker greets in its place; healed, when every node, the clients too, gets answers over a link that it lists. The
fault is over with the restart.
"""

from typing import ClassVar

from chaos.faults.brokers import HurtBroker, worked
from chaos.worlds.world import BrokerState, Life, World


class BrokerRestart(HurtBroker):
    """Puts a new broker in the place of the old one."""

    KIND: ClassVar[str] = "broker_restart"
    COLOUR: ClassVar[str] = "#117733"

    async def sustain(self, world: World, until_s: float) -> None:
        """See Fault. There is nothing to keep up."""

    async def _strike(self, world: World) -> None:
        await world.broker().restart()
        # Nothing is left to heal.
        self._struck = False

    def _judge(self, now: BrokerState) -> tuple[bool, str]:
        before = self._before
        if before is None or not worked(before):
            return False, "the broker did not work before"
        if now.life is not Life.RUNS or not now.greets:
            return False, "the broker greets nobody"
        if now.identity in ("", before.identity) or now.pid == before.pid:
            return False, "it is still the broker of before"
        return True, "another process answers at the broker's address, and calls itself another server"
