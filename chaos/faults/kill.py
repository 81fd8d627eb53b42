"""`kill`: processes of workers or controllers end at once (SIGKILL), and are started again at the heal.

Nobody is told: open streams break off, and the next incarnation knows nothing of this one. The option `restart_after_s`
starts them again earlier than at the end of the fault. It is proved when the system knows the process no more and the
broker lists its connection no more; the heal, when a new incarnation answers and every controller calls it ready.
"""

from collections.abc import Sequence
from typing import ClassVar

from chaos.experiment import FaultSpec
from chaos.faults.fault import Evidence
from chaos.faults.processes import (
    PROOF_S,
    Members,
    Return,
    demand_process,
    explained,
    inspect,
    is_gone,
    side_by_side,
    watch,
)
from chaos.faults.roles import number
from chaos.worlds.world import ProcessState, World


class Kill:
    """Kills every target."""

    KIND: ClassVar[str] = "kill"
    COLOUR: ClassVar[str] = "#cc3311"

    def __init__(self, spec: FaultSpec, nodes: Sequence[str]) -> None:
        demand_process(spec, ("restart_after_s",))
        self._restart_after_s = number(spec, "restart_after_s", spec.duration_s, PROOF_S, spec.duration_s)
        self._early = self._restart_after_s < spec.duration_s
        self._targets = spec.targets
        self.explains = explained(spec.targets, nodes)
        self._before: dict[str, ProcessState] = {}
        self._members: Members = {}
        self._down: list[str] = []
        self._killed_s = 0.0

    async def inject(self, world: World) -> None:
        """See Fault."""
        self._before = await inspect(world, self._targets)
        self._members = await world.members()
        self._killed_s = world.now()
        for target in self._targets:
            self._down.append(target)
            await world.process(target).kill()

    async def verify(self, world: World) -> Evidence:
        """See Fault."""
        return await self._proof(world, PROOF_S, replaced=False)

    async def sustain(self, world: World, until_s: float) -> None:
        """See Fault."""
        if self._early:
            await world.sleep(self._killed_s + self._restart_after_s - world.now())
            await self.heal(world)
        await world.sleep(until_s - world.now())

    async def verify_end(self, world: World) -> Evidence:
        """See Fault."""
        return await self._proof(world, 0.0, replaced=self._early)

    async def heal(self, world: World) -> None:
        """See Fault."""
        await side_by_side(world, [self._bring_back(world, target) for target in self._down])

    async def verify_healed(self, world: World, limit_s: float) -> Evidence:
        """See Fault."""
        return await Return(self._before, self._members, self._targets).proof(world, limit_s)

    async def _bring_back(self, world: World, target: str) -> None:
        await world.process(target).restart()
        self._down.remove(target)

    async def _proof(self, world: World, limit_s: float, *, replaced: bool) -> Evidence:
        def judge(target: str, state: ProcessState, members: Members) -> tuple[bool, str]:
            return is_gone(self._before.get(target), state, replaced=replaced)

        return await watch(world, self._targets, judge, limit_s)
