"""A connection of our own through a proxy: what NATS says to it, and how long that takes.

It is a fresh one, so it shows what the proxy does and not what the node's own connection feels. Before anybody logs in,
NATS greets with a line that begins with INFO, and answers a PING (where it demands a login: with an error, which went
both ways as well). Nothing is published or subscribed.
"""

import json
import select
import socket
import time
from typing import Self

import msgspec

from chaos.staging.nats import Broker

GREETING_BYTES = 300
"""NATS's greeting has more than that."""
PADDED_BYTES = 3_400
"""A line of a client may have 4,096."""
_LINE_BYTES_MAX = 2**16
_PING = b"PING\r\n"


class Reading(msgspec.Struct, frozen=True):
    """What one connection saw, in seconds; None: not within the limit. why: it had no connection, empty with one.

    greeting_s: from the connection to the end of the greeting. answer_s: from the PING to its answer.
    """

    greeting_s: float | None = None
    answer_s: float | None = None
    why: str = ""

    @property
    def both_s(self) -> float | None:
        """Greeting and answer together, None unless both came."""
        return None if self.greeting_s is None or self.answer_s is None else self.greeting_s + self.answer_s


class Held:
    """A connection that has been greeted and is kept open, to see whether it lives on."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    @classmethod
    def open(cls, address: tuple[str, int], limit_s: float) -> Self | None:
        """None where there is no greeting within the limit."""
        try:
            connection = socket.create_connection(address, limit_s)
        except OSError:
            return None
        if not _line(connection, time.monotonic() + limit_s).startswith(b"INFO "):
            connection.close()
            return None
        return cls(connection)

    def was_cut(self) -> bool:
        """Whether somebody on the way has ended it; what NATS ends itself, for want of a login, it says so before."""
        try:
            ready, _, _ = select.select([self._connection], [], [], 0)
            return bool(ready) and self._connection.recv(_LINE_BYTES_MAX) == b""
        except OSError:
            return True

    def close(self) -> None:
        """End it."""
        self._connection.close()


def greeted_by(address: tuple[str, int], limit_s: float) -> Broker | None:
    """Who is behind a proxy, by one connection on which nothing is sent; None when nobody greets as NATS does.

    limit_s: for the connection and the greeting together.
    """
    ends_s = time.monotonic() + limit_s
    try:
        connection = socket.create_connection(address, limit_s)
    except OSError:
        return None
    with connection:
        greeting = _line(connection, ends_s)
    # Without a login NATS soon adds its complaint to the greeting, and both may come at once.
    said = greeting.split(b"\r\n", 1)[0]
    if not said.startswith(b"INFO "):
        return None
    try:
        return msgspec.json.decode(said.removeprefix(b"INFO "), type=Broker)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def look(address: tuple[str, int], limit_s: float, padded: bool = False) -> Reading:
    """Connect, be greeted, ping, and close. limit_s: for each of these. padded: send much instead of little."""
    try:
        connection = socket.create_connection(address, limit_s)
    except OSError as error:
        return Reading(why=f"no connection: {error.strerror or error}")
    with connection:
        began_s = time.monotonic()
        greeting = _line(connection, began_s + limit_s)
        greeted_s = time.monotonic()
        if greeting and not greeting.startswith(b"INFO "):
            return Reading(why="whoever is behind the proxy does not greet as NATS does")
        asked = _hello(PADDED_BYTES) + _PING if padded else _PING
        try:
            connection.sendall(asked)
        except OSError as error:
            return Reading(why=f"the connection was ended: {error.strerror or error}")
        # Also without a greeting: what goes the other way may still arrive, and be answered.
        sent_s = time.monotonic()
        answer = _line(connection, sent_s + limit_s) if greeting else b""
        answered_s = time.monotonic()
    return Reading(greeted_s - began_s if greeting else None, answered_s - sent_s if answer else None)


def _hello(size: int) -> bytes:
    said = {"verbose": False, "pedantic": False, "name": "mlx-chaos-witness", "lang": "python", "version": "0"}
    bare = len(json.dumps({**said, "pad": ""}))
    return b"CONNECT " + json.dumps({**said, "pad": "x" * (size - bare - 8)}).encode() + b"\r\n"


def _line(connection: socket.socket, ends_s: float) -> bytes:
    """Up to the end of a line; empty when there is none in time, or the connection ends."""
    data = b""
    try:
        while not data.endswith(b"\n") and len(data) < _LINE_BYTES_MAX:
            left_s = ends_s - time.monotonic()
            if left_s <= 0:
                return b""
            connection.settimeout(left_s)
            piece = connection.recv(_LINE_BYTES_MAX)
            if not piece:
                return b""
            data += piece
    except OSError:
        return b""
    return data
