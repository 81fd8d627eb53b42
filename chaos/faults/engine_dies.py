"""`engine_dies`: the thread that makes the tokens is gone, while its worker still answers and beats.

`silent`: the thread stands still for ever and says nothing, the outage that nobody notices who only asks the port.
`loud`: it ends with an exception, and the worker says so. The heal is a restart of the worker's process. A silent death
is proved when not one token comes, the engine has owed its worker an answer for a second, and the worker's link still
answers; a loud one when the thread is gone and the worker calls its models failed.
"""

from collections.abc import Sequence
from typing import ClassVar, cast

from chaos.experiment import FaultSpec
from chaos.faults.engines import DURATION_S_MIN, PROOF_S, ROLES, inspect, watch
from chaos.faults.fault import Evidence
from chaos.faults.hurting import HurtProcesses
from chaos.faults.terms import Options, Terms
from chaos.worlds.world import Death, EngineState, Impairment, World
from cluster.errors import Code

_SILENT_S = 1.0


class EngineDies(HurtProcesses):
    """Ends every target's engine."""

    KIND: ClassVar[str] = "engine_dies"
    COLOUR: ClassVar[str] = "#aa4499"
    TERMS: ClassVar[Terms[Options]] = Terms(
        roles=ROLES, duration_s_min=DURATION_S_MIN, options=Options, modes=("silent", "loud")
    )
    CODES: ClassVar[tuple[Code, ...]] = (Code.ENGINE_ERROR,)

    def __init__(self, spec: FaultSpec, nodes: Sequence[str]) -> None:
        self.TERMS.read(spec)
        super().__init__(spec, nodes)
        self._death = cast(Death, spec.mode)
        self._tokens: dict[str, int] = {}

    async def inject(self, world: World) -> None:
        """See Fault."""
        await super().inject(world)
        await world.sleep(0.2)
        self._tokens = {target: state.tokens for target, state in (await inspect(world, self._targets)).items()}

    async def verify(self, world: World) -> Evidence:
        """See Fault."""
        return await self._proof(world, PROOF_S)

    async def verify_healed(self, world: World, limit_s: float) -> Evidence:
        """See Fault. Every controller calls the new worker ready, and its engine has made a token."""
        began_s = world.now()
        back = await super().verify_healed(world, limit_s)
        makes = await watch(world, self._targets, _makes, limit_s - (world.now() - began_s))
        return Evidence(back.proved and makes.proved, {"process": back.facts, "engine": makes.facts})

    async def _strike(self, world: World, target: str) -> None:
        await world.engine(target).impair(Impairment(dies=self._death), self._ttl_s)

    async def _mend(self, world: World, target: str) -> None:
        await world.engine(target).restore()
        await super()._mend(world, target)

    async def _proof(self, world: World, limit_s: float) -> Evidence:
        dead = await watch(world, self._targets, self._is_dead, limit_s)
        answers = {target: (await world.link(target).inspect()).answered for target in self._targets}
        return Evidence(dead.proved and all(answers.values()), {"engine": dead.facts, "link_answers": answers})

    def _is_dead(self, target: str, state: EngineState) -> tuple[bool, str]:
        if state.tokens != self._tokens.get(target):
            return False, "its engine still makes tokens"
        if self._death == "loud":
            failed = all(told.startswith("failed") for told in state.models.values())
            dead = failed and not state.alive
            return dead, "its thread is gone and its models have failed" if dead else "its thread or a model is there"
        silent = state.silent_s >= _SILENT_S
        return silent, f"no token has come, and its engine has owed an answer for {state.silent_s:.1f} s"


def _makes(target: str, state: EngineState) -> tuple[bool, str]:
    return state.alive and state.tokens > 0, f"its engine has made {state.tokens} tokens"
