"""Which addresses may be talked to: loopback and private ones, and public ones only where the file names the host."""

import ipaddress
import socket
from urllib.parse import urlsplit

from chaos.target import Target, TargetError


def demand_private(target: Target) -> None:
    """Every URL of a target leads to loopback or a private network, or its host is in allow_public.

    Names are resolved anew: what they mean may change. Raises TargetError.
    """
    for field, url in target.urls().items():
        host = urlsplit(url).hostname or ""
        public = public_address(host)
        if public and host not in target.allow_public:
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
        address = ipaddress.ip_address(text.partition("%")[0])
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        if not (address.is_loopback or address.is_private):
            return text
    return ""
