"""`flap`: a node's link goes down and comes up again, over and over.

Takes a node's link down for `down_s` in one of the partition's `mode`s, lets it be up for `up_s`, and so on until the
fault ends. The time up counts from when the link works again, so that every strike hits a link that worked. After a
`reset` the link may be made again at once, so `down_s` only adds to the pause. It stands for a bad cable, port or
radio. Proof: every single strike is seen to bite as a partition is, on the connection of its moment.
"""

from collections.abc import Sequence
from typing import Annotated, ClassVar

import msgspec

from analysis.schema import EventRow
from chaos.experiment import FaultSpec
from chaos.faults.fault import Evidence
from chaos.faults.partition import DURATION_S_MIN, Partition, judge, works
from chaos.faults.roles import LINKED
from chaos.faults.terms import Options, Terms
from chaos.worlds.world import Cut, World

_SETTLE_S = 0.2
_POLL_S = 0.1
_LOUD = (Cut.REFUSE, Cut.RESET)
"""Both ends are told of these, so their proof takes no time. That of a silent cut takes as long as it is watched."""
_SILENT_DOWN_S_MIN = 2.5


class FlapOptions(Options, frozen=True):
    """See the module."""

    up_s: Annotated[float, msgspec.Meta(ge=1, le=3_600)]
    down_s: Annotated[
        float,
        msgspec.Meta(
            ge=0.5,
            le=3_600,
            description=f"at least {_SILENT_DOWN_S_MIN:g} but in the modes {' and '.join(_LOUD)}",
        ),
    ]


class Flap(Partition):
    """Strikes every target's link again and again."""

    KIND: ClassVar[str] = "flap"
    COLOUR: ClassVar[str] = "#997700"

    TERMS: ClassVar[Terms[FlapOptions]] = Terms(
        roles=LINKED, duration_s_min=DURATION_S_MIN, options=FlapOptions, modes=tuple(cut.value for cut in Cut)
    )

    def __init__(self, spec: FaultSpec, nodes: Sequence[str]) -> None:
        super().__init__(spec, nodes)
        options = self.TERMS.read(spec)
        self._up_s, self._down_s = options.up_s, options.down_s
        if self._cut not in _LOUD and self._down_s < _SILENT_DOWN_S_MIN:
            raise ValueError(
                f"options.down_s: expected at least {_SILENT_DOWN_S_MIN:g} s in the mode {self._cut}, "
                f"for that long the proof takes, got {self._down_s:g}"
            )
        least_s = 2 * self._down_s + self._up_s
        if spec.duration_s < least_s:
            raise ValueError(f"duration_s: expected at least {least_s:g} s, for two times down and one up between")
        self._strikes = 0
        self._bit = 0
        self._why: dict[str, str] = {}
        self._struck_s = 0.0

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
            while not works(await world.link(target).inspect()):
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
