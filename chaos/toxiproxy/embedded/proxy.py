"""One proxy: where it listens, where it leads, its toxics and its connections."""

import asyncio
import socket
from collections import Counter
from collections.abc import Iterator

from chaos.toxiproxy.embedded import address
from chaos.toxiproxy.embedded.connection import Connection, Endpoint, address_text
from chaos.toxiproxy.embedded.errors import ApiError, ListenError, toxic_not_found
from chaos.toxiproxy.embedded.toxic import DIRECTIONS, Toxic
from chaos.toxiproxy.embedded.traffic import Traffic, TrafficBook, TrafficKey

_CLOSE_S_MAX = 2.0


class Proxy:
    """A named proxy. listen, upstream: `host:port`; while it is disabled, `listen` is as it was given.

    Toxics change at once, without waiting for anything; starting and stopping wait for bounded times and are called
    one at a time.
    """

    def __init__(self, name: str, listen: str, upstream: str, seed: int, book: TrafficBook) -> None:
        self.name = name
        self.listen = listen
        self.upstream = upstream
        self.enabled = False
        self._seed = f"{seed}/{name}"
        self._book = book
        self._toxics: list[Toxic] = []
        self._expiries: dict[str, asyncio.TimerHandle] = {}
        self._server: asyncio.Server | None = None
        self._dials: set[asyncio.Task[None]] = set()
        self._connections: dict[int, Connection] = {}
        self._labels: dict[int, tuple[str, str]] = {}
        self._accepted = 0

    # --- listening ---

    async def start(self) -> None:
        """Listen, unless it does. Raises ListenError."""
        if self.enabled:
            return
        listener = await address.bind(self.listen)
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Endpoint(self._accept), sock=listener, backlog=address.BACKLOG)
        self.listen = address_text(listener.getsockname())
        self.enabled = True

    async def stop(self) -> None:
        """Refuse connections and close those that are open. Waits until their sockets are closed."""
        if not self.enabled:
            return
        self.enabled = False
        if self._server is not None:
            self._server.close()
            self._server = None
        dials = list(self._dials)
        for dial in dials:
            dial.cancel()
        connections = list(self._connections.values())
        for connection in connections:
            connection.abort()
        ends = [*dials, *(connection.ended for connection in connections)]
        if ends:
            await asyncio.wait(ends, timeout=_CLOSE_S_MAX)

    async def close(self) -> None:
        """Stop for good: no task, timer or socket of it stays."""
        await self.stop()
        for expiry in self._expiries.values():
            expiry.cancel()
        self._expiries.clear()

    async def differs(self, listen: str, upstream: str) -> bool:
        """Whether it would have to be restarted for these. Raises ListenError for an address that is none."""
        resolved = await address.resolve(listen)
        return self.listen != str(resolved) or self.upstream != upstream

    async def update(self, listen: str, upstream: str, enabled: bool) -> None:
        """Lead from `listen` to `upstream`. Raises ListenError; if it cannot listen there it stays disabled."""
        if await self.differs(listen, upstream):
            await self.stop()
            self.listen, self.upstream = listen, upstream
        if enabled != self.enabled:
            await (self.start() if enabled else self.stop())

    # --- toxics ---

    def toxics(self) -> list[Toxic]:
        """Those upstream first, then those downstream, in the order in which they came."""
        return [toxic for direction in DIRECTIONS for toxic in self._toxics if toxic.direction == direction]

    def toxic(self, name: str) -> Toxic:
        """Raises ApiError 404."""
        for toxic in self._toxics:
            if toxic.name == name:
                return toxic
        raise toxic_not_found()

    def add_toxic(self, value: object) -> Toxic:
        """A new toxic from a body, at work on open connections as well. Raises ApiError; then nothing has changed."""
        toxic = Toxic.parse(value)
        if any(other.name == toxic.name for other in self._toxics):
            raise ApiError("toxic already exists", 409)
        toxic.change(value)
        self._toxics.append(toxic)
        self._limit(toxic)
        for connection in list(self._connections.values()):
            connection.add(toxic)
        return toxic

    def update_toxic(self, name: str, value: object) -> Toxic:
        """Raises ApiError; then nothing has changed."""
        toxic = self.toxic(name)
        toxic.change(value)
        self._limit(toxic)
        for connection in list(self._connections.values()):
            connection.update(toxic)
        return toxic

    def remove_toxic(self, name: str) -> None:
        """Raises ApiError 404."""
        toxic = self.toxic(name)
        self._toxics.remove(toxic)
        expiry = self._expiries.pop(name, None)
        if expiry is not None:
            expiry.cancel()
        for connection in list(self._connections.values()):
            connection.remove(toxic)

    def remove_toxics(self) -> None:
        """All of them."""
        for toxic in self.toxics():
            self.remove_toxic(toxic.name)

    # --- what it looks like ---

    def toxic_json(self, toxic: Toxic) -> dict[str, object]:
        """A toxic as the API shows it."""
        counts: Counter[str] = Counter()
        for connection in self._connections.values():
            counts += connection.counts(toxic)
        return toxic.to_json(counts, asyncio.get_running_loop().time())

    def to_json(self) -> dict[str, object]:
        """As the API shows it. `Logger` is in what Toxiproxy sends, so somebody may look for it."""
        return {
            "name": self.name,
            "listen": self.listen,
            "upstream": self.upstream,
            "enabled": self.enabled,
            "Logger": {},
            "toxics": [self.toxic_json(toxic) for toxic in self.toxics()],
        }

    def connections(self) -> list[dict[str, object]]:
        """The open connections as the API shows them, by number."""
        return [self._connections[number].to_json() for number in sorted(self._connections)]

    def traffic(self) -> Iterator[tuple[TrafficKey, Traffic]]:
        """What open connections have moved so far."""
        for connection in self._connections.values():
            yield from self._traffic_of(connection)

    # --- connections ---

    def _accept(self, client: Endpoint) -> None:
        if not self.enabled:
            client.abort()
            return
        self._accepted += 1
        dial = asyncio.get_running_loop().create_task(self._dial(self._accepted, client))
        self._dials.add(dial)
        dial.add_done_callback(self._dials.discard)

    async def _dial(self, number: int, client: Endpoint) -> None:
        """Connect to the upstream; the client reads and writes nothing until then, and sees an end if that fails."""
        try:
            host, port = address.split(self.upstream)
            loop = asyncio.get_running_loop()
            _, server = await loop.create_connection(Endpoint, host or "127.0.0.1", port, family=socket.AF_UNSPEC)
        except (OSError, ListenError, UnicodeError):
            client.abort()
            return
        except asyncio.CancelledError:
            client.abort()
            raise
        connection = Connection(number, client, server, self._seed, self._ended)
        if client.lost or not self.enabled:
            connection.abort()
            return
        self._connections[number] = connection
        self._labels[number] = (self.listen, self.upstream)
        connection.begin(self.toxics())

    def _ended(self, connection: Connection) -> None:
        for key, traffic in self._traffic_of(connection):
            self._book.add(key, traffic)
        self._connections.pop(connection.number, None)
        self._labels.pop(connection.number, None)

    def _traffic_of(self, connection: Connection) -> Iterator[tuple[TrafficKey, Traffic]]:
        listener, upstream = self._labels[connection.number]
        for direction, link in connection.links.items():
            yield (
                TrafficKey(direction, self.name, listener, upstream),
                Traffic(link.received_bytes, link.sent_bytes),
            )

    def _limit(self, toxic: Toxic) -> None:
        """A toxic with a time limit goes by itself; a change of the toxic begins the time anew."""
        expiry = self._expiries.pop(toxic.name, None)
        if expiry is not None:
            expiry.cancel()
        if toxic.ttl_ms:
            loop = asyncio.get_running_loop()
            toxic.expires_s = loop.time() + toxic.ttl_ms / 1000
            self._expiries[toxic.name] = loop.call_at(toxic.expires_s, self.remove_toxic, toxic.name)
