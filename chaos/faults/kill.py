"""`kill`: processes of workers or controllers end at once (SIGKILL), and are started again at the heal.

Nobody is told: open streams break off, and the next incarnation knows nothing of this one. The option `restart_after_s`
starts them again earlier than at the end of the fault. It is proved when the system knows the process no more and the
broker lists its connection no more; the heal, when a new incarnation answers and every controller calls it ready.
"""

from collections.abc import Sequence
from typing import Annotated, ClassVar

import msgspec

from chaos.experiment import FaultSpec
from chaos.faults.hurting import HurtProcesses
from chaos.faults.processes import DURATION_S_MIN, PROOF_S, Members, is_gone
from chaos.faults.roles import HOSTED
from chaos.faults.terms import Options, Terms
from chaos.worlds.world import ProcessState, World


class KillOptions(Options, frozen=True):
    """See the module."""

    restart_after_s: (
        Annotated[
            float, msgspec.Meta(ge=PROOF_S, le=3_600, description="at most duration_s, and without it at the end")
        ]
        | None
    ) = None


class Kill(HurtProcesses):
    """Kills every target."""

    KIND: ClassVar[str] = "kill"
    COLOUR: ClassVar[str] = "#cc3311"
    TERMS: ClassVar[Terms[KillOptions]] = Terms(roles=HOSTED, duration_s_min=DURATION_S_MIN, options=KillOptions)

    def __init__(self, spec: FaultSpec, nodes: Sequence[str]) -> None:
        after_s = self.TERMS.read(spec).restart_after_s
        if after_s is not None and after_s > spec.duration_s:
            raise ValueError(
                f"options.restart_after_s: expected a number from {PROOF_S:g} to the fault's duration of "
                f"{spec.duration_s:g} s, got {after_s:g}"
            )
        super().__init__(spec, nodes)
        self._restart_after_s = after_s
        self._restarted = False
        self._killed_s = 0.0

    async def inject(self, world: World) -> None:
        """See Fault."""
        self._killed_s = world.now()
        await super().inject(world)

    async def sustain(self, world: World, until_s: float) -> None:
        """See Fault."""
        if self._restart_after_s is not None:
            await world.sleep(self._killed_s + self._restart_after_s - world.now())
            self._restarted = True
            await self.heal(world)
        await world.sleep(until_s - world.now())

    async def _strike(self, world: World, target: str) -> None:
        await world.process(target).kill()

    def _judge(self, target: str, state: ProcessState, members: Members) -> tuple[bool, str]:
        return is_gone(self._before.get(target), state, replaced=self._restarted)
