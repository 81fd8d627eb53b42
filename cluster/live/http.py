"""The HTTP server below the gateway: aiohttp's, with a bound on everything that a peer can hold open."""

import asyncio
import contextlib
import logging
import socket
from typing import Any

import msgspec
from aiohttp import web

from cluster.errors import Code
from cluster.live.openai import INTERNAL_ERROR, Refusal, error_body

_log = logging.getLogger(__name__)
_SHUTDOWN_S = 2.0
_BACKLOG = 512


class Limits(msgspec.Struct, frozen=True):
    """What a peer may hold or delay.

    A connection is closed that brings no whole request head within `idle_s` of its beginning or of the answer before.
    A body has `body_s` to arrive. A reader that leaves more than about 128 kB unread has `reader_s` to take it.
    """

    body_bytes_max: int = 2**20
    head_line_bytes_max: int = 8_190
    head_lines_max: int = 100
    idle_s: float = 30.0
    body_s: float = 15.0
    reader_s: float = 10.0
    connections_max: int = 1_024


class HttpServer:
    """Serves one application on one port."""

    def __init__(self, application: web.Application, limits: Limits) -> None:
        self._limits = limits
        self._options: dict[str, Any] = {
            "access_log": None,
            # A few bytes can be the compressed form of gigabytes.
            "auto_decompress": False,
            "keepalive_timeout": limits.idle_s,
            "lingering_time": 2.0,
            "max_line_size": limits.head_line_bytes_max,
            "max_field_size": limits.head_line_bytes_max,
            "max_headers": limits.head_lines_max,
        }
        # A caller that goes away cancels its handler: that is how the cluster learns of it.
        self._runner = web.AppRunner(application, handler_cancellation=True, shutdown_timeout=_SHUTDOWN_S)
        self._server: asyncio.Server | None = None

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._runner.server.connections) if self._runner.server is not None else 0

    async def start(self, host: str, port: int) -> int:
        """Listen; the port. Raises OSError."""
        await self._runner.setup()
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._connection, host, port, backlog=_BACKLOG)
        bound: int = self._server.sockets[0].getsockname()[1]
        return bound

    def stop_listening(self) -> None:
        """Take no new connection; those that are open stay."""
        if self._server is not None:
            self._server.close()

    async def stop(self) -> None:
        """Close every connection."""
        self.stop_listening()
        await self._runner.cleanup()

    def _connection(self) -> asyncio.Protocol:
        if self.connections >= self._limits.connections_max:
            return _Closed()
        server = self._runner.server
        assert server is not None
        return _Connection(server, loop=asyncio.get_running_loop(), **self._options)


class _Closed(asyncio.Protocol):
    """One connection too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Close it at once, without the wait for a peer that may never read."""
        assert isinstance(transport, asyncio.Transport)
        transport.abort()


class _Connection(web.RequestHandler):
    """aiohttp's, with our error bodies also where no handler of ours was reached."""

    __slots__ = ()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Let the kernel give up a peer that does not take what was sent, where it can."""
        super().connection_made(transport)
        peer = transport.get_extra_info("socket")
        if peer is not None and hasattr(socket, "TCP_USER_TIMEOUT"):
            with contextlib.suppress(OSError):
                peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000)

    def log_exception(self, *arguments: Any, **options: Any) -> None:
        """Of what aiohttp meets beside our handlers, a body that breaks off or is no HTTP is the peer's affair."""
        if not isinstance(options.get("exc_info"), (web.RequestPayloadError, ConnectionError)):
            _log.error(*arguments, **options)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to what is no HTTP (400), or to an error outside our handlers. The connection is closed."""
        if status >= 500:
            _log.error("outside of a handler", exc_info=exc)
        if request.writer.output_size > 0:
            raise ConnectionError("an answer has begun already")
        if status == 400:
            # aiohttp's text shows the bytes that it did not like; who sent them knows them.
            refusal = Refusal(Code.INVALID_REQUEST, "the request is not HTTP/1.1 as this server takes it")
        else:
            refusal = Refusal(INTERNAL_ERROR, "an error of the gateway, see its log")
        body = msgspec.json.encode(error_body(refusal))
        response = web.Response(status=refusal.status, body=body, content_type="application/json")
        response.force_close()
        return response
