"""Addresses to listen on and to connect to, written and resolved as Go's `net` package does."""

import asyncio
import os
import socket
from typing import NamedTuple

from chaos.toxiproxy.embedded.errors import ListenError

_LOOPBACK = "127.0.0.1"
BACKLOG = 1024
"""Clients that may wait to be accepted."""
_LOOKUP_S_MAX = 5.0


class Address(NamedTuple):
    """A resolved address. host: an IP address."""

    host: str
    port: int
    family: socket.AddressFamily

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def split(text: str) -> tuple[str, int]:
    """Host and port of `host:port`, `[host]:port` or `:port`. Raises ListenError."""
    host, colon, port = text.rpartition(":")
    if not colon or (host.startswith("[") != host.endswith("]")):
        raise ListenError(f"address {text}: missing port in address")
    if ":" in host and not host.startswith("["):
        raise ListenError(f"address {text}: too many colons in address")
    if not port:
        return host.strip("[]"), 0
    if not (port.isascii() and port.isdigit()) or len(port) > 5 or int(port) > 65535:
        raise ListenError(f"address {port}: invalid port")
    return host.strip("[]"), int(port)


async def resolve(text: str) -> Address:
    """Where a proxy that is to listen on `text` would do so: loopback where it names no host. Raises ListenError."""
    host, port = split(text) if text else ("", 0)
    host = host or _LOOPBACK
    try:
        async with asyncio.timeout(_LOOKUP_S_MAX):
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except TimeoutError:
        raise ListenError(f"lookup {host}: no answer within {_LOOKUP_S_MAX:.0f} s") from None
    except (OSError, UnicodeError):
        raise ListenError(f"lookup {host}: no such host") from None
    # IPv4 first, as Go has it.
    family, _, _, _, name = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    return Address(str(name[0]), port, family)


async def bind(text: str) -> socket.socket:
    """A socket that listens there. Raises ListenError."""
    try:
        address = await resolve(text)
    except ListenError as error:
        raise ListenError(f"listen tcp: {error.message}") from None
    listener = socket.socket(address.family, socket.SOCK_STREAM)
    try:
        # The port of a proxy that was disabled a moment ago still has connections in TIME_WAIT.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setblocking(False)
        listener.bind((address.host, address.port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        reason = os.strerror(error.errno or 0)
        raise ListenError(f"listen tcp {address}: bind: {reason[:1].lower()}{reason[1:]}") from None
    return listener
