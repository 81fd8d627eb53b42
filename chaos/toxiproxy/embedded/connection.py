"""One connection through a proxy: a client's socket, the server's, and a link in each direction."""

import asyncio
import socket
import struct
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import cast

from chaos.toxiproxy.embedded.link import Link
from chaos.toxiproxy.embedded.toxic import DIRECTIONS, Direction, Toxic

_BUFFER_BYTES_MAX = 512 * 1024
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
"""SO_LINGER: on, for no time at all."""


class Endpoint(asyncio.Protocol):
    """One socket of a connection: the source of one link and the sink of the other.

    It reads nothing before it has got its links.
    """

    def __init__(self, on_made: "Callable[[Endpoint], None] | None" = None) -> None:
        self.writable = True
        self.lost = False
        self._on_made = on_made
        self._transport: asyncio.Transport | None = None
        self._inbound: Link | None = None
        self._outbound: Link | None = None
        self._on_lost: Callable[[], None] | None = None
        self._resets = False

    @property
    def peer(self) -> str:
        """The address at the other end, `host:port`."""
        name = self._transport.get_extra_info("peername") if self._transport is not None else None
        return address_text(name) if name else ""

    def attach(self, inbound: Link, outbound: Link, on_lost: Callable[[], None]) -> None:
        """Begin to read. on_lost: called once the socket is closed, after both links know."""
        self._inbound, self._outbound, self._on_lost = inbound, outbound, on_lost
        self.go_on()

    def reset_on_close(self) -> None:
        """Close with RST, whenever that will be."""
        self._resets = True
        found = self._transport.get_extra_info("socket") if self._transport is not None else None
        if found is not None and not self.lost:
            # A socket that its peer has reset already takes no options on some systems, and needs none.
            with suppress(OSError):
                cast(socket.socket, found).setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)

    def hold(self) -> None:
        """Read no more for now."""
        if self._transport is not None and not self.lost:
            self._transport.pause_reading()

    def go_on(self) -> None:
        """Read again."""
        if self._transport is not None and not self.lost:
            self._transport.resume_reading()

    def write(self, data: bytes) -> None:
        """Send, or keep what cannot be sent yet; `writable` says when that is too much."""
        if self._transport is not None and not self.lost:
            self._transport.write(data)

    def close(self) -> None:
        """Close once everything is sent; with RST at once where that was asked for."""
        if self._transport is None:
            return
        if self._resets:
            self._transport.abort()
        else:
            self._transport.close()

    def abort(self) -> None:
        """Close now, whatever was still to be sent."""
        if self._transport is not None:
            self._transport.abort()

    # --- asyncio.Protocol ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=_BUFFER_BYTES_MAX)
        self._transport.pause_reading()
        if self._on_made is not None:
            self._on_made(self)

    def data_received(self, data: bytes) -> None:
        assert self._inbound is not None, "nothing is read before there are links"
        self._inbound.feed(data)

    def eof_received(self) -> bool:
        assert self._inbound is not None, "nothing is read before there are links"
        self._inbound.end_input()
        # The socket stays until a link closes it: a toxic may hold that back.
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        if self._inbound is not None and self._outbound is not None:
            self._outbound.sink_gone()
            self._inbound.end_input()
        if self._on_lost is not None:
            self._on_lost()

    def pause_writing(self) -> None:
        self.writable = False

    def resume_writing(self) -> None:
        self.writable = True
        if self._outbound is not None:
            self._outbound.pump()


class Connection:
    """A client's connection number `number` (from 1) through a proxy. Ends when both sockets are closed."""

    def __init__(
        self,
        number: int,
        client: Endpoint,
        server: Endpoint,
        seed: str,
        on_end: "Callable[[Connection], None]",
    ) -> None:
        loop = asyncio.get_running_loop()
        self.number = number
        self.opened_s = loop.time()
        self.ended: asyncio.Future[None] = loop.create_future()
        self._client, self._server = client, server
        self._on_end = on_end
        self._peer = client.peer
        self._name: str | None = None
        seed = f"{seed}/{number}"
        self.links: dict[Direction, Link] = {
            "upstream": Link("upstream", client, server, seed, self._learn_name),
            "downstream": Link("downstream", server, client, seed, None),
        }

    def begin(self, toxics: list[Toxic]) -> None:
        """Put the proxy's toxics in place and let bytes pass."""
        for toxic in toxics:
            self.links[toxic.direction].add(toxic, self._name)
        self._reset_if_asked()
        up, down = self.links["upstream"], self.links["downstream"]
        self._client.attach(up, down, self._socket_lost)
        self._server.attach(down, up, self._socket_lost)

    def add(self, toxic: Toxic) -> None:
        """A new toxic of the proxy."""
        self.links[toxic.direction].add(toxic, self._name)

    def update(self, toxic: Toxic) -> None:
        """A toxic has changed."""
        self.links[toxic.direction].update(toxic, self._name)

    def remove(self, toxic: Toxic) -> None:
        """A toxic is gone."""
        self.links[toxic.direction].remove(toxic, self._name)

    def counts(self, toxic: Toxic) -> Counter[str]:
        """What a message toxic has seen, matched and affected here."""
        return self.links[toxic.direction].counts(toxic)

    def abort(self) -> None:
        """Close both sockets now."""
        self._client.abort()
        self._server.abort()

    def to_json(self) -> dict[str, object]:
        """As the API shows it: bytes and messages from the source, bytes to the sink, the toxics that act now."""
        links = self.links
        return {
            "number": self.number,
            "peer": self._peer,
            "client": self._name,
            "opened_s": round(asyncio.get_running_loop().time() - self.opened_s, 3),
            "received_bytes": {direction: links[direction].received_bytes for direction in DIRECTIONS},
            "sent_bytes": {direction: links[direction].sent_bytes for direction in DIRECTIONS},
            "messages": {direction: links[direction].tap.messages for direction in DIRECTIONS},
            "toxics": [
                placement.toxic.name
                for direction in DIRECTIONS
                for placement in links[direction].placements()
                if placement.acts
            ],
        }

    def _learn_name(self, name: str) -> None:
        self._name = name
        # What is meant for certain clients takes hold after the line in which they say their name.
        self._reset_if_asked()
        for link in self.links.values():
            link.arrange(name)

    def _reset_if_asked(self) -> None:
        toxics = [placement.toxic for link in self.links.values() for placement in link.placements()]
        if any(toxic.kind == "reset_peer" and toxic.concerns(self._name) for toxic in toxics):
            # Whatever its toxicity, as Toxiproxy does.
            self._client.reset_on_close()
            self._server.reset_on_close()

    def _socket_lost(self) -> None:
        if self._client.lost and self._server.lost and not self.ended.done():
            for link in self.links.values():
                link.abandon()
            self.ended.set_result(None)
            self._on_end(self)


def address_text(name: tuple[str, int] | tuple[str, int, int, int]) -> str:
    """A socket's address as `host:port`, with brackets where the host has colons."""
    host, port = name[0], name[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
