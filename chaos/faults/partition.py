"""`partition`: nodes lose their link to the bus, in one of six ways.

Evidence comes from the victim's existing connection, never from a fresh one: what the victim sends (its heartbeats or
pings keep coming) no longer arrives in the broker's count for that connection, nothing comes back to it, or the
broker does not list it any more.
"""

from collections.abc import Sequence
from typing import ClassVar

from analysis.schema import EventRow
from chaos.experiment import FaultSpec
from chaos.faults.fault import Evidence
from chaos.faults.lines import HurtLines, until_healed
from chaos.faults.roles import LINKED
from chaos.faults.terms import Options, Terms
from chaos.worlds.world import Cut, LinkState, World

_SETTLE_S = 0.2
_WATCH_S = 1.1
_RESET_EVERY_S = 3.0
DURATION_S_MIN = 2.5


class Partition(HurtLines):
    """Cuts every target's link for as long as the fault lasts."""

    KIND: ClassVar[str] = "partition"
    COLOUR: ClassVar[str] = "#d55e00"

    TERMS: ClassVar[Terms[Options]] = Terms(
        roles=LINKED, duration_s_min=DURATION_S_MIN, options=Options, modes=tuple(cut.value for cut in Cut)
    )

    def __init__(self, spec: FaultSpec, nodes: Sequence[str]) -> None:
        self.TERMS.read(spec)
        super().__init__(spec, nodes)
        self._cut = Cut(str(spec.mode))
        self._before: dict[str, LinkState] = {}
        self._missed: dict[str, int] = {}

    async def inject(self, world: World) -> None:
        """See Fault."""
        for target in self._targets:
            self._before[target] = await world.link(target).inspect()
        for target in self._targets:
            await world.link(target).cut(self._cut, self._ttl_s)

    async def verify(self, world: World) -> Evidence:
        """See Fault."""
        facts: dict[str, object] = {}
        proved = True
        await world.sleep(_SETTLE_S)
        early = {target: await self._inspect(world, target) for target in self._targets}
        await world.sleep(_WATCH_S)
        for target in self._targets:
            late = await self._inspect(world, target)
            bites, why = judge(self._cut, self._before[target], early[target], late)
            proved = proved and bites
            facts[target] = {
                "bites": bites,
                "because": why,
                "before": _facts(self._before[target]),
                "early": _facts(early[target]),
                "late": _facts(late),
            }
        return Evidence(proved, facts)

    async def sustain(self, world: World, until_s: float) -> None:
        """See Fault. A reset repeats; the other cuts last by themselves."""
        strike_s = world.now() + _RESET_EVERY_S
        while self._cut is Cut.RESET and strike_s < until_s:
            await world.sleep(strike_s - world.now())
            await self._strike_again(world)
            strike_s += _RESET_EVERY_S
        await world.sleep(until_s - world.now())

    async def _strike_again(self, world: World) -> None:
        """Break the targets' present connections, and see that they are broken."""
        before = {target: await world.link(target).inspect() for target in self._targets}
        for target in self._targets:
            world.record(EventRow(world.clock(), "fault_repeated", target))
            await world.link(target).cut(self._cut, self._ttl_s)
        await world.sleep(_SETTLE_S)
        for target in self._targets:
            after = await world.link(target).inspect()
            if before[target].cid != 0 and after.cid == before[target].cid:
                self._missed[target] = self._missed.get(target, 0) + 1

    async def verify_end(self, world: World) -> Evidence:
        """See Fault. Nobody who is cut off gets an answer, and every reset has broken a connection."""
        facts: dict[str, object] = {}
        proved = True
        for target in self._targets:
            state = await world.link(target).inspect()
            bites, why = self._still(target, state)
            proved = proved and bites
            facts[target] = {"bites": bites, "because": why, "state": _facts(state)}
        return Evidence(proved, facts)

    def _still(self, target: str, state: LinkState) -> tuple[bool, str]:
        if self._cut is Cut.RESET:
            missed = self._missed.get(target, 0)
            if missed:
                return False, f"{missed} of the resets left the connection as it was"
            return True, "every reset broke the connection of its moment"
        if state.answered:
            return False, "the node's own message came back over its present connection"
        return True, "nothing that the node sends comes back to it"

    async def verify_healed(self, world: World, limit_s: float) -> Evidence:
        """See Fault. Healed means that the victim's present connection answers and the broker lists it."""

        async def look(target: str) -> tuple[bool, dict[str, object]]:
            state = await world.link(target).inspect()
            return works(state), {"state": _facts(state)}

        return await until_healed(world, self._targets, look, limit_s)

    async def _inspect(self, world: World, target: str) -> LinkState:
        """The link as it is now, with the broker's view of the connection that was there before the cut."""
        return await world.link(target).inspect(self._before[target].cid)


def judge(cut: Cut, before: LinkState, early: LinkState, late: LinkState) -> tuple[bool, str]:
    """Whether the cut bites, and why one may say so. early and late: two looks at the connection of `before`."""
    if not (before.connected and before.answered):
        return False, "the link did not work before the cut"
    if cut is Cut.REFUSE:
        if late.broker_in is None and not late.connected:
            return True, "the broker has dropped the connection and the node has no other"
        return False, "the node is still connected, or the broker still lists its connection"
    if cut is Cut.RESET:
        if late.broker_in is None and late.cid != before.cid:
            return True, "the connection of before is gone"
        return False, "the connection of before is still there"
    if late.answered:
        return False, "the node's own message came back over its existing connection"
    if cut is Cut.DOWNSTREAM:
        if _advanced(early.broker_in, late.broker_in) and late.node_in == early.node_in:
            return True, "the broker still hears the node, and nothing comes back to it"
        return False, "no proof of one way only: the broker does not hear the node, or the node hears the broker"
    if late.node_out <= early.node_out:
        return False, "the node sent nothing meanwhile, so its silence at the broker proves nothing"
    if _advanced(early.broker_in, late.broker_in):
        return False, "what the node sends still arrives at the broker"
    if cut is Cut.UPSTREAM:
        return True, "what the node sends no longer arrives at the broker"
    return True, "what the node sends no longer arrives, and nothing comes back to it"


def _advanced(early: int | None, late: int | None) -> bool:
    return early is not None and late is not None and late > early


def works(state: LinkState) -> bool:
    """Whether a node's present connection answers, and the broker lists it."""
    return state.connected and state.answered and state.broker_in is not None


def _facts(state: LinkState) -> dict[str, object]:
    return {name: getattr(state, name) for name in state.__struct_fields__}
