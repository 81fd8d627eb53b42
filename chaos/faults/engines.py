"""What the kinds that hurt engines share: how they stand, how long is looked for a proof, and the frame of some."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median
from typing import ClassVar

import msgspec

from chaos.experiment import FaultSpec
from chaos.faults.codes import explained
from chaos.faults.fault import Evidence, Lasting
from chaos.worlds.world import EngineState, Impairment, World
from cluster.errors import Code

PROOF_S = 2.5
"""For how long the proof of a bite is waited for, seconds."""
DURATION_S_MIN = 3.0
ROLES = ("worker",)
_POLL_S = 0.1
_GAPS_MIN = 8

Judge = Callable[[str, EngineState], tuple[bool, str]]
"""Whether a target's engine is as it should be now, and why one may say so."""


async def inspect(world: World, targets: Iterable[str]) -> dict[str, EngineState]:
    """How the targets' engines stand now. Raises HandleError."""
    return {target: await world.engine(target).inspect() for target in targets}


async def watch(world: World, targets: Sequence[str], judge: Judge, limit_s: float) -> Evidence:
    """Look at the targets until `judge` has said yes of each, for at most `limit_s`; the last looks are told."""
    end_s = world.now() + limit_s
    missing, facts = list(targets), dict[str, object]()
    while True:
        for target, state in (await inspect(world, missing)).items():
            yes, why = judge(target, state)
            facts[target] = {"bites": yes, "because": why, "state": told(state)}
            if yes:
                missing.remove(target)
        if not missing or world.now() >= end_s:
            return Evidence(not missing, facts)
        await world.sleep(_POLL_S)


def told(state: EngineState) -> object:
    """A state as evidence."""
    return msgspec.to_builtins(msgspec.structs.replace(state, gaps_s=state.gaps_s[-8:]))


def pace_s(state: EngineState, since: int = 0) -> float | None:
    """The median wait of a stream for its next token, of the last waits after the first `since`; None: too few."""
    fresh = min(state.gaps - since, len(state.gaps_s))
    return median(state.gaps_s[-fresh:]) if fresh >= _GAPS_MIN else None


class ImpairedEngines(Lasting):
    """The frame of the kinds that impair engines and prove it by what these have done since then."""

    CODES: ClassVar[tuple[Code, ...]]
    """What callers may see because of it."""

    def __init__(
        self,
        spec: FaultSpec,
        nodes: Sequence[str],
        impairments: Mapping[str, Impairment],
        *,
        proof_s: float = PROOF_S,
    ) -> None:
        """impairments: by target. proof_s: for how long the proof of the bite is waited for."""
        self._nodes = nodes
        self._impairments = impairments
        self._targets = spec.targets
        self._ttl_s = spec.ttl_s
        self._proof_s = proof_s
        self._since: dict[str, EngineState] = {}
        """How the engines stood when something about them changed: what was until then proves nothing."""

    @property
    def explains(self) -> tuple[str, ...]:
        """See Fault."""
        return explained(self._targets, self._nodes, *self.CODES)

    async def inject(self, world: World) -> None:
        """See Fault."""
        await self._from_now(world)
        for target, impairment in self._impairments.items():
            await world.engine(target).impair(impairment, self._ttl_s)

    async def verify(self, world: World) -> Evidence:
        """See Fault."""
        evidence = await watch(world, self._targets, self._bites, self._proof_s)
        await self._from_now(world)
        return evidence

    async def verify_end(self, world: World) -> Evidence:
        """See Fault. By what has been since the first proof."""
        return await watch(world, self._targets, self._still_bites, 0.0)

    async def heal(self, world: World) -> None:
        """See Fault."""
        for target in self._targets:
            await world.engine(target).restore()
        await self._from_now(world)

    async def verify_healed(self, world: World, limit_s: float) -> Evidence:
        """See Fault."""
        return await watch(world, self._targets, self._is_well, limit_s)

    async def _from_now(self, world: World) -> None:
        self._since = await inspect(world, self._targets)

    def _bites(self, target: str, state: EngineState) -> tuple[bool, str]:
        raise NotImplementedError

    def _still_bites(self, target: str, state: EngineState) -> tuple[bool, str]:
        return self._bites(target, state)

    def _is_well(self, target: str, state: EngineState) -> tuple[bool, str]:
        raise NotImplementedError
