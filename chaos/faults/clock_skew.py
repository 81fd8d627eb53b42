"""`clock_skew`: workers or controllers are restarted with clocks that are `ahead_s` seconds ahead (negative: behind).

Both the clock that a node measures time with and the wall clock that names its incarnation are off (by 1 s to a day).
Apart from the restart it must change nothing: no clock is compared with another node's, and an incarnation that was
named by a clock behind must not be taken for a ghost of an older one. The heal is another restart with the right clock.
It is proved when a new incarnation answers that the controllers have heard of, and its clock is off by that much.
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
    is_renewed,
    side_by_side,
    watch,
)
from chaos.faults.roles import number
from chaos.worlds.world import ProcessState, World

_DAY_S = 86_400.0
_LEAST_S = 1.0
_BLUR_S = 0.5
"""How long the question for a node's clock may be on its way."""


class ClockSkew(Lasting):
    """Gives every target another clock."""

    KIND: ClassVar[str] = "clock_skew"
    COLOUR: ClassVar[str] = "#009e73"

    def __init__(self, spec: FaultSpec, nodes: Sequence[str]) -> None:
        demand_process(spec, ("ahead_s",))
        self._ahead_s = number(spec, "ahead_s", None, -_DAY_S, _DAY_S)
        if abs(self._ahead_s) < _LEAST_S:
            raise ValueError(
                f"options.ahead_s: expected at least {_LEAST_S:g} s ahead or behind, got {self._ahead_s:g}"
            )
        self._targets = spec.targets
        self._explains = explained(spec.targets, nodes)
        self._before: dict[str, ProcessState] = {}
        self._members: Members = {}
        self._skewed: list[str] = []

    @property
    def explains(self) -> tuple[str, ...]:
        """See Fault. All of it by the restarts."""
        return self._explains

    async def inject(self, world: World) -> None:
        """See Fault."""
        self._before = await inspect(world, self._targets)
        self._members = await world.members()
        await side_by_side(world, [self._set(world, target, self._ahead_s) for target in self._targets])

    async def verify(self, world: World) -> Evidence:
        """See Fault."""
        renewed = await watch(world, self._targets, self._is_renewed, PROOF_S)
        return await self._with_clocks(world, renewed, self._ahead_s)

    async def verify_end(self, world: World) -> Evidence:
        """See Fault."""
        renewed = await watch(world, self._targets, self._is_renewed, 0.0)
        return await self._with_clocks(world, renewed, self._ahead_s)

    async def heal(self, world: World) -> None:
        """See Fault."""
        await side_by_side(world, [self._set_right(world, target) for target in self._skewed])

    async def verify_healed(self, world: World, limit_s: float) -> Evidence:
        """See Fault."""
        back = await Return(self._before, self._members, self._targets).proof(world, limit_s)
        return await self._with_clocks(world, back, 0.0)

    async def _set(self, world: World, target: str, ahead_s: float) -> None:
        self._skewed.append(target)
        await world.node_clock(target).set_ahead(ahead_s)

    async def _set_right(self, world: World, target: str) -> None:
        await world.node_clock(target).set_ahead(0.0)
        self._skewed.remove(target)

    async def _with_clocks(self, world: World, evidence: Evidence, wanted_s: float) -> Evidence:
        found = {target: await world.node_clock(target).ahead() for target in self._targets}
        right = all(abs(ahead_s - wanted_s) < _BLUR_S for ahead_s in found.values())
        clocks = {target: round(ahead_s, 3) for target, ahead_s in found.items()}
        return Evidence(evidence.proved and right, {**evidence.facts, "clock_ahead_s": clocks})

    def _is_renewed(self, target: str, state: ProcessState, members: Members) -> tuple[bool, str]:
        return is_renewed(target, self._before.get(target), state, members)
