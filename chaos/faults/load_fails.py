"""`load_fails`: workers that have to load their model cannot, because the weights are gone or damaged.

Each target's process is restarted, so that it must load, and every load raises until the heal, which is another
restart. It is proved when a load has failed in the new process and the worker calls all of its models failed; the heal,
when every controller calls the worker ready and its models are warm.
"""

from collections.abc import Sequence
from typing import ClassVar

from chaos.experiment import FaultSpec
from chaos.faults.engines import DURATION_S_MIN, PROOF_S, ROLES, watch
from chaos.faults.fault import Evidence
from chaos.faults.hurting import HurtProcesses
from chaos.faults.terms import Options, Terms
from chaos.worlds.world import EngineState, Impairment, World
from cluster.errors import Code


class LoadFails(HurtProcesses):
    """Makes every target load in vain."""

    KIND: ClassVar[str] = "load_fails"
    COLOUR: ClassVar[str] = "#cc79a7"
    TERMS: ClassVar[Terms[Options]] = Terms(roles=ROLES, duration_s_min=DURATION_S_MIN, options=Options)
    CODES: ClassVar[tuple[Code, ...]] = (Code.ENGINE_ERROR,)

    def __init__(self, spec: FaultSpec, nodes: Sequence[str]) -> None:
        self.TERMS.read(spec)
        super().__init__(spec, nodes)

    async def verify(self, world: World) -> Evidence:
        """See Fault."""
        return await self._proof(world, PROOF_S)

    async def verify_healed(self, world: World, limit_s: float) -> Evidence:
        """See Fault."""
        began_s = world.now()
        back = await super().verify_healed(world, limit_s)
        warm = await watch(world, self._targets, _is_warm, limit_s - (world.now() - began_s))
        return Evidence(back.proved and warm.proved, {"process": back.facts, "engine": warm.facts})

    async def _strike(self, world: World, target: str) -> None:
        await world.engine(target).impair(Impairment(loads_fail=True), self._ttl_s)
        await world.process(target).restart()

    async def _mend(self, world: World, target: str) -> None:
        await world.engine(target).restore()
        await super()._mend(world, target)

    async def _proof(self, world: World, limit_s: float) -> Evidence:
        return await watch(world, self._targets, _fails, limit_s)


def _fails(target: str, state: EngineState) -> tuple[bool, str]:
    failed = all(told.startswith("failed") for told in state.models.values())
    if not state.loads_failed or not failed:
        return False, f"{state.loads_failed} of its loads have failed, its models: {_told(state)}"
    return True, f"{state.loads_failed} of its loads have failed, and all its models with them"


def _is_warm(target: str, state: EngineState) -> tuple[bool, str]:
    return set(state.models.values()) == {"warm"}, f"its models: {_told(state)}"


def _told(state: EngineState) -> str:
    return ", ".join(f"{model} {told}" for model, told in state.models.items())
