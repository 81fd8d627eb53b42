"""What the kinds that hurt engines share: whom they can be aimed at, and how long is looked for their proof."""

from collections.abc import Callable, Iterable, Sequence
from statistics import median

import msgspec

from chaos.experiment import FaultSpec
from chaos.faults.fault import Evidence
from chaos.faults.processes import is_worker
from chaos.faults.roles import demand_options, demand_roles
from chaos.worlds.world import EngineState, World
from cluster.errors import Code

PROOF_S = 2.5
"""For how long the proof of a bite is waited for, seconds."""
_DURATION_S_MIN = 3.0
_POLL_S = 0.1
_GAPS_MIN = 8

Judge = Callable[[str, EngineState], tuple[bool, str]]
"""Whether a target's engine is as it should be now, and why one may say so."""


def demand_engine(spec: FaultSpec, options: Sequence[str], *, modes: Sequence[str] = ()) -> None:
    """Raises ValueError unless the spec is about workers, long enough, and has none but these options and modes."""
    demand_roles(spec, ("worker",))
    demand_options(spec, options, modes=modes)
    if spec.duration_s < _DURATION_S_MIN:
        raise ValueError(f"duration_s: expected at least {_DURATION_S_MIN:g} s, for that long the proof takes")


def slow_codes(targets: Sequence[str], nodes: Sequence[str]) -> tuple[str, ...]:
    """Error codes that callers may see when these workers answer late or not at all, and all others in time."""
    codes = [Code.DEADLINE_EXCEEDED, Code.FIRST_TOKEN_TIMEOUT, Code.STREAM_STALLED]
    if all(node in targets for node in nodes if is_worker(node)):
        codes.append(Code.NO_WORKERS_AVAILABLE)
    return tuple(codes)


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
