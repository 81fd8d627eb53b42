"""A node's link behind its own Toxiproxy proxy, seen from both ends."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from chaos.toxiproxy.adapter import Toxic, Toxiproxy, ToxiproxyError, check_toxic
from chaos.undo import DisabledEntry, ToxicEntry, UndoError, UndoLog
from chaos.worlds.world import Cut, Direction, HandleError, LinkState, Shape
from cluster.live.broker import Broker, BrokerUnavailable
from cluster.live.nats import LinkFacts

_FOREVER_MS = 24 * 3_600 * 1_000

_KB = 1_000

LinkCall = Callable[[], Awaitable[tuple[LinkFacts, bool]]]
"""Asks the node for its link's facts, and whether a message to itself came back."""

EchoCall = Callable[[int], Awaitable[float | None]]
"""Asks the node for how long a message to itself of so many bytes takes; None: longer than it waits."""


def toxics(cut: Cut) -> tuple[Toxic, ...]:
    """The toxics that make a cut; none for those that switch the proxy off.

    A stall is a huge latency: unlike a bandwidth of 0 it can be removed at once. In a black hole `slow_close` keeps
    the node's close from the broker, which a cut cable would not carry either.
    """
    both: tuple[tuple[str, Any], ...] = (("up", "upstream"), ("down", "downstream"))
    match cut:
        case Cut.STALL:
            return tuple(Toxic(f"stall_{name}", "latency", way, {"latency": _FOREVER_MS}) for name, way in both)
        case Cut.BLACK_HOLE:
            holes = tuple(Toxic(f"hole_{name}", "timeout", way, {"timeout": 0}) for name, way in both)
            # The holes go first when it is undone, while the closes are still held.
            return (*holes, *(Toxic(f"close_{name}", "slow_close", way, {"delay": _FOREVER_MS}) for name, way in both))
        case Cut.UPSTREAM | Cut.DOWNSTREAM:
            way: Any = cut.value
            return (Toxic(f"hole_{cut.value}", "timeout", way, {"timeout": 0}),)
    return ()


def shape_toxics(shape: Shape) -> tuple[Toxic, ...]:
    """The toxics that make a shape. Raises ValueError for what Toxiproxy's units cannot express."""
    found: list[Toxic] = []
    for way in shape.directions:
        if shape.latency_s or shape.jitter_s:
            attributes = {"latency": round(shape.latency_s * 1_000), "jitter": round(shape.jitter_s * 1_000)}
            found.append(_shaping("latency", way, attributes))
        if shape.bytes_per_s is not None:
            if shape.bytes_per_s < _KB:
                raise ValueError(
                    f"{shape.bytes_per_s} bytes/s: Toxiproxy counts in kB/s, and 1 is the least that flows"
                )
            found.append(_shaping("bandwidth", way, {"rate": round(shape.bytes_per_s / _KB)}))
        if shape.slice_bytes is not None:
            attributes = {"average_size": shape.slice_bytes, "size_variation": shape.slice_variation_bytes}
            found.append(_shaping("slicer", way, {**attributes, "delay": round(shape.slice_delay_s * 1_000_000)}))
    return tuple(found)


def _shaping(kind: str, way: Direction, attributes: dict[str, int]) -> Toxic:
    return Toxic(f"{kind}_{way}", kind, way, attributes)


class ProxiedLink:
    """See chaos.worlds.world.Link. Every change is in the undo log before it is made."""

    def __init__(
        self,
        api: Toxiproxy,
        proxy: str,
        undo: UndoLog,
        broker: Broker,
        node: str,
        ask: LinkCall,
        ask_echo: EchoCall,
    ) -> None:
        self._api = api
        self._proxy = proxy
        self._undo = undo
        self._broker = broker
        self._node = node
        self._ask = ask
        self._ask_echo = ask_echo
        self._lock = asyncio.Lock()
        self._stalled_cid: int | None = None
        self._open: list[tuple[str, Toxic | None]] = []
        self._shaped: list[tuple[str, Toxic]] = []

    async def cut(self, cut: Cut, ttl_s: float) -> None:
        """See Link. When the undo log cannot be written, nothing is changed."""
        # Shielded: a cancelled caller must not leave a change half made while it goes on to heal.
        if cut is Cut.STALL:
            self._stalled_cid = (await self._ask())[0].cid
        await asyncio.shield(self._locked(lambda: self._cut(cut, time.time() + ttl_s)))

    async def shape(self, shape: Shape, ttl_s: float) -> None:
        """See Link. When the undo log cannot be written, nothing is changed."""
        try:
            wanted = shape_toxics(shape)
            for toxic in wanted:
                check_toxic(toxic)
        except (ValueError, ToxiproxyError) as error:
            raise HandleError(f"{self._node}: {error}") from error
        if not wanted:
            raise HandleError(f"{self._node}: the shape has no effect in any direction")
        await asyncio.shield(self._locked(lambda: self._shape(wanted, time.time() + ttl_s)))

    async def echo(self, payload_bytes: int = 0) -> float | None:
        """See Link."""
        return await self._ask_echo(payload_bytes)

    async def restore(self) -> None:
        """See Link. Bytes that a stall holds are delivered to every end that is still on the stalled connection."""
        gone = await self._gone_ends()
        self._stalled_cid = None
        await asyncio.shield(self._locked(lambda: self._restore(gone)))

    async def inspect(self, cid: int | None = None) -> LinkState:
        """See Link."""
        facts, answered = await self._ask()
        wanted = facts.cid if cid is None else cid
        try:
            connections = await asyncio.to_thread(self._broker.all_connections)
        except BrokerUnavailable as error:
            raise HandleError(f"{self._node}: {error}") from error
        listed = next((connection for connection in connections if connection.cid == wanted), None)
        reason = "" if listed is not None or not wanted else await self._closed_reason(wanted)
        return LinkState(
            connected=facts.connected,
            cid=facts.cid,
            answered=answered,
            node_in=facts.messages_in,
            node_out=facts.messages_out,
            broker_in=None if listed is None else listed.in_msgs,
            broker_out=None if listed is None else listed.out_msgs,
            broker_pending_bytes=None if listed is None else listed.pending_bytes,
            broker_reason=reason,
            undecoded=facts.undecoded,
        )

    async def _closed_reason(self, cid: int) -> str:
        try:
            return await asyncio.to_thread(self._broker.closed_reason, cid)
        except BrokerUnavailable as error:
            raise HandleError(f"{self._node}: {error}") from error

    async def _locked(self, change: Callable[[], None]) -> None:
        async with self._lock:
            try:
                await asyncio.to_thread(change)
            except (ToxiproxyError, UndoError) as error:
                raise HandleError(f"{self._node}: {error}") from error

    def _cut(self, cut: Cut, expires_unix_s: float) -> None:
        api, proxy = self._api, self._proxy
        if cut in (Cut.REFUSE, Cut.RESET):
            entry = DisabledEntry(api_url=api.url, proxy=proxy, expires_unix_s=expires_unix_s)
            self._open.append((self._undo.add(entry), None))
            self.switch(False)
            if cut is Cut.RESET:
                self._open_again(frozenset())
            return
        for toxic in toxics(cut):
            undo = ToxicEntry(api_url=api.url, proxy=proxy, toxic=toxic.name, expires_unix_s=expires_unix_s)
            self._open.append((self._undo.add(undo), toxic))
            self.apply(toxic)

    def _shape(self, wanted: tuple[Toxic, ...], expires_unix_s: float) -> None:
        self._unshape()
        for toxic in wanted:
            undo = ToxicEntry(api_url=self._api.url, proxy=self._proxy, toxic=toxic.name, expires_unix_s=expires_unix_s)
            self._shaped.append((self._undo.add(undo), toxic))
            self.apply(toxic)

    def _unshape(self) -> None:
        while self._shaped:
            entry_id, toxic = self._shaped[0]
            self._api.remove_toxic(self._proxy, toxic.name)
            self._undo.done(entry_id)
            self._shaped.pop(0)

    def switch(self, enabled: bool) -> None:
        """Let the proxy take connections, or refuse them."""
        self._api.set_enabled(self._proxy, enabled)

    def apply(self, toxic: Toxic) -> None:
        """Put a toxic in force."""
        self._api.add_toxic(self._proxy, toxic)

    async def _gone_ends(self) -> frozenset[str]:
        """Directions of a stall whose receiving end has given the connection up: nobody is left to deliver to."""
        if self._stalled_cid is None:
            return frozenset()
        try:
            state = await self.inspect(self._stalled_cid)
        except HandleError:
            return frozenset(("upstream", "downstream"))
        ends = {"upstream": state.broker_in is None, "downstream": state.cid != self._stalled_cid}
        return frozenset(way for way, gone in ends.items() if gone)

    def _restore(self, gone: frozenset[str]) -> None:
        self._open_again(gone)
        self._unshape()

    def _open_again(self, gone: frozenset[str]) -> None:
        cut = [toxic for _, toxic in self._open if toxic is not None]
        if any(toxic.type == "timeout" for toxic in cut):
            # To remove these ends every connection anyhow. But of links whose node has gone meanwhile the server keeps
            # something that makes it crash when the next toxic is added (2.12: index out of range in AddToxic).
            self._api.replace_proxy(self._proxy, [toxic.name for toxic in cut])
        while self._open:
            entry_id, toxic = self._open[0]
            if toxic is None:
                self.switch(True)
            elif toxic.stream not in gone:
                self._api.remove_toxic(self._proxy, toxic.name)
            else:
                self._api.replace_proxy(self._proxy, (toxic.name,))
            self._undo.done(entry_id)
            self._open.pop(0)
