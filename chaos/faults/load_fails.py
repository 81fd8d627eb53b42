"""`load_fails`: workers that have to load their model cannot, because the weights are gone or damaged.

Each target's process is restarted, so that it must load, and every load raises until the heal, which is another
restart. It is proved when a load has failed in the new process and the worker calls all of its models failed; the heal,
when every controller calls the worker ready and its models are warm.
"""

from collections.abc import Sequence
from typing import ClassVar

from chaos.experiment import FaultSpec
from chaos.faults.engines import PROOF_S, demand_engine, watch
from chaos.faults.fault import Evidence, Lasting
from chaos.faults.processes import Members, Return, explained, inspect, side_by_side
from chaos.worlds.world import EngineState, Impairment, ProcessState, World
from cluster.errors import Code


class LoadFails(Lasting):
    """Makes every target load in vain."""

    KIND: ClassVar[str] = "load_fails"
    COLOUR: ClassVar[str] = "#cc79a7"

    def __init__(self, spec: FaultSpec, nodes: Sequence[str]) -> None:
        demand_engine(spec, ())
        self._targets = spec.targets
        self._ttl_s = spec.ttl_s
        self.explains = explained(spec.targets, nodes, Code.ENGINE_ERROR)
        self._before: dict[str, ProcessState] = {}
        self._members: Members = {}
        self._hurt: list[str] = []

    async def inject(self, world: World) -> None:
        """See Fault."""
        self._before = await inspect(world, self._targets)
        self._members = await world.members()
        await side_by_side(world, [self._hurt_one(world, target) for target in self._targets])

    async def verify(self, world: World) -> Evidence:
        """See Fault."""
        return await watch(world, self._targets, _fails, PROOF_S)

    async def verify_end(self, world: World) -> Evidence:
        """See Fault."""
        return await watch(world, self._targets, _fails, 0.0)

    async def heal(self, world: World) -> None:
        """See Fault."""
        await side_by_side(world, [self._bring_back(world, target) for target in self._hurt])

    async def verify_healed(self, world: World, limit_s: float) -> Evidence:
        """See Fault."""
        began_s = world.now()
        back = await Return(self._before, self._members, self._targets).proof(world, limit_s)
        warm = await watch(world, self._targets, _is_warm, limit_s - (world.now() - began_s))
        return Evidence(back.proved and warm.proved, {"process": back.facts, "engine": warm.facts})

    async def _hurt_one(self, world: World, target: str) -> None:
        self._hurt.append(target)
        await world.engine(target).impair(Impairment(loads_fail=True), self._ttl_s)
        await world.process(target).restart()

    async def _bring_back(self, world: World, target: str) -> None:
        await world.engine(target).restore()
        await world.process(target).restart()
        self._hurt.remove(target)


def _fails(target: str, state: EngineState) -> tuple[bool, str]:
    failed = all(told.startswith("failed") for told in state.models.values())
    if not state.loads_failed or not failed:
        return False, f"{state.loads_failed} of its loads have failed, its models: {_told(state)}"
    return True, f"{state.loads_failed} of its loads have failed, and all its models with them"


def _is_warm(target: str, state: EngineState) -> tuple[bool, str]:
    return set(state.models.values()) == {"warm"}, f"its models: {_told(state)}"


def _told(state: EngineState) -> str:
    return ", ".join(f"{model} {told}" for model, told in state.models.items())
