"""`slow_down`: workers compute `factor` times as slowly, as a Mac does that grows too hot.

Each step of the engine and each load takes so many times as long; the worker itself and its
heartbeats are as quick as ever. It is proved by the pace of the target's own streams: the median wait for the next
token has grown by at least half of what it should; the heal, when the pace is back.
"""

from collections.abc import Sequence
from typing import Annotated, ClassVar

import msgspec

from chaos.experiment import FaultSpec
from chaos.faults.codes import LATE
from chaos.faults.engines import DURATION_S_MIN, ROLES, ImpairedEngines, pace_s
from chaos.faults.terms import Options, Terms
from chaos.worlds.world import EngineState, Impairment, World
from cluster.errors import Code


class SlowDownOptions(Options, frozen=True):
    """See the module."""

    factor: Annotated[float, msgspec.Meta(ge=1.5, le=50)] = 8.0


class SlowDown(ImpairedEngines):
    """Slows every target's engine down."""

    KIND: ClassVar[str] = "slow_down"
    COLOUR: ClassVar[str] = "#e69f00"
    TERMS: ClassVar[Terms[SlowDownOptions]] = Terms(roles=ROLES, duration_s_min=DURATION_S_MIN, options=SlowDownOptions)
    CODES: ClassVar[tuple[Code, ...]] = LATE

    def __init__(self, spec: FaultSpec, nodes: Sequence[str]) -> None:
        self._factor = self.TERMS.read(spec).factor
        super().__init__(spec, nodes, dict.fromkeys(spec.targets, Impairment(slowdown=self._factor)))
        self._before: dict[str, EngineState] = {}

    async def inject(self, world: World) -> None:
        """See Fault."""
        await super().inject(world)
        self._before = self._since
        # Steps that were under way then are no slower.
        await self._from_now(world)

    def _growth(self, target: str, state: EngineState) -> tuple[float | None, str]:
        before = self._before.get(target)
        usual_s = None if before is None else pace_s(before)
        if usual_s is None:
            return None, "its streams were too few before to tell its pace"
        since = self._since[target].gaps if target in self._since else 0
        # A process that was restarted counts from zero.
        present_s = pace_s(state, since if state.gaps >= since else 0)
        if present_s is None:
            return None, "its streams are too few now to tell its pace"
        growth = present_s / usual_s
        return growth, f"a stream waits {1e3 * present_s:.1f} ms for a token, {growth:.1f} times as long as before"

    def _bites(self, target: str, state: EngineState) -> tuple[bool, str]:
        growth, why = self._growth(target, state)
        return growth is not None and growth >= (1 + self._factor) / 2, why

    def _is_well(self, target: str, state: EngineState) -> tuple[bool, str]:
        growth, why = self._growth(target, state)
        return growth is not None and growth < (1 + self._factor) / 2, why
