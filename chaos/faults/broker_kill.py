"""`broker_kill`: the broker ends at once (SIGKILL) and is away until the heal, which starts it again at its address.

Every connection closes and new ones are refused, so nobody hears anybody. It is proved when the system knows the
process no more, it greets nobody, and no node gets an answer over its link; the heal, when another process of the
broker greets and every node, the clients too, gets answers over a link that it lists.
"""

from typing import ClassVar

from chaos.faults.brokers import HurtBroker, worked
from chaos.worlds.world import BrokerState, Life, World


class BrokerKill(HurtBroker):
    """Takes the broker away for as long as the fault lasts."""

    KIND: ClassVar[str] = "broker_kill"
    COLOUR: ClassVar[str] = "#ee3377"
    CUTS_OFF: ClassVar[bool] = True

    async def _strike(self, world: World) -> None:
        await world.broker().kill()

    def _judge(self, now: BrokerState) -> tuple[bool, str]:
        if not worked(self._before):
            return False, "the broker did not work before"
        if now.life is not Life.IS_GONE:
            return False, f"the system says that its process {now.life}"
        if now.greets or now.identity:
            return False, "somebody answers at its address"
        return True, "its process is gone and nobody answers at its address"
