"""The fault kinds as they are on somebody else's links: the same effects, proved by what can be seen from outside."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import ClassVar

from analysis.schema import EventRow
from chaos.experiment import FaultSpec
from chaos.faults import Evidence, Fault
from chaos.faults.shaped import ShapedLine
from chaos.staging.evidence import (
    LEAST_S,
    PATIENCE_S,
    Before,
    During,
    judge_cut,
    judge_shape,
    least_s,
    padded,
    spoken,
)
from chaos.staging.link import StagingLink
from chaos.staging.witness import Held, Reading
from chaos.toxiproxy.adapter import Toxic
from chaos.worlds.proxied import shape_toxics, toxics
from chaos.worlds.world import Cut, HandleError, Shape, World

_SETTLE_S = 0.2
_RESET_EVERY_S = 3.0
_POLL_S = 0.2
_READINGS = 2
_SLOW_S = 1.0
"""Beyond what a shape must add, how long a connection of ours is waited for."""
_LOUD = (Cut.REFUSE, Cut.RESET)

Links = Mapping[str, StagingLink]


class StagedFault:
    """What the kinds have in common."""

    KIND: ClassVar[str] = "staged"
    COLOUR: ClassVar[str] = "#777777"

    def __init__(self, spec: FaultSpec, explains: Sequence[str], links: Links) -> None:
        """spec: of which the ordinary kind has checked all parameters. explains: by its word. links: of the targets."""
        self._spec = spec
        self._explains = tuple(explains)
        self._links = dict(links)
        self._until_s = 0.0

    @property
    def explains(self) -> tuple[str, ...]:
        """See Fault. Codes of other people's servers are for invariant 9 to know."""
        return self._explains

    @property
    def proof_s(self) -> float:
        """How long a proof takes at most."""
        return _SETTLE_S + max(link.spec.speaks_every_s for link in self._links.values()) + 3 * PATIENCE_S

    def unprovable(self) -> str:
        """Why this fault cannot be proved on these links, whatever happens; empty when it can."""
        if self._spec.duration_s < 2 * self.proof_s:
            return f"duration_s: expected at least {2 * self.proof_s:.1f} s, for that long two proofs take"
        return ""

    @property
    def toxics(self) -> tuple[Toxic, ...]:
        """What it puts on each link, before it has our names."""
        raise NotImplementedError

    def told(self) -> str:
        """What will be taken for a proof, for people."""
        raise NotImplementedError

    def blind(self, readings: Mapping[str, Reading]) -> str:
        """Why these links have no witness for it, by what a connection of ours has seen of each; empty when they do."""
        for name, reading in readings.items():
            if reading.both_s is None and not self._links[name].monitored:
                why = reading.why or "a connection of ours through the proxy is not answered as NATS does"
                return f"{why}, and there is no nats_monitoring with a client_name: nothing would be a proof"
        return ""

    async def prepare(self) -> str:
        """See how the links are, before anything is done. Why nothing could be proved; empty when it could."""
        raise NotImplementedError

    async def inject(self, world: World) -> None:
        """See Fault."""
        raise NotImplementedError

    async def verify(self, world: World) -> Evidence:
        """See Fault."""
        raise NotImplementedError

    async def sustain(self, world: World, until_s: float) -> None:
        """See Fault. The last proof is to be over with the fault."""
        self._until_s = until_s
        await world.sleep(until_s - self.proof_s - world.now())

    async def verify_end(self, world: World) -> Evidence:
        """See Fault."""
        evidence = await self.verify(world)
        await world.sleep(self._until_s - world.now())
        return evidence

    async def heal(self, world: World) -> None:
        """See Fault. All links, also when one cannot be healed."""
        found = await asyncio.gather(*(link.restore() for link in self._links.values()), return_exceptions=True)
        for error in found:
            if isinstance(error, BaseException):
                raise error

    async def verify_healed(self, world: World, limit_s: float) -> Evidence:
        """See Fault: the proxy is as it was at first, and the link is answered."""
        began_s = world.now()
        facts: dict[str, object] = {}
        for name, link in self._links.items():
            why = await _whole(link)
            while why and world.now() - began_s <= limit_s:
                await world.sleep(_POLL_S)
                why = await _whole(link)
            facts[name] = {"whole_after_s": None if why else round(world.now() - began_s, 3), "because": why}
            if why:
                return Evidence(False, facts)
        return Evidence(True, facts)


class StagedCut(StagedFault):
    """Cuts links; `reset` breaks them again and again."""

    KIND: ClassVar[str] = "partition"

    def __init__(self, spec: FaultSpec, explains: Sequence[str], links: Links) -> None:
        super().__init__(spec, explains, links)
        assert spec.mode is not None
        self._cut = Cut(spec.mode)
        self._before: dict[str, Before] = {}
        self._held: dict[str, Held | None] = {}
        self._missed: list[str] = []

    @property
    def toxics(self) -> tuple[Toxic, ...]:
        """See StagedFault."""
        return toxics(self._cut)

    def told(self) -> str:
        """See StagedFault."""
        parts = []
        for name, link in self._links.items():
            broker = (
                f"the broker's counts for {link.spec.client_name}'s own connection, else " if link.monitored else ""
            )
            parts.append(f"{name}: {broker}whether a connection of ours through the proxy is {self._effect}")
        return "; ".join(parts)

    @property
    def _effect(self) -> str:
        return {Cut.REFUSE: "refused", Cut.RESET: "ended", Cut.UPSTREAM: "not answered"}.get(self._cut, "not greeted")

    async def prepare(self) -> str:
        """See StagedFault."""
        found = await asyncio.gather(*(_before(link) for link in self._links.values()))
        self._before = dict(zip(self._links, found, strict=True))
        for name, before in self._before.items():
            link = self._links[name]
            if link.monitored and not before.heard:
                return (
                    f"{name}: the broker lists no connection of {link.spec.client_name!r}, so its link is cut already"
                )
            if before.reading.both_s is None and not (before.heard and before.spoke):
                why = before.reading.why or "a connection of ours through the proxy is not answered"
                return f"{name}: {why}, and the broker does not tell: nothing would be a proof"
        return ""

    async def inject(self, world: World) -> None:
        """See Fault."""
        await self._strike()

    async def _strike(self) -> None:
        for name, link in self._links.items():
            self._held[name] = await link.hold(PATIENCE_S) if self._cut in _LOUD else None
        for link in self._links.values():
            await link.cut(self._cut, self._spec.ttl_s)

    async def verify(self, world: World) -> Evidence:
        """See Fault."""
        await world.sleep(_SETTLE_S)
        found = await asyncio.gather(*(self._prove(world, name) for name in self._links))
        facts: dict[str, object] = dict(zip(self._links, found, strict=True))
        return Evidence(all(each["bites"] for each in found), facts)

    async def _prove(self, world: World, name: str) -> dict[str, object]:
        link, before, held = self._links[name], self._before[name], self._held.get(name)
        early = await link.heard()
        if early is not None and self._cut not in _LOUD:
            await world.sleep(link.spec.speaks_every_s)
        late = await link.heard()
        reading = await link.read(PATIENCE_S)
        held_cut = None if held is None else held.was_cut()
        during = During(early, late, reading, held_cut)
        bites, why = judge_cut(self._cut, before, during)
        return {
            "bites": bites,
            "because": why,
            "heard": {"before": _count(before.heard), "early": _count(early), "late": _count(late)},
            "ours": {"before": _shown(before.reading), "now": _shown(reading), "held_was_cut": held_cut},
        }

    async def sustain(self, world: World, until_s: float) -> None:
        """See Fault."""
        if self._cut is not Cut.RESET:
            return await super().sustain(world, until_s)
        self._until_s = until_s
        strike_s = world.now() + _RESET_EVERY_S
        while strike_s + self.proof_s < until_s:
            await world.sleep(strike_s - world.now())
            why = await self.prepare()
            if why:
                self._missed.append(why)
            for name in self._links:
                world.record(EventRow(world.clock(), "fault_repeated", name))
            await self._strike()
            evidence = await self.verify(world)
            self._missed += [f"{name}: {told['because']}" for name, told in _denied(evidence)]
            strike_s += _RESET_EVERY_S
        return await world.sleep(until_s - world.now())

    async def verify_end(self, world: World) -> Evidence:
        """See Fault. A reset is over at once, so here counts that every one of them has bitten."""
        if self._cut is not Cut.RESET:
            return await super().verify_end(world)
        why = "; ".join(self._missed[:3]) or "every reset broke what was connected"
        return Evidence(not self._missed, {name: {"bites": not self._missed, "because": why} for name in self._links})

    async def heal(self, world: World) -> None:
        """See Fault."""
        for held in self._held.values():
            if held is not None:
                held.close()
        self._held = {}
        await super().heal(world)


class StagedFlap(StagedCut):
    """Cuts links, lets them be up, and so on."""

    KIND: ClassVar[str] = "flap"

    def __init__(self, spec: FaultSpec, explains: Sequence[str], links: Links) -> None:
        super().__init__(spec, explains, links)
        self._up_s, self._down_s = float(spec.options["up_s"]), float(spec.options["down_s"])
        self._strikes = 0

    def unprovable(self) -> str:
        """See StagedFault."""
        least_s = self.proof_s
        if self._down_s < least_s:
            return f"options.down_s: expected at least {least_s:.1f} s, for that long a proof takes"
        return ""

    async def sustain(self, world: World, until_s: float) -> None:
        """See Fault."""
        self._until_s = until_s
        self._strikes, struck_s = 1, world.now() - self.proof_s
        while True:
            await world.sleep(min(struck_s + self._down_s, until_s) - world.now())
            if world.now() >= until_s:
                return None
            await self.heal(world)
            whole = await self.verify_healed(world, until_s - world.now())
            if not whole.proved or world.now() + self._up_s + self._down_s > until_s:
                return await world.sleep(until_s - world.now())
            await world.sleep(self._up_s)
            why = await self.prepare()
            if why:
                self._missed.append(why)
            for name in self._links:
                world.record(EventRow(world.clock(), "fault_repeated", name))
            struck_s = world.now()
            await self._strike()
            self._strikes += 1
            self._missed += [f"{name}: {told['because']}" for name, told in _denied(await self.verify(world))]

    async def verify_end(self, world: World) -> Evidence:
        """See Fault. Every strike has bitten, and there was more than one."""
        fine = self._strikes >= 2 and not self._missed
        why = "; ".join(self._missed[:3]) or f"{self._strikes} strikes, each of which bit"
        return Evidence(fine, {name: {"bites": fine, "because": why} for name in self._links})


class StagedShape(StagedFault):
    """Makes lines bad."""

    KIND: ClassVar[str] = "shape"

    def __init__(self, spec: FaultSpec, explains: Sequence[str], links: Links, shape: Shape) -> None:
        super().__init__(spec, explains, links)
        self._shape = shape
        self._limit_s = least_s(self._shape) + _SLOW_S
        self._before: dict[str, Reading] = {}

    @property
    def toxics(self) -> tuple[Toxic, ...]:
        """See StagedFault."""
        return shape_toxics(self._shape)

    @property
    def proof_s(self) -> float:
        """See StagedFault."""
        return _READINGS * 2 * self._limit_s

    def unprovable(self) -> str:
        """See StagedFault."""
        added_s = least_s(self._shape)
        if added_s < LEAST_S:
            return (
                f"options: it adds {added_s:.3f} s to a connection of ours, and less than {LEAST_S:g} s "
                "cannot be told from chance; make it worse"
            )
        return super().unprovable()

    def told(self) -> str:
        """See StagedFault."""
        return (
            f"a connection of ours through the proxy has its greeting and answer {least_s(self._shape):.2f} s later "
            "than before; what the node's own connection feels cannot be seen"
        )

    def blind(self, readings: Mapping[str, Reading]) -> str:
        """See StagedFault. The broker tells nothing of how slow a link is."""
        for reading in readings.values():
            if reading.both_s is None:
                why = reading.why or "a connection of ours through the proxy is not answered as NATS does"
                return f"{why}: nothing would be a proof"
        return ""

    async def prepare(self) -> str:
        """See StagedFault."""
        self._before = await self._quickest()
        for name, reading in self._before.items():
            if reading.both_s is None:
                return f"{name}: {reading.why or 'a connection of ours through the proxy is not answered'}"
        return ""

    async def inject(self, world: World) -> None:
        """See Fault."""
        for link in self._links.values():
            await link.shape(self._shape, self._spec.ttl_s)

    async def verify(self, world: World) -> Evidence:
        """See Fault."""
        facts: dict[str, object] = {}
        proved = True
        for name, now in (await self._quickest()).items():
            bites, why = judge_shape(self._shape, self._before[name], now, self._limit_s)
            proved = proved and bites
            facts[name] = {
                "bites": bites,
                "because": why,
                "before": _shown(self._before[name]),
                "now": _shown(now),
                "least_s": round(least_s(self._shape), 3),
            }
        return Evidence(proved, facts)

    async def _quickest(self) -> dict[str, Reading]:
        """Of a few, because a busy host can only make them slower."""
        found: dict[str, Reading] = {}
        for name, link in self._links.items():
            readings = [await link.read(self._limit_s, padded=padded(self._shape)) for _ in range(_READINGS)]
            found[name] = min(readings, key=lambda each: float("inf") if each.both_s is None else each.both_s)
        return found


def stage(spec: FaultSpec, ordinary: Fault, links: Links) -> StagedFault:
    """The staged kind of a fault. Raises HandleError for a kind that staging has no handle for."""
    if isinstance(ordinary, ShapedLine):
        return StagedShape(spec, ordinary.explains, links, ordinary._shape)
    if spec.kind == "partition":
        return StagedCut(spec, ordinary.explains, links)
    if spec.kind == "flap":
        return StagedFlap(spec, ordinary.explains, links)
    raise HandleError(f"{spec.kind}: a staging target has only links, through its Toxiproxy; no handle for this kind")


async def _before(link: StagingLink) -> Before:
    early = await link.heard()
    if early is not None:
        await asyncio.sleep(link.spec.speaks_every_s)
    late = await link.heard()
    spoke = 0 if early is None or late is None else spoken(early, late)
    return Before(late, spoke, await link.read(PATIENCE_S))


async def _whole(link: StagingLink) -> str:
    """Why a link is not as it was; empty when it is."""
    left = await link.differences()
    if left:
        return left[0]
    heard = await link.heard()
    if heard is not None and not heard:
        return f"the broker lists no connection of {link.spec.client_name!r}"
    reading = await link.read(PATIENCE_S)
    if heard is None and reading.both_s is None:
        return reading.why or "a connection of ours through the proxy is not answered"
    return ""


def _denied(evidence: Evidence) -> list[tuple[str, dict[str, object]]]:
    return [(name, told) for name, told in evidence.facts.items() if isinstance(told, dict) and not told["bites"]]


def _count(heard: dict[int, int] | None) -> dict[str, int] | None:
    return None if heard is None else {str(cid): count for cid, count in heard.items()}


def _shown(reading: Reading) -> dict[str, object]:
    return {name: getattr(reading, name) for name in reading.__struct_fields__}
