"""`restart`: workers or controllers are restarted one after the other, as an update rolls through a cluster.

Each worker is drained first, for at most the option `drain_limit_s` (default 10 s; 0: not at all). The next target has
its turn when the last one is back in the controllers' eyes, and `between_s` (default 1 s) later. The fault ends with
the last target, or at its end, by which all must have had their turn. It is proved by every target's new incarnation:
it answers, the controllers have heard it, and the broker lists the connection of before no more.
"""

from collections.abc import Sequence
from typing import ClassVar

from analysis.schema import EventRow
from chaos.experiment import FaultSpec
from chaos.faults.fault import Evidence
from chaos.faults.processes import (
    PROOF_S,
    Members,
    Return,
    demand_process,
    explained,
    inspect,
    is_renewed,
    is_worker,
    watch,
)
from chaos.faults.roles import number
from chaos.worlds.world import ProcessState, World
from cluster.errors import Code

_DRAIN_LIMIT_S = 10.0
_DRAIN_LIMIT_S_MAX = 600.0
_BETWEEN_S = 1.0
_BETWEEN_S_MAX = 3_600.0


class Restart:
    """Restarts every target in its turn."""

    KIND: ClassVar[str] = "restart"
    COLOUR: ClassVar[str] = "#44aa99"

    def __init__(self, spec: FaultSpec, nodes: Sequence[str]) -> None:
        demand_process(spec, ("between_s", "drain_limit_s"))
        self._between_s = number(spec, "between_s", _BETWEEN_S, 0.0, _BETWEEN_S_MAX)
        self._drain_limit_s = number(spec, "drain_limit_s", _DRAIN_LIMIT_S, 0.0, _DRAIN_LIMIT_S_MAX)
        self._targets = spec.targets
        # Only one of several is away at a time.
        alone = spec.targets if len(spec.targets) == 1 else tuple(name for name in spec.targets if not is_worker(name))
        self.explains = explained(alone, nodes, Code.WORKER_DRAINING)
        self._waiting = list(spec.targets)
        self._before: dict[str, ProcessState] = {}
        self._members: Members = {}
        self._unfinished: list[str] = []
        self._begun: list[str] = []
        self._renewed: list[str] = []

    async def inject(self, world: World) -> None:
        """See Fault."""
        self._before = await inspect(world, self._targets)
        self._members = await world.members()
        await self._next(world)

    async def verify(self, world: World) -> Evidence:
        """See Fault. Of the first target; the others follow."""
        return await watch(world, self._targets[:1], self._judge, PROOF_S)

    async def sustain(self, world: World, until_s: float) -> None:
        """See Fault. Ends with the last target."""
        while self._waiting:
            await self._return(self._renewed[-1:]).proof(world, until_s - world.now())
            await world.sleep(self._between_s)
            if world.now() >= until_s:
                return
            world.record(EventRow(world.clock(), "fault_repeated", self._waiting[0]))
            await self._next(world)

    async def verify_end(self, world: World) -> Evidence:
        """See Fault."""
        return await watch(world, self._targets, self._judge, PROOF_S)

    async def heal(self, world: World) -> None:
        """See Fault."""
        for target in self._begun:
            if target not in self._renewed:
                await self._renew(world, target)

    async def verify_healed(self, world: World, limit_s: float) -> Evidence:
        """See Fault."""
        return await self._return(self._targets).proof(world, limit_s)

    def _return(self, targets: Sequence[str]) -> Return:
        return Return({target: self._before[target] for target in targets}, self._members, self._renewed)

    async def _next(self, world: World) -> None:
        target = self._waiting.pop(0)
        self._begun.append(target)
        if is_worker(target) and self._drain_limit_s and not await world.process(target).drain(self._drain_limit_s):
            self._unfinished.append(target)
        await self._renew(world, target)

    async def _renew(self, world: World, target: str) -> None:
        await world.process(target).restart()
        self._renewed.append(target)

    def _judge(self, target: str, state: ProcessState, members: Members) -> tuple[bool, str]:
        if target in self._waiting:
            return False, "its turn has not come"
        if target in self._unfinished:
            return False, f"it had not finished its work within {self._drain_limit_s:g} s"
        return is_renewed(target, self._before.get(target), state, members)
