"""Which addresses are loopback or private, whatever they wrap, and whatever of them a name stands for."""

import socket
from typing import Any

import pytest

from chaos.staging.addresses import demand_private_host, public_address
from chaos.target import TargetError

PRIVATE = {
    "loopback": "127.0.0.1",
    "all of loopback": "127.8.9.1",
    "private": "10.1.2.3",
    "private too": "192.168.0.1",
    "link-local": "fe80::1",
    "loopback in IPv6": "::1",
    "unique local": "fd12:3456::1",
    "mapped private": "::ffff:10.0.0.1",
    "6to4 of a private one": "2002:a00:1::1",
    "NAT64 of a private one": "64:ff9b::a00:1",
}
PUBLIC = {
    "public": "8.8.8.8",
    "public in IPv6": "2001:4860:4860::8888",
    "mapped public": "::ffff:8.8.8.8",
    "6to4": "2002:808:808::1",
    "Teredo by a public server": "2001:0:808:808:0:0:f5ff:fffe",
    "Teredo to a public client": "2001:0:a00:1:0:0:f7f7:f7f7",
    "NAT64": "64:ff9b::808:808",
    "NAT64 of a network's own": "64:ff9b:1::808:808",
    "IPv4-compatible": "::8.8.8.8",
    "of a provider's customers": "100.64.0.1",
    "many": "224.0.0.1",
    "many in IPv6": "ff0e::1",
    "by one number": "134744072",
    "by hexadecimal": "0x08080808",
}


@pytest.mark.parametrize("address", PRIVATE.values(), ids=PRIVATE.keys())
def test_private(address: str) -> None:
    assert public_address(address) == ""
    demand_private_host("field", address, ())


@pytest.mark.parametrize("address", PUBLIC.values(), ids=PUBLIC.keys())
def test_public(address: str) -> None:
    assert public_address(address) != ""
    with pytest.raises(TargetError, match=r"^field: .* is neither loopback nor private; allow_public: \[") as told:
        demand_private_host("field", address, ())
    assert "\n" not in str(told.value)
    demand_private_host("field", address, (address,))


@pytest.mark.parametrize("place", range(3))
def test_every_address_of_a_name_is_looked_at(monkeypatch: pytest.MonkeyPatch, place: int) -> None:
    found = ["10.0.0.1", "127.0.0.1", "fd00::1"]

    def resolve(host: str, *_: Any, **__: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in found]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    assert public_address("rack") == ""
    found[place] = "2002:808:808::1"
    assert public_address("rack") == "2002:808:808::1"
    with pytest.raises(TargetError, match="rack is 2002:808:808::1, which is neither"):
        demand_private_host("field", "rack", ())


def test_a_name_that_means_nothing_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(*_: Any, **__: Any) -> list[Any]:
        raise socket.gaierror("no such name")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with pytest.raises(TargetError, match=r"links.a.upstream: nats: .* allow_public: \[nats\] would allow it"):
        demand_private_host("links.a.upstream", "nats", ())
    demand_private_host("links.a.upstream", "nats", ("nats",))
