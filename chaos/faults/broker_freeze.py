"""`broker_freeze`: the broker stands still (SIGSTOP) and goes on at the heal (SIGCONT).

For everybody it looks as if all cables were pulled: nothing is refused, nothing arrives, and what was sent meanwhile is
handled late. It is proved when the system calls the process stopped, it greets nobody, and no node gets an answer over
its link; the heal, when the same process greets and every node, the clients too, gets answers over a link that it
lists.
"""

from typing import ClassVar

from chaos.faults.brokers import HurtBroker, worked
from chaos.worlds.world import BrokerState, Life, World


class BrokerFreeze(HurtBroker):
    """Freezes the broker."""

    KIND: ClassVar[str] = "broker_freeze"
    COLOUR: ClassVar[str] = "#332288"
    CUTS_OFF: ClassVar[bool] = True
    RENEWED: ClassVar[bool] = False

    async def _strike(self, world: World) -> None:
        await world.broker().freeze(self._ttl_s)

    async def _mend(self, world: World) -> None:
        await world.broker().thaw()

    def _judge(self, now: BrokerState) -> tuple[bool, str]:
        if not worked(self._before):
            return False, "the broker did not work before"
        if now.life is not Life.STANDS_STILL:
            return False, f"the system says that its process {now.life}"
        if now.greets or now.identity:
            return False, "the broker answers"
        return True, "its process is stopped and answers nobody"
