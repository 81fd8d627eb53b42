"""`memory_pressure`: workers may hold less memory than they were started with.

The limit is `bytes`, or `share` of what a worker holds now, or what its weights need and `room_bytes` beyond that; it
comes as an operator's order to the running worker. Kept caches go, what was promised stays, and what does not fit any
more is refused. It is proved when the worker's own ledger is bound by the new limit and the worker calls itself short,
or has given back what it held above it; the heal, when the former limit holds and nothing is short.
"""

from collections.abc import Sequence
from typing import Annotated, ClassVar

import msgspec

from chaos.experiment import FaultSpec
from chaos.faults.codes import explained
from chaos.faults.engines import DURATION_S_MIN, PROOF_S, ROLES, inspect, watch
from chaos.faults.fault import Evidence, Lasting
from chaos.faults.terms import Options, Terms
from chaos.worlds.world import EngineState, World
from cluster.errors import Code

_MIB = 2**20
_MOST_BYTES = 512 * 2**30
"""The largest Mac has no more, so nobody would be short of what lies above it."""


class MemoryPressureOptions(Options, frozen=True):
    """See the module."""

    bytes: Annotated[int, msgspec.Meta(ge=_MIB, le=_MOST_BYTES)] | None = None
    share: Annotated[float, msgspec.Meta(ge=0.01, le=1)] | None = None
    room_bytes: Annotated[int, msgspec.Meta(ge=0, le=_MOST_BYTES)] | None = None


class MemoryPressure(Lasting):
    """Lowers every target's limit."""

    KIND: ClassVar[str] = "memory_pressure"
    COLOUR: ClassVar[str] = "#bbcc33"
    TERMS: ClassVar[Terms[MemoryPressureOptions]] = Terms(
        roles=ROLES, duration_s_min=DURATION_S_MIN, options=MemoryPressureOptions, exactly_one=True
    )

    def __init__(self, spec: FaultSpec, nodes: Sequence[str]) -> None:
        self._options = self.TERMS.read(spec)
        self._targets = spec.targets
        self._ttl_s = spec.ttl_s
        self._nodes = nodes
        self._before: dict[str, EngineState] = {}
        self._limits: dict[str, int] = {}

    @property
    def explains(self) -> tuple[str, ...]:
        """See Fault. Whoever is not refused may have waited too long for room."""
        return explained(self._targets, self._nodes, Code.RESOURCE_LIMIT_EXCEEDED, Code.DEADLINE_EXCEEDED)

    async def inject(self, world: World) -> None:
        """See Fault."""
        self._before = await inspect(world, self._targets)
        for target, state in self._before.items():
            self._limits[target] = self._limit(state)
            await world.engine(target).limit_memory(self._limits[target], self._ttl_s)

    async def verify(self, world: World) -> Evidence:
        """See Fault."""
        return await watch(world, self._targets, self._is_short, PROOF_S)

    async def verify_end(self, world: World) -> Evidence:
        """See Fault."""
        return await watch(world, self._targets, self._is_bound, 0.0)

    async def heal(self, world: World) -> None:
        """See Fault."""
        for target in self._targets:
            await world.engine(target).limit_memory(None, self._ttl_s)

    async def verify_healed(self, world: World, limit_s: float) -> Evidence:
        """See Fault."""
        return await watch(world, self._targets, self._is_free, limit_s)

    def _limit(self, state: EngineState) -> int:
        options = self._options
        if options.share is not None:
            return int(options.share * state.memory_bytes)
        if options.room_bytes is not None:
            return state.weights_bytes + options.room_bytes
        assert options.bytes is not None
        return options.bytes

    def _is_bound(self, target: str, state: EngineState) -> tuple[bool, str]:
        limit, before = self._limits.get(target), self._before.get(target)
        if limit is None or before is None:
            return False, "it was given no limit"
        bound = state.memory_bytes_max
        # What was promised before the limit came may still be above it.
        bound_now = bound is not None and bound <= max(limit, state.memory_bytes)
        if not bound_now or (before.memory_bytes_max is not None and bound == before.memory_bytes_max):
            return False, f"it may hold {bound} bytes, and should {limit}"
        return True, f"it holds {state.memory_bytes} bytes and may {bound}, its pressure is {state.pressure}"

    def _is_short(self, target: str, state: EngineState) -> tuple[bool, str]:
        bound, why = self._is_bound(target, state)
        if not bound:
            return False, why
        gave = self._before[target].memory_bytes > self._limits[target] >= state.memory_bytes
        return state.pressure > 0 or gave, why

    def _is_free(self, target: str, state: EngineState) -> tuple[bool, str]:
        before = self._before.get(target)
        free = before is None or (state.memory_bytes_max == before.memory_bytes_max and not state.pressure)
        return free, f"it holds {state.memory_bytes} bytes and may {state.memory_bytes_max}"
