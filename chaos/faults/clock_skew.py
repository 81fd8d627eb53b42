"""`clock_skew`: workers or controllers are restarted with clocks that are `ahead_s` seconds ahead (negative: behind).

Both the clock that a node measures time with and the wall clock that names its incarnation are off.
Apart from the restart it must change nothing: no clock is compared with another node's, and an incarnation that was
named by a clock behind must not be taken for a ghost of an older one. The heal is another restart with the right clock.
It is proved when a new incarnation answers that the controllers have heard of, and its clock is off by that much.
"""

from collections.abc import Sequence
from typing import Annotated, ClassVar

import msgspec

from chaos.experiment import FaultSpec
from chaos.faults.fault import Evidence
from chaos.faults.hurting import HurtProcesses
from chaos.faults.processes import DURATION_S_MIN, Members, is_renewed
from chaos.faults.roles import HOSTED
from chaos.faults.terms import Options, Terms
from chaos.worlds.world import ProcessState, World

_DAY_S = 86_400
_LEAST_S = 1.0
_BLUR_S = 0.5
"""How long the question for a node's clock may be on its way."""


class ClockSkewOptions(Options, frozen=True):
    """See the module."""

    ahead_s: Annotated[
        float, msgspec.Meta(ge=-_DAY_S, le=_DAY_S, description=f"by {_LEAST_S:g} at least; negative: behind")
    ]


class ClockSkew(HurtProcesses):
    """Gives every target another clock. All that it explains comes of the restarts."""

    KIND: ClassVar[str] = "clock_skew"
    COLOUR: ClassVar[str] = "#009e73"
    TERMS: ClassVar[Terms[ClockSkewOptions]] = Terms(
        roles=HOSTED, duration_s_min=DURATION_S_MIN, options=ClockSkewOptions
    )

    def __init__(self, spec: FaultSpec, nodes: Sequence[str]) -> None:
        self._ahead_s = self.TERMS.read(spec).ahead_s
        if abs(self._ahead_s) < _LEAST_S:
            raise ValueError(
                f"options.ahead_s: expected at least {_LEAST_S:g} s ahead or behind, got {self._ahead_s:g}"
            )
        super().__init__(spec, nodes)

    async def verify_healed(self, world: World, limit_s: float) -> Evidence:
        """See Fault."""
        return await self._with_clocks(world, await super().verify_healed(world, limit_s), 0.0)

    async def _strike(self, world: World, target: str) -> None:
        await world.node_clock(target).set_ahead(self._ahead_s)

    async def _mend(self, world: World, target: str) -> None:
        await world.node_clock(target).set_ahead(0.0)

    async def _proof(self, world: World, limit_s: float) -> Evidence:
        return await self._with_clocks(world, await super()._proof(world, limit_s), self._ahead_s)

    async def _with_clocks(self, world: World, evidence: Evidence, wanted_s: float) -> Evidence:
        found = {target: await world.node_clock(target).ahead() for target in self._targets}
        right = all(abs(ahead_s - wanted_s) < _BLUR_S for ahead_s in found.values())
        clocks = {target: round(ahead_s, 3) for target, ahead_s in found.items()}
        return Evidence(evidence.proved and right, {**evidence.facts, "clock_ahead_s": clocks})

    def _judge(self, target: str, state: ProcessState, members: Members) -> tuple[bool, str]:
        return is_renewed(target, self._before.get(target), state, members)
