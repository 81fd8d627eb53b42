"""`slow_consumer`: a node reads so slowly that the broker loses its patience with it.

Lets a node read no more than 1 kB/s and sends it megabytes (its own messages to itself), so that they pile up at the
broker, which closes the connection after its write deadline of 2 s. The node connects again and meets the same, until
the fault ends. It stands for a process that does not keep up with what it has subscribed to. Proof, for every
connection so treated: bytes wait for it in the broker's own count, or the broker has closed it as a slow consumer.
"""

import contextlib
from collections.abc import Sequence
from typing import ClassVar

from chaos.experiment import FaultSpec
from chaos.faults.fault import Evidence
from chaos.faults.lines import HurtLines, until_healed
from chaos.faults.roles import LINKED
from chaos.faults.terms import Options, Terms
from chaos.worlds.world import ECHO_S, PAYLOAD_BYTES_MAX, HandleError, LinkState, Shape, World

_BYTES_PER_S = 1_000
"""The least that Toxiproxy lets flow. At nothing at all it would be a partition."""
_FLOOD = 12
"""Messages of 900 kB: more than the sockets on the way take (3 MB on Linux) and than may wait at the broker (8 MiB)."""
_FLOOD_EVERY_S = 0.1
"""All of it within two pings, before the node gives up a connection whose pongs wait behind it."""
_PENDING_BYTES_MIN = 65_536
_DROPPED = "Slow Consumer"
"""How the broker begins its reason for closing such a connection."""
_LOOKS = 4
_LOOK_EVERY_S = 0.3
_POLL_S = 0.25
_DURATION_S_MIN = 6.0


class SlowConsumer(HurtLines):
    """Makes every target a slow reader, and gives it too much to read."""

    KIND: ClassVar[str] = "slow_consumer"
    COLOUR: ClassVar[str] = "#994455"
    DEAFENS: ClassVar[bool] = True

    TERMS: ClassVar[Terms[Options]] = Terms(roles=LINKED, duration_s_min=_DURATION_S_MIN, options=Options)

    def __init__(self, spec: FaultSpec, nodes: Sequence[str]) -> None:
        self.TERMS.read(spec)
        super().__init__(spec, nodes)
        self._flooded: dict[str, int] = {}
        self._treated: dict[str, list[int]] = {target: [] for target in spec.targets}
        self._seen: dict[str, dict[int, str]] = {target: {} for target in spec.targets}

    async def inject(self, world: World) -> None:
        """See Fault."""
        shape = Shape(bytes_per_s=_BYTES_PER_S, directions=("downstream",))
        for target in self._targets:
            await world.link(target).shape(shape, self._ttl_s)

    async def verify(self, world: World) -> Evidence:
        """See Fault."""
        for target in self._targets:
            await self._flood(world, target)
        for _ in range(_LOOKS):
            for target in self._targets:
                await self._look(world, target)
            if all(self._seen.values()):
                break
            await world.sleep(_LOOK_EVERY_S)
        return self._evidence()

    async def sustain(self, world: World, until_s: float) -> None:
        """See Fault. Whatever connection a node makes anew is treated as the first one was."""
        while world.now() + ECHO_S < until_s:
            for target in self._targets:
                state = await self._look(world, target)
                if state.connected and state.cid != self._flooded.get(target):
                    await self._flood(world, target)
            await world.sleep(_POLL_S)
        await world.sleep(until_s - world.now())

    async def verify_end(self, world: World) -> Evidence:
        """See Fault."""
        for target in self._targets:
            await self._look(world, target)
        return self._evidence()

    async def verify_healed(self, world: World, limit_s: float) -> Evidence:
        """See Fault. Healed means that the node's present connection answers and nothing waits for it."""

        async def look(target: str) -> tuple[bool, dict[str, object]]:
            state = await world.link(target).inspect()
            pending = state.broker_pending_bytes
            healed = state.connected and state.answered and pending is not None and pending < _PENDING_BYTES_MIN
            return healed, {"pending_bytes": pending}

        return await until_healed(world, self._targets, look, limit_s)

    async def _flood(self, world: World, target: str) -> None:
        """Send more to the node than can be on the way to it. What it sends itself goes up unhindered."""
        link = world.link(target)
        cid = self._flooded[target] = (await link.inspect()).cid

        async def send() -> None:
            # A node that cannot tell whether it came back is looked at all the same.
            with contextlib.suppress(HandleError):
                await link.echo(PAYLOAD_BYTES_MAX)

        for _ in range(_FLOOD):
            # Nobody waits for these to come back.
            world.spawn(send())
            await world.sleep(_FLOOD_EVERY_S)
        state = await self._look(world, target)
        # One that the node itself has left meanwhile says nothing about a reader.
        if cid and (state.cid == cid or cid in self._seen[target]):
            self._treated[target].append(cid)

    async def _look(self, world: World, target: str) -> LinkState:
        """How the link is now; notes what the broker says of the connection that was flooded last."""
        state = await world.link(target).inspect(self._flooded.get(target))
        flooded, pending = self._flooded.get(target), state.broker_pending_bytes or 0
        if flooded is not None:
            seen = self._seen[target]
            if state.broker_reason.startswith(_DROPPED):
                seen[flooded] = f"the broker closed it: {state.broker_reason}"
            elif pending >= _PENDING_BYTES_MIN and flooded not in seen:
                seen[flooded] = f"{pending} bytes waited for it at the broker"
        return state

    def _evidence(self) -> Evidence:
        facts: dict[str, object] = {}
        for target in self._targets:
            seen = self._seen[target]
            missed = [cid for cid in self._treated[target] if cid not in seen]
            bites = bool(seen) and not missed
            why = f"{len(seen)} connections were more than the node read" if bites else _nothing(missed)
            facts[target] = {"bites": bites, "because": why, "connections": {str(c): told for c, told in seen.items()}}
        return Evidence(all(isinstance(told, dict) and told["bites"] for told in facts.values()), facts)


def _nothing(missed: Sequence[int]) -> str:
    return f"nothing waited at the broker for connection {', '.join(str(cid) for cid in missed) or 'at all'}"
