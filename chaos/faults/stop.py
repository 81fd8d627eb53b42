"""`stop`: workers finish what they have and end; controllers end in an orderly way. They start again at the heal.

A worker is drained first, for at most the option `drain_limit_s` (default 10 s): it takes nothing new, and nothing
that it has may be lost. It is proved when the worker had finished, the system knows the process no more and the broker
lists its connection no more; the heal, when a new incarnation answers and every controller calls it ready.
"""

from collections.abc import Sequence
from typing import ClassVar

from chaos.experiment import FaultSpec
from chaos.faults.fault import Evidence, Lasting
from chaos.faults.processes import (
    PROOF_S,
    Members,
    Return,
    demand_process,
    explained,
    inspect,
    is_gone,
    is_worker,
    side_by_side,
    watch,
)
from chaos.faults.roles import number
from chaos.worlds.world import ProcessState, World
from cluster.errors import Code

_DRAIN_LIMIT_S = 10.0
_DRAIN_LIMIT_S_MAX = 600.0


class Stop(Lasting):
    """Stops every target."""

    KIND: ClassVar[str] = "stop"
    COLOUR: ClassVar[str] = "#999933"

    def __init__(self, spec: FaultSpec, nodes: Sequence[str]) -> None:
        demand_process(spec, ("drain_limit_s",))
        self._drain_limit_s = number(spec, "drain_limit_s", _DRAIN_LIMIT_S, 0.1, _DRAIN_LIMIT_S_MAX)
        self._targets = spec.targets
        self.explains = explained(spec.targets, nodes, Code.WORKER_DRAINING)
        self._before: dict[str, ProcessState] = {}
        self._members: Members = {}
        self._unfinished: list[str] = []
        self._down: list[str] = []

    async def inject(self, world: World) -> None:
        """See Fault."""
        self._before = await inspect(world, self._targets)
        self._members = await world.members()
        await side_by_side(world, [self._end(world, target) for target in self._targets])

    async def verify(self, world: World) -> Evidence:
        """See Fault."""
        return await watch(world, self._targets, self._judge, PROOF_S)

    async def verify_end(self, world: World) -> Evidence:
        """See Fault."""
        return await watch(world, self._targets, self._judge, 0.0)

    async def heal(self, world: World) -> None:
        """See Fault."""
        await side_by_side(world, [self._bring_back(world, target) for target in self._down])

    async def verify_healed(self, world: World, limit_s: float) -> Evidence:
        """See Fault."""
        return await Return(self._before, self._members, self._targets).proof(world, limit_s)

    async def _end(self, world: World, target: str) -> None:
        process = world.process(target)
        # One that drains takes nothing new for good, so it needs a successor from here on.
        self._down.append(target)
        if is_worker(target) and not await process.drain(self._drain_limit_s):
            self._unfinished.append(target)
        await process.stop()

    async def _bring_back(self, world: World, target: str) -> None:
        await world.process(target).restart()
        self._down.remove(target)

    def _judge(self, target: str, state: ProcessState, members: Members) -> tuple[bool, str]:
        if target in self._unfinished:
            return False, f"it had not finished its work within {self._drain_limit_s:g} s"
        return is_gone(self._before.get(target), state, replaced=False)
