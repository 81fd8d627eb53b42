"""What the kinds have in common that make a node's line bad without cutting it.

Evidence comes from a message that the node sends to itself over the connection that it had before: it goes both ways,
and takes as much longer than before as the shape must make it. Of several the quickest counts, because a busy host can
only make them slower.
"""

from collections.abc import Callable, Coroutine, Sequence
from typing import Any, ClassVar

import msgspec

from chaos.experiment import FaultSpec
from chaos.faults.fault import Evidence
from chaos.faults.roles import LINKED, demand_roles, number
from chaos.worlds.world import ECHO_S, HandleError, Shape, World
from cluster.errors import Code

DIRECTIONS = ("both", "upstream", "downstream")
SHARE_MIN = 0.8
"""Of the least that a shape must add to an echo, how much has to be seen."""
_DURATION_S_MIN = 5.0
_ECHOES = 3
_POLL_S = 0.1


class Probe(msgspec.Struct, frozen=True):
    """A message to oneself of `payload_bytes`, which the shape must make at least `least_s` slower."""

    payload_bytes: int
    least_s: float


class ShapedLine:
    """Shapes every target's line for as long as the fault lasts. Kinds say which shape, and how it shows."""

    KIND: ClassVar[str]

    def __init__(self, spec: FaultSpec, nodes: Sequence[str], shape: Shape, probe: Probe) -> None:
        demand_roles(spec, LINKED)
        if spec.duration_s < _DURATION_S_MIN:
            raise ValueError(f"duration_s: expected at least {_DURATION_S_MIN:g} s, for that long the proofs take")
        assert 0 < probe.least_s < ECHO_S, "it could not be told from a message that is lost"
        self._targets = spec.targets
        self._all_workers = all(node in spec.targets for node in nodes if node.startswith("worker-"))
        self._ttl_s = spec.ttl_s
        self._shape = shape
        self._probe = probe
        self._before: dict[str, float | None] = {}
        self._until_s = 0.0

    @property
    def explains(self) -> tuple[str, ...]:
        """See Fault. A line can be so bad that it is as good as cut."""
        codes = [Code.DEADLINE_EXCEEDED, Code.FIRST_TOKEN_TIMEOUT, Code.STREAM_STALLED, Code.STREAM_BROKEN]
        codes += [Code.WORKER_LOST, Code.WORKER_UNREACHABLE]
        if any(not target.startswith("worker-") for target in self._targets):
            codes.append(Code.CONTROLLER_UNREACHABLE)
        if self._all_workers:
            codes.append(Code.NO_WORKERS_AVAILABLE)
        return tuple(codes)

    async def inject(self, world: World) -> None:
        """See Fault."""
        self._before = await self._each(world, self._quickest)
        for target in self._targets:
            await world.link(target).shape(self._shape, self._ttl_s)

    async def verify(self, world: World) -> Evidence:
        """See Fault."""
        return await self._look(world)

    async def sustain(self, world: World, until_s: float) -> None:
        """See Fault. A line stays as bad as it was made; the last proof is to be over with the fault."""
        self._until_s = until_s
        await world.sleep(until_s - ECHO_S - world.now())

    async def verify_end(self, world: World) -> Evidence:
        """See Fault."""
        evidence = await self._look(world)
        await world.sleep(self._until_s - world.now())
        return evidence

    async def heal(self, world: World) -> None:
        """See Fault."""
        for target in self._targets:
            await world.link(target).restore()

    async def verify_healed(self, world: World, limit_s: float) -> Evidence:
        """See Fault. Healed means that a message to itself is as quick as before, give or take half of the effect."""
        began_s = world.now()
        facts: dict[str, object] = {}
        for target in self._targets:
            while True:
                now_s, before_s = await world.link(target).echo(self._probe.payload_bytes), self._before.get(target)
                quick = now_s is not None and now_s < (before_s or 0.0) + self._probe.least_s / 2
                if quick or world.now() - began_s > limit_s:
                    facts[target] = {"echo_s": now_s, "after_s": round(world.now() - began_s, 3) if quick else None}
                    break
                await world.sleep(_POLL_S)
            if not quick:
                return Evidence(False, facts)
        return Evidence(True, facts)

    async def _look(self, world: World) -> Evidence:
        facts: dict[str, object] = {}
        proved = True
        for target, now_s in (await self._each(world, self._quickest)).items():
            bites, why = judge(self._probe, self._before.get(target), now_s)
            proved = proved and bites
            facts[target] = {
                "bites": bites,
                "because": why,
                "before_s": self._before.get(target),
                "now_s": now_s,
                "payload_bytes": self._probe.payload_bytes,
                "least_s": self._probe.least_s,
            }
        return Evidence(proved, facts)

    async def _each(
        self, world: World, ask: Callable[[World, str], Coroutine[Any, Any, float | None]]
    ) -> dict[str, float | None]:
        """What `ask` says of each target, asked side by side. Raises HandleError when one of them could not tell."""
        found: dict[str, float | None] = {}
        errors: list[HandleError] = []

        async def note(target: str) -> None:
            try:
                found[target] = await ask(world, target)
            except HandleError as error:
                errors.append(error)

        for job in [world.spawn(note(target)) for target in self._targets]:
            await job
        if errors:
            raise errors[0]
        return found

    async def _quickest(self, world: World, target: str) -> float | None:
        """Of a few echoes. One that is not back in time is not asked for again: the next would wait behind it."""
        found: list[float] = []
        for _ in range(_ECHOES):
            echo_s = await world.link(target).echo(self._probe.payload_bytes)
            if echo_s is None:
                break
            found.append(echo_s)
            if sum(found) + min(found) > ECHO_S:
                break
        return min(found, default=None)


def judge(probe: Probe, before_s: float | None, now_s: float | None) -> tuple[bool, str]:
    """Whether the shape bites, and why one may say so, from echoes before it and under it (None: not in time)."""
    if before_s is None:
        return False, "no message to itself came back before the line was made bad"
    if now_s is None:
        return True, f"a message to itself, back after {before_s:.3f} s before, does not come back within {ECHO_S:g} s"
    longer_s = now_s - before_s
    said = f"a message to itself takes {longer_s:.3f} s longer than before"
    if longer_s >= SHARE_MIN * probe.least_s:
        return True, said
    return False, f"{said}, not the {probe.least_s:.3f} s that it must"


def direction_of(spec: FaultSpec) -> tuple[Shape, int]:
    """A shape of nothing yet in the option `direction`, and how many ways that is. Raises ValueError."""
    direction = spec.options.get("direction", "both")
    match direction:
        case "both":
            return Shape(), 2
        case "upstream":
            return Shape(directions=("upstream",)), 1
        case "downstream":
            return Shape(directions=("downstream",)), 1
    raise ValueError(f"options.direction: expected one of {', '.join(DIRECTIONS)}, got {direction!r}")


def whole_number(spec: FaultSpec, option: str, default: int | None, least: int, most: int) -> int:
    """As roles.number, for what Toxiproxy counts in whole numbers. Raises ValueError."""
    value = number(spec, option, default, least, most)
    if value != int(value):
        raise ValueError(f"options.{option}: expected a whole number, got {value:g}")
    return int(value)
