"""Which addresses may be talked to: loopback and private ones, and public ones only where the file names the host."""

import ipaddress
import socket
from collections.abc import Collection, Iterator
from urllib.parse import urlsplit

from chaos.target import Target, TargetError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
"""RFC 6052, 2.1: the last 32 bits are an IPv4 address, which is where it leads."""
_IPV4_COMPATIBLE = ipaddress.IPv6Network("::/96")
"""RFC 4291, 2.5.5.1, given up since; `::` and `::1` are of it by their bits alone."""


def demand_private(target: Target) -> None:
    """Every URL of a target leads to loopback or a private network, or its host is in allow_public.

    Names are resolved anew: what they mean may change. Raises TargetError.
    """
    for field, url in target.urls().items():
        demand_private_host(field, urlsplit(url).hostname or "", target.allow_public)


def demand_private_host(field: str, host: str, allow_public: Collection[str]) -> None:
    """That a host is loopback or private, or allowed by name. Raises TargetError, which begins with the field."""
    if host in allow_public:
        return
    try:
        public = public_address(host)
    except TargetError as error:
        raise TargetError(f"{field}: {error}; allow_public: [{host}] would allow it all the same") from None
    if public:
        where = host if host == public else f"{host} is {public}, which"
        what = f"{where} is neither loopback nor private"
        raise TargetError(f"{field}: {what}; allow_public: [{host}] would allow it")


def public_address(host: str) -> str:
    """An address of the host that is neither loopback nor private; empty when there is none. Raises TargetError."""
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError) as error:
        raise TargetError(f"{host}: its address cannot be found: {error}") from None
    for text in sorted(found):
        if not all(_private(address) for address in _destinations(ipaddress.ip_address(text.partition("%")[0]))):
            return text
    return ""


def _private(address: Address) -> bool:
    # Not everything that is not global is private: 100.64.0.0/10 belongs to a provider's customers.
    return not address.is_global and (address.is_private or address.is_loopback)


def _destinations(address: Address) -> Iterator[Address]:
    """Where packets to an address go in the end: itself, or the IPv4 addresses that it wraps."""
    if isinstance(address, ipaddress.IPv4Address):
        yield address
    elif address.ipv4_mapped is not None:
        yield address.ipv4_mapped
    elif address.sixtofour is not None:
        yield address.sixtofour
    elif address.teredo is not None:
        # The server and the client behind it.
        yield from address.teredo
    elif address in _NAT64 or (address in _IPV4_COMPATIBLE and int(address) > 1):
        yield ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    else:
        yield address
