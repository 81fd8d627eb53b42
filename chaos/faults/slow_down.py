"""`slow_down`: workers compute `factor` times as slowly, as a Mac does that grows too hot.

Each step of the engine and each load takes so many times as long (1.5 to 50, default 8); the worker itself and its
heartbeats are as quick as ever. It is proved by the pace of the target's own streams: the median wait for the next
token has grown by at least half of what it should; the heal, when the pace is back.
"""

from collections.abc import Sequence
from typing import ClassVar

from chaos.experiment import FaultSpec
from chaos.faults.engines import PROOF_S, demand_engine, inspect, pace_s, slow_codes, watch
from chaos.faults.fault import Evidence, Lasting
from chaos.faults.roles import number
from chaos.worlds.world import EngineState, Impairment, World


class SlowDown(Lasting):
    """Slows every target's engine down."""

    KIND: ClassVar[str] = "slow_down"
    COLOUR: ClassVar[str] = "#e69f00"

    def __init__(self, spec: FaultSpec, nodes: Sequence[str]) -> None:
        demand_engine(spec, ("factor",))
        self._factor = number(spec, "factor", 8.0, 1.5, 50.0)
        self._targets = spec.targets
        self._ttl_s = spec.ttl_s
        self.explains = slow_codes(spec.targets, nodes)
        self._before: dict[str, EngineState] = {}
        self._since: dict[str, int] = {}

    async def inject(self, world: World) -> None:
        """See Fault."""
        self._before = await inspect(world, self._targets)
        for target in self._targets:
            await world.engine(target).impair(Impairment(slowdown=self._factor), self._ttl_s)
        await self._from_now(world)

    async def verify(self, world: World) -> Evidence:
        """See Fault."""
        evidence = await watch(world, self._targets, self._is_slow, PROOF_S)
        await self._from_now(world)
        return evidence

    async def verify_end(self, world: World) -> Evidence:
        """See Fault. By the last tokens since the first proof."""
        return await watch(world, self._targets, self._is_slow, 0.0)

    async def heal(self, world: World) -> None:
        """See Fault."""
        for target in self._targets:
            await world.engine(target).restore()
        await self._from_now(world)

    async def verify_healed(self, world: World, limit_s: float) -> Evidence:
        """See Fault."""
        return await watch(world, self._targets, self._is_quick, limit_s)

    async def _from_now(self, world: World) -> None:
        """What has been made until now proves nothing about what is to come."""
        self._since = {target: state.gaps for target, state in (await inspect(world, self._targets)).items()}

    def _growth(self, target: str, state: EngineState) -> tuple[float | None, str]:
        before = self._before.get(target)
        usual_s = None if before is None else pace_s(before)
        if usual_s is None:
            return None, "its streams were too few before to tell its pace"
        since = self._since.get(target, 0)
        # A process that was restarted counts from zero.
        present_s = pace_s(state, since if state.gaps >= since else 0)
        if present_s is None:
            return None, "its streams are too few now to tell its pace"
        growth = present_s / usual_s
        return growth, f"a stream waits {1e3 * present_s:.1f} ms for a token, {growth:.1f} times as long as before"

    def _is_slow(self, target: str, state: EngineState) -> tuple[bool, str]:
        growth, why = self._growth(target, state)
        return growth is not None and growth >= (1 + self._factor) / 2, why

    def _is_quick(self, target: str, state: EngineState) -> tuple[bool, str]:
        growth, why = self._growth(target, state)
        return growth is not None and growth < (1 + self._factor) / 2, why
