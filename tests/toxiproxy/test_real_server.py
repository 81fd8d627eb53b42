"""What the adapter assumes about the real server. Cheap (seconds), but the server may have to be built first."""

import socket
import time
from collections.abc import Iterator

import pytest

from chaos.toxiproxy.adapter import Toxic, Toxiproxy, ToxiproxyRefused
from chaos.worlds.proxied import toxics
from chaos.worlds.world import Cut
from tests.toxiproxy.real_server import real_server

pytestmark = [pytest.mark.live, pytest.mark.verify]


@pytest.fixture(scope="module")
def api() -> Iterator[Toxiproxy]:
    with real_server() as server:
        yield server


@pytest.fixture
def upstream() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(5)
        yield listener


def _address(listener: socket.socket) -> str:
    return f"127.0.0.1:{listener.getsockname()[1]}"


def _connect(listen: str) -> socket.socket:
    host, _, port = listen.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=5)


@pytest.mark.parametrize(
    "toxic",
    [
        Toxic("t", "latency", "upstream", {"latency": 200, "jitter": 10}),
        Toxic("t", "bandwidth", attributes={"rate": 0}),
        Toxic("t", "timeout", attributes={"timeout": 0}),
        Toxic("t", "slow_close", attributes={"delay": 3_600_000}),
        Toxic("t", "reset_peer", attributes={"timeout": 0}),
        Toxic("t", "slicer", attributes={"average_size": 10, "size_variation": 10, "delay": 5}),
        Toxic("t", "limit_data", attributes={"bytes": 5}),
        Toxic("t", "latency", attributes={"latency": 1}, toxicity=0.3),
    ],
    ids=repr,
)
def test_every_toxic_is_added_read_back_and_removed(api: Toxiproxy, toxic: Toxic) -> None:
    api.create_proxy("kinds", "127.0.0.1:0", "127.0.0.1:9")
    try:
        assert api.add_toxic("kinds", toxic).name == "t"
        with pytest.raises(ToxiproxyRefused) as caught:
            api.add_toxic("kinds", toxic)
        assert caught.value.status == 409
        assert api.remove_toxic("kinds", "t") == ("replaced" if toxic.type == "timeout" else "removed")
        assert api.remove_toxic("kinds", "t") == "missing"
    finally:
        api.delete_proxy("kinds")


def test_disabling_cuts_and_enabling_restores_the_same_port(api: Toxiproxy, upstream: socket.socket) -> None:
    state = api.create_proxy("cut", "127.0.0.1:0", _address(upstream))
    with _connect(state.listen) as client:
        client.sendall(b"x")
        server, _ = upstream.accept()
        assert not api.set_enabled("cut", False).enabled
        assert client.recv(1) == b""
        server.close()
    with pytest.raises(ConnectionRefusedError):
        _connect(state.listen)
    assert api.set_enabled("cut", True).listen == state.listen
    _connect(state.listen).close()
    assert api.proxies()["cut"].enabled
    api.delete_proxy("cut")
    assert api.proxy("cut") is None


def test_an_occupied_port_is_an_error(api: Toxiproxy, upstream: socket.socket) -> None:
    with pytest.raises(ToxiproxyRefused, match="address already in use"):
        api.create_proxy("busy", _address(upstream), "127.0.0.1:9")
    assert api.proxy("busy") is None


def test_a_proxy_that_cannot_be_bound_again_costs_one_line_and_comes_back_when_its_port_is_free(api: Toxiproxy) -> None:
    """As when a reset switches it off and on, and somebody else takes the port in between."""
    state = api.create_proxy("unbindable", "127.0.0.1:0", "127.0.0.1:9")
    api.set_enabled("unbindable", False)
    host, _, port = state.listen.rpartition(":")
    with socket.create_server((host, int(port))):
        with pytest.raises(ToxiproxyRefused, match="address already in use") as caught:
            api.set_enabled("unbindable", True)
        assert "\n" not in str(caught.value)
        left = api.proxy("unbindable")
        assert left is not None
        assert not left.enabled
    assert api.set_enabled("unbindable", True).listen == state.listen
    api.delete_proxy("unbindable")


def test_a_black_hole_can_be_made_again_after_the_node_has_left_it(api: Toxiproxy, upstream: socket.socket) -> None:
    """Were its toxics removed one by one, the server would crash when the next is added: a link replaces the proxy."""
    state = api.create_proxy("holes", "127.0.0.1:0", _address(upstream))
    servers = []
    for _ in range(3):
        client = _connect(state.listen)
        server, _ = upstream.accept()
        servers.append(server)
        client.sendall(b"x")
        assert server.recv(1) == b"x"
        holes = toxics(Cut.BLACK_HOLE)
        for toxic in holes:
            api.add_toxic("holes", toxic)
        client.sendall(b"lost")
        client.close()
        time.sleep(0.1)
        api.replace_proxy("holes", [toxic.name for toxic in holes])
        assert api.proxies()["holes"].toxics == ()
    api.delete_proxy("holes")
    for server in servers:
        server.close()


def test_a_stall_whose_ends_have_gone_is_removed_in_bounded_time(api: Toxiproxy, upstream: socket.socket) -> None:
    state = api.create_proxy("stall", "127.0.0.1:0", _address(upstream))
    api.add_toxic("stall", Toxic("kept", "noop"))
    pairs = []
    for _ in range(2):
        client = _connect(state.listen)
        server, _ = upstream.accept()
        pairs.append((client, server))
    for stream in ("upstream", "downstream"):
        api.add_toxic("stall", Toxic(f"hold_{stream}", "bandwidth", stream, {"rate": 0}))
    for client, server in pairs:
        client.sendall(b"x" * 100_000)
        server.sendall(b"y" * 100_000)
    time.sleep(0.2)
    for client, _ in pairs:
        client.close()
    time.sleep(0.2)
    started = time.monotonic()
    how = {api.remove_toxic("stall", f"hold_{stream}") for stream in ("upstream", "downstream")}
    # The server's own removal would block 5 s for each connection.
    assert time.monotonic() - started < 6
    assert "replaced" in how
    assert [toxic.name for toxic in api.proxies()["stall"].toxics] == ["kept"]
    assert api.proxies()["stall"].listen == state.listen
    _connect(state.listen).close()
    api.delete_proxy("stall")
    for _, server in pairs:
        server.close()
