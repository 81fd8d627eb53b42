"""`lame_duck`: the broker is asked to leave, as before maintenance, and a new one takes its address at the heal.

It tells its clients, takes no new connections, closes the present ones one by one after a grace of seconds, and ends.
With a single broker nobody has another place to go to. It is proved when a fresh connection is greeted no more while
the process of before still answers, or has ended already; the heal, when another process of the broker greets and every
node, the clients too, gets answers over a link that it lists.
"""

from typing import ClassVar

from chaos.faults.brokers import HurtBroker, worked
from chaos.worlds.world import BrokerState, Life, World


class LameDuck(HurtBroker):
    """Lets the broker leave."""

    KIND: ClassVar[str] = "lame_duck"
    COLOUR: ClassVar[str] = "#ddcc77"

    async def _strike(self, world: World) -> None:
        await world.broker().lame_duck()

    def _judge(self, now: BrokerState) -> tuple[bool, str]:
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
