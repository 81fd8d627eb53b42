"""`flap`: a node's link goes down and comes up again, over and over.

Takes a node's link down for `down_s` in one of the partition's `mode`s, lets it be up for `up_s`, and so on until the
fault ends. The time up counts from when the link works again, so that every strike hits a link that worked. After a
`reset` the link may be made again at once, so `down_s` only adds to the pause. It stands for a bad cable, port or
radio. Proof: every single strike is seen to bite as a partition is, on the connection of its moment.
"""

from collections.abc import Sequence
from typing import ClassVar

from msgspec.structs import replace

from analysis.schema import EventRow
from chaos.experiment import FaultSpec
from chaos.faults.fault import Evidence
from chaos.faults.partition import Partition, judge
from chaos.faults.roles import demand_options, number
from chaos.worlds.world import Cut, LinkState, World

_SETTLE_S = 0.2
_POLL_S = 0.1
_UP_S = (1.0, 3_600.0)
_DOWN_S_MAX = 3_600.0
_LOUD = (Cut.REFUSE, Cut.RESET)
"""Both ends are told of these, so their proof takes no time. That of a silent cut takes as long as it is watched."""
_DOWN_S_MIN = {True: 0.5, False: 2.5}


class Flap(Partition):
    """Strikes every target's link again and again."""

    KIND: ClassVar[str] = "flap"
    COLOUR: ClassVar[str] = "#997700"

    def __init__(self, spec: FaultSpec, nodes: Sequence[str]) -> None:
        demand_options(spec, ("up_s", "down_s"), modes=tuple(cut.value for cut in Cut))
        assert spec.mode is not None
        loud = Cut(spec.mode) in _LOUD
        self._up_s = number(spec, "up_s", None, *_UP_S)
        self._down_s = number(spec, "down_s", None, _DOWN_S_MIN[loud], _DOWN_S_MAX)
        least_s = 2 * self._down_s + self._up_s
        if spec.duration_s < least_s:
            raise ValueError(f"duration_s: expected at least {least_s:g} s, for two times down and one up between")
        self._strikes = 0
        self._bit = 0
        self._why: dict[str, str] = {}
        self._struck_s = 0.0
        super().__init__(replace(spec, options={}), nodes)

    async def inject(self, world: World) -> None:
        """See Fault. The first strike."""
        self._struck_s = world.now()
        await super().inject(world)

    async def verify(self, world: World) -> Evidence:
        """See Fault. Of the first strike."""
        evidence = await self._proof(world)
        self._count(evidence)
        return evidence

    async def sustain(self, world: World, until_s: float) -> None:
        """See Fault."""
        while True:
            await world.sleep(min(self._struck_s + self._down_s, until_s) - world.now())
            if world.now() >= until_s:
                return
            await self.heal(world)
            if not await self._back_up(world, until_s):
                return
            # No strike whose proof would not be over before the end.
            if world.now() + self._up_s + self._down_s > until_s:
                await world.sleep(until_s - world.now())
                return
            await world.sleep(self._up_s)
            for target in self._targets:
                world.record(EventRow(world.clock(), "fault_repeated", target))
            await self.inject(world)
            self._count(await self._proof(world))

    async def _back_up(self, world: World, until_s: float) -> bool:
        """Wait until every target's link works; whether that was before `until_s`."""
        for target in self._targets:
            while not _works(await world.link(target).inspect()):
                if world.now() + _POLL_S >= until_s:
                    return False
                await world.sleep(_POLL_S)
        return True

    async def _proof(self, world: World) -> Evidence:
        if self._cut not in _LOUD:
            return await super().verify(world)
        facts: dict[str, object] = {}
        proved = True
        await world.sleep(_SETTLE_S)
        for target in self._targets:
            late = await self._inspect(world, target)
            bites, why = judge(self._cut, self._before[target], late, late)
            proved = proved and bites
            facts[target] = {"bites": bites, "because": why}
        return Evidence(proved, facts)

    def _count(self, evidence: Evidence) -> None:
        self._strikes += 1
        self._bit += evidence.proved
        for target, told in evidence.facts.items():
            if isinstance(told, dict) and not told["bites"]:
                self._why[target] = f"strike {self._strikes}: {told['because']}"

    async def verify_end(self, world: World) -> Evidence:
        """See Fault. Every strike has bitten, and there was more than one."""
        facts: dict[str, object] = {"strikes": self._strikes, "bit": self._bit}
        for target in self._targets:
            missed = self._why.get(target)
            enough = missed is None and self._strikes >= 2
            why = missed or f"{self._bit} of {self._strikes} strikes broke the link of their moment"
            facts[target] = {"bites": enough, "because": why}
        return Evidence(self._bit == self._strikes >= 2, facts)


def _works(state: LinkState) -> bool:
    return state.connected and state.answered and state.broker_in is not None
