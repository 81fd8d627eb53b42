"""The frame of the kinds that hurt processes and bring them back at the heal."""

from collections.abc import Sequence
from typing import ClassVar

from chaos.experiment import FaultSpec
from chaos.faults.codes import LOST, explained
from chaos.faults.fault import Evidence, Lasting
from chaos.faults.processes import PROOF_S, Members, Return, inspect, is_gone, side_by_side, watch
from chaos.faults.terms import Options, Terms
from chaos.worlds.world import ProcessState, World
from cluster.errors import Code


class HurtProcesses(Lasting):
    """Strikes every target; kinds say how, how that is undone, and what proves it.

    Unless a kind says otherwise, the processes are gone while the fault lasts, and others are in their place after it.
    """

    TERMS: ClassVar[Terms[Options]]
    RENEWED: ClassVar[bool] = True
    """Whether the heal leaves another incarnation in the place of each target, or the same."""
    CODES: ClassVar[tuple[Code, ...]] = ()
    """What callers may see besides what any node that is away makes them see."""

    def __init__(self, spec: FaultSpec, nodes: Sequence[str]) -> None:
        self._struck = spec.targets
        """Whoever is struck, one blow each."""
        self._targets = spec.targets
        """The nodes whose processes are hurt by that."""
        self._nodes = nodes
        self._ttl_s = spec.ttl_s
        self._before: dict[str, ProcessState] = {}
        self._members: Members = {}
        self._hurt: list[str] = []

    @property
    def explains(self) -> tuple[str, ...]:
        """See Fault."""
        return explained(self._targets, self._nodes, *LOST, *self.CODES)

    async def inject(self, world: World) -> None:
        """See Fault."""
        self._before = await inspect(world, self._targets)
        self._members = await world.members()
        await side_by_side(world, [self._strike_one(world, target) for target in self._struck])

    async def verify(self, world: World) -> Evidence:
        """See Fault."""
        return await self._proof(world, PROOF_S)

    async def verify_end(self, world: World) -> Evidence:
        """See Fault."""
        return await self._proof(world, 0.0)

    async def heal(self, world: World) -> None:
        """See Fault."""
        await side_by_side(world, [self._mend_one(world, target) for target in self._hurt])

    async def verify_healed(self, world: World, limit_s: float) -> Evidence:
        """See Fault."""
        return await Return(self._before, self._members, self._targets if self.RENEWED else ()).proof(world, limit_s)

    async def _strike_one(self, world: World, target: str) -> None:
        # Written down first: whatever the blow has done when it fails or is cut short is to be undone.
        self._hurt.append(target)
        await self._strike(world, target)

    async def _mend_one(self, world: World, target: str) -> None:
        await self._mend(world, target)
        self._hurt.remove(target)

    async def _strike(self, world: World, target: str) -> None:
        raise NotImplementedError

    async def _mend(self, world: World, target: str) -> None:
        await world.process(target).restart()

    async def _proof(self, world: World, limit_s: float) -> Evidence:
        return await watch(world, self._targets, self._judge, limit_s)

    def _judge(self, target: str, state: ProcessState, members: Members) -> tuple[bool, str]:
        return is_gone(self._before.get(target), state, replaced=False)
