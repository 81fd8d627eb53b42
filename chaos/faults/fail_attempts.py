"""`fail_attempts`: a share of what workers are given fails at once with an error, as with a flaky driver.

A seeded `share` of the attempts (0.01 to 1, default 0.05) ends with ENGINE_ERROR before their first token; `seed`
(default 0) draws which. The worker itself is well, and so are all other attempts. It is proved by attempts that fail at
the target's engine and did not before; the heal, by fresh ones of which none does.
"""

from collections.abc import Sequence
from typing import ClassVar

from chaos.experiment import FaultSpec
from chaos.faults.engines import demand_engine, inspect, watch
from chaos.faults.fault import Evidence, Lasting
from chaos.faults.processes import is_worker
from chaos.faults.roles import number
from chaos.worlds.world import EngineState, Impairment, World
from cluster.errors import Code

_SEED_MAX = 2**31
_FRESH_MIN = 3
_CHANCE = 0.001
"""How likely it may be that the share hits nobody for as long as the proof is waited for."""


class FailAttempts(Lasting):
    """Makes a share of every target's attempts fail."""

    KIND: ClassVar[str] = "fail_attempts"
    COLOUR: ClassVar[str] = "#882255"

    def __init__(self, spec: FaultSpec, nodes: Sequence[str]) -> None:
        demand_engine(spec, ("share", "seed"))
        share = number(spec, "share", 0.05, 0.01, 1.0)
        seed = int(number(spec, "seed", 0, 0, _SEED_MAX))
        # Each target draws for itself, or equal loads would fail together.
        self._impairments = {
            target: Impairment(fail_share=share, seed=seed + place) for place, target in enumerate(spec.targets)
        }
        self._targets = spec.targets
        self._ttl_s = spec.ttl_s
        self._proof_s = spec.duration_s / 2
        self._everybody = all(node in spec.targets for node in nodes if is_worker(node))
        self._since: dict[str, EngineState] = {}

    @property
    def explains(self) -> tuple[str, ...]:
        """See Fault."""
        # A retry is not owed to a request that had used up its attempts or its budget, whatever the last one met.
        codes = [Code.ENGINE_ERROR, Code.DEADLINE_EXCEEDED, Code.FIRST_TOKEN_TIMEOUT, Code.STREAM_STALLED]
        return (*codes, Code.NO_WORKERS_AVAILABLE) if self._everybody else tuple(codes)

    async def inject(self, world: World) -> None:
        """See Fault."""
        self._since = await inspect(world, self._targets)
        for target in self._targets:
            await world.engine(target).impair(self._impairments[target], self._ttl_s)

    async def verify(self, world: World) -> Evidence:
        """See Fault. Rare failures take a while to show, so up to half of the fault is waited for."""
        evidence = await watch(world, self._targets, self._fails, self._proof_s)
        self._since = await inspect(world, self._targets)
        return evidence

    async def verify_end(self, world: World) -> Evidence:
        """See Fault. By the attempts since the first proof."""
        return await watch(world, self._targets, self._still_fails, 0.0)

    async def heal(self, world: World) -> None:
        """See Fault."""
        for target in self._targets:
            await world.engine(target).restore()
        self._since = await inspect(world, self._targets)

    async def verify_healed(self, world: World, limit_s: float) -> Evidence:
        """See Fault."""
        return await watch(world, self._targets, self._is_well, limit_s)

    def _fresh(self, target: str, state: EngineState) -> tuple[int, int]:
        """Attempts since then, and how many of them failed."""
        since = self._since.get(target)
        if since is None or state.inserted < since.inserted:
            return 0, 0
        return state.inserted - since.inserted, state.insertions_failed - since.insertions_failed

    def _fails(self, target: str, state: EngineState) -> tuple[bool, str]:
        fresh, failed = self._fresh(target, state)
        return failed > 0, f"{failed} of {fresh} attempts failed at its engine"

    def _still_fails(self, target: str, state: EngineState) -> tuple[bool, str]:
        """With few attempts none need have failed: then that proves nothing against it."""
        fresh, failed = self._fresh(target, state)
        unlikely = (1 - self._impairments[target].fail_share) ** fresh < _CHANCE
        return failed > 0 or not unlikely, f"{failed} of {fresh} attempts failed at its engine since the first proof"

    def _is_well(self, target: str, state: EngineState) -> tuple[bool, str]:
        fresh, failed = self._fresh(target, state)
        return fresh >= _FRESH_MIN and not failed, f"{failed} of {fresh} attempts failed at its engine"
