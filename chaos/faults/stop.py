"""`stop`: workers finish what they have and end; controllers end in an orderly way. They start again at the heal.

A worker is drained first, for at most `drain_limit_s`: it takes nothing new, and nothing
that it has may be lost. It is proved when the worker had finished, the system knows the process no more and the broker
lists its connection no more; the heal, when a new incarnation answers and every controller calls it ready.
"""

from collections.abc import Sequence
from typing import Annotated, ClassVar

import msgspec

from chaos.experiment import FaultSpec
from chaos.faults.hurting import HurtProcesses
from chaos.faults.processes import DURATION_S_MIN, Members, is_gone
from chaos.faults.roles import HOSTED, is_worker
from chaos.faults.terms import Options, Terms
from chaos.worlds.world import ProcessState, World
from cluster.errors import Code


class StopOptions(Options, frozen=True):
    """See the module."""

    drain_limit_s: Annotated[float, msgspec.Meta(ge=0.1, le=600)] = 10.0


class Stop(HurtProcesses):
    """Stops every target."""

    KIND: ClassVar[str] = "stop"
    COLOUR: ClassVar[str] = "#999933"
    TERMS: ClassVar[Terms[StopOptions]] = Terms(roles=HOSTED, duration_s_min=DURATION_S_MIN, options=StopOptions)
    CODES: ClassVar[tuple[Code, ...]] = (Code.WORKER_DRAINING,)

    def __init__(self, spec: FaultSpec, nodes: Sequence[str]) -> None:
        self._drain_limit_s = self.TERMS.read(spec).drain_limit_s
        super().__init__(spec, nodes)
        self._unfinished: list[str] = []

    async def _strike(self, world: World, target: str) -> None:
        # One that drains takes nothing new for good, so it needs a successor from here on.
        process = world.process(target)
        if is_worker(target) and not await process.drain(self._drain_limit_s):
            self._unfinished.append(target)
        await process.stop()

    def _judge(self, target: str, state: ProcessState, members: Members) -> tuple[bool, str]:
        if target in self._unfinished:
            return False, f"it had not finished its work within {self._drain_limit_s:g} s"
        return is_gone(self._before.get(target), state, replaced=False)
