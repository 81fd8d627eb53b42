"""What the kinds have in common that make a node's line bad without cutting it.

Evidence comes from a message that the node sends to itself over the connection that it had before: it goes both ways,
and takes as much longer than before as the shape must make it. Of several the quickest counts, because a busy host can
only make them slower.
"""

from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Literal

import msgspec

from chaos.experiment import FaultSpec
from chaos.faults.fault import Evidence
from chaos.faults.lines import HurtLines, until_healed
from chaos.faults.terms import Options
from chaos.worlds.world import ECHO_S, Direction, HandleError, Shape, World

SHARE_MIN = 0.8
"""Of the least that a shape must add to an echo, how much has to be seen."""
DURATION_S_MIN = 5.0
_ECHOES = 3


class Probe(msgspec.Struct, frozen=True):
    """A message to oneself of `payload_bytes`, which the shape must make at least `least_s` slower."""

    payload_bytes: int
    least_s: float


class LineOptions(Options, frozen=True):
    """What every kind of bad line can be told."""

    direction: Literal["both", "upstream", "downstream"] = "both"

    @property
    def directions(self) -> tuple[Direction, ...]:
        """Each way that is meant."""
        return ("upstream", "downstream") if self.direction == "both" else (self.direction,)


class ShapedLine(HurtLines):
    """Shapes every target's line for as long as the fault lasts. Kinds say which shape, and how it shows."""

    def __init__(self, spec: FaultSpec, nodes: Sequence[str], shape: Shape, probe: Probe) -> None:
        assert 0 < probe.least_s < ECHO_S, "it could not be told from a message that is lost"
        super().__init__(spec, nodes)
        self._shape = shape
        self._probe = probe
        self._before: dict[str, float | None] = {}
        self._until_s = 0.0

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

    async def verify_healed(self, world: World, limit_s: float) -> Evidence:
        """See Fault. Healed means that a message to itself is as quick as before, give or take half of the effect."""

        async def look(target: str) -> tuple[bool, dict[str, object]]:
            now_s, before_s = await world.link(target).echo(self._probe.payload_bytes), self._before.get(target)
            quick = now_s is not None and now_s < (before_s or 0.0) + self._probe.least_s / 2
            return quick, {"echo_s": now_s}

        return await until_healed(world, self._targets, look, limit_s)

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
