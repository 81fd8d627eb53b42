"""`restart`: workers or controllers are restarted one after the other, as an update rolls through a cluster.

Each worker is drained first, for at most `drain_limit_s` (0: not at all). The next target has
its turn when the last one is back in the controllers' eyes, and `between_s` later. The fault ends with
the last target, or at its end, by which all must have had their turn. It is proved by every target's new incarnation:
it answers, the controllers have heard it, and the broker lists the connection of before no more.
"""

from collections.abc import Sequence
from typing import Annotated, ClassVar

import msgspec

from analysis.schema import EventRow
from chaos.experiment import FaultSpec
from chaos.faults.codes import LOST, explained
from chaos.faults.fault import Evidence
from chaos.faults.processes import DURATION_S_MIN, PROOF_S, Members, Return, inspect, is_renewed, watch
from chaos.faults.roles import HOSTED, is_worker
from chaos.faults.terms import Options, Terms
from chaos.worlds.world import ProcessState, World
from cluster.errors import Code


class RestartOptions(Options, frozen=True):
    """See the module."""

    between_s: Annotated[float, msgspec.Meta(ge=0, le=3_600)] = 1.0
    drain_limit_s: Annotated[float, msgspec.Meta(ge=0, le=600)] = 10.0


class Restart:
    """Restarts every target in its turn."""

    KIND: ClassVar[str] = "restart"
    COLOUR: ClassVar[str] = "#44aa99"
    AT_ONCE: ClassVar[int] = 1
    TERMS: ClassVar[Terms[RestartOptions]] = Terms(roles=HOSTED, duration_s_min=DURATION_S_MIN, options=RestartOptions)

    def __init__(self, spec: FaultSpec, nodes: Sequence[str]) -> None:
        options = self.TERMS.read(spec)
        self._between_s = options.between_s
        self._drain_limit_s = options.drain_limit_s
        self._targets = spec.targets
        self._nodes = nodes
        self._waiting = list(spec.targets)
        self._before: dict[str, ProcessState] = {}
        self._members: Members = {}
        self._unfinished: list[str] = []
        self._begun: list[str] = []
        self._renewed: list[str] = []

    @property
    def explains(self) -> tuple[str, ...]:
        """See Fault. Only one of several is away at a time."""
        several = len(self._targets) > 1
        alone = [name for name in self._targets if not (several and is_worker(name))]
        return explained(alone, self._nodes, *LOST, Code.WORKER_DRAINING)

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
