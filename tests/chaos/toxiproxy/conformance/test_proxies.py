"""Proxies: create, show, update, delete."""

import socket
from typing import Any

import pytest

from tests.chaos.toxiproxy.conformance.rig import (
    HOST,
    ProxyUnderTest,
    ServerUnderTest,
    Upstream,
    free_port,
    how_it_ends,
    read,
)

ADDRESS = f"{HOST}:0"


def test_create(server: ServerUnderTest) -> None:
    answer = server.call("POST", "/proxies", {"name": "new", "listen": ADDRESS, "upstream": "somewhere:1"})
    assert (answer.status, answer.kind) == (201, "application/json")
    made = answer.json
    assert made.pop("Logger", {}) == {}
    assert made.pop("listen").startswith(f"{HOST}:")
    assert made == {"name": "new", "upstream": "somewhere:1", "enabled": True, "toxics": []}
    assert server.call("DELETE", "/proxies/new").status == 204


def test_the_port_is_the_real_one(server: ServerUnderTest, proxy: ProxyUnderTest, upstream: Upstream) -> None:
    assert int(proxy.state()["listen"].rpartition(":")[2]) > 0
    pair = upstream.pair(proxy)
    pair.client.sendall(b"there")
    assert read(pair.server, 5) == b"there"
    pair.server.sendall(b"and back")
    assert read(pair.client, 8) == b"and back"


def test_index_is_by_name(server: ServerUnderTest, proxy: ProxyUnderTest) -> None:
    answer = server.call("GET", "/proxies")
    assert (answer.status, answer.kind) == (200, "application/json")
    assert answer.json[proxy.name] == proxy.state()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({}, "missing required field: name"),
        ({"name": ""}, "missing required field: name"),
        ({"name": None, "upstream": "x"}, "missing required field: name"),
        ({"name": "x"}, "missing required field: upstream"),
        ({"name": "x", "upstream": ""}, "missing required field: upstream"),
    ],
)
def test_what_is_needed(server: ServerUnderTest, value: dict[str, Any], message: str) -> None:
    answer = server.call("POST", "/proxies", value)
    assert (answer.status, answer.json["error"]) == (400, message)


@pytest.mark.parametrize("field", [{"name": 5}, {"listen": []}, {"upstream": True}, {"enabled": "yes"}, {"enabled": 1}])
def test_wrong_types(server: ServerUnderTest, field: dict[str, Any]) -> None:
    answer = server.call("POST", "/proxies", {"name": "typed", "listen": ADDRESS, "upstream": "x"} | field)
    assert answer.status == 400
    assert answer.json["error"].startswith("bad request body: ")
    assert server.call("GET", "/proxies/typed").status == 404


def test_a_name_that_is_taken(server: ServerUnderTest, proxy: ProxyUnderTest) -> None:
    answer = server.call("POST", "/proxies", {"name": proxy.name, "listen": "nonsense", "upstream": "x"})
    assert (answer.status, answer.json["error"]) == (409, "proxy already exists")


@pytest.mark.parametrize("listen", ["nonsense", f"{HOST}:99999", "no-such-host.invalid:0", "a:b:c", "127.0.0.1:port"])
def test_a_bad_address(server: ServerUnderTest, listen: str) -> None:
    answer = server.call("POST", "/proxies", {"name": "bad", "listen": listen, "upstream": "x"})
    assert answer.status == 500
    assert answer.json["status"] == 500
    assert server.call("GET", "/proxies/bad").status == 404


def test_a_port_in_use(server: ServerUnderTest, upstream: Upstream) -> None:
    answer = server.call("POST", "/proxies", {"name": "busy", "listen": upstream.address, "upstream": "x"})
    assert answer.status == 500
    assert answer.json["error"] == f"listen tcp {upstream.address}: bind: address already in use"


def test_the_upstream_is_not_checked(server: ServerUnderTest) -> None:
    proxy = server.proxy("certainly nothing")
    with proxy.dial() as client:
        assert how_it_ends(client) == "end"
    proxy.delete()


def test_an_upstream_that_refuses_looks_like_an_accept_and_an_end(server: ServerUnderTest) -> None:
    proxy = server.proxy(f"{HOST}:{free_port()}")
    with proxy.dial() as client:
        assert how_it_ends(client) == "end"
    proxy.delete()


def test_a_disabled_one_keeps_the_text_it_was_given(server: ServerUnderTest) -> None:
    proxy = server.proxy(listen="anything goes", enabled=False)
    state = proxy.state()
    assert (state["listen"], state["enabled"]) == ("anything goes", False)
    proxy.delete()


def test_toxics_in_a_create_are_ignored(server: ServerUnderTest) -> None:
    proxy = server.proxy(toxics=[{"type": "latency"}])
    assert proxy.state()["toxics"] == []
    proxy.delete()


def test_localhost_becomes_an_address(server: ServerUnderTest) -> None:
    proxy = server.proxy(listen="localhost:0")
    assert proxy.state()["listen"].startswith(f"{HOST}:")
    proxy.delete()


def test_ipv6_is_written_in_brackets(server: ServerUnderTest) -> None:
    if not socket.has_ipv6 or not _has_ipv6_loopback():
        pytest.skip("no IPv6 loopback here")
    proxy = server.proxy(listen="[::1]:0")
    assert proxy.state()["listen"].startswith("[::1]:")
    proxy.delete()


def _has_ipv6_loopback() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize("method", ["POST", "PATCH"])
def test_an_update_is_partial(server: ServerUnderTest, proxy: ProxyUnderTest, method: str) -> None:
    before = proxy.state()
    answer = server.call(method, proxy.path, {"upstream": "elsewhere:1", "name": "other"})
    assert (answer.status, answer.kind) == (200, "application/json")
    # The port is the same: it was bound again.
    assert answer.json == before | {"upstream": "elsewhere:1"}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *((method, "/proxies/none") for method in ("GET", "PATCH", "POST", "DELETE")),
        *((method, "/proxies/none/toxics") for method in ("GET", "POST")),
        *((method, "/proxies/none/toxics/x") for method in ("GET", "PATCH", "POST", "DELETE")),
    ],
)
def test_what_is_not_there_is_told_before_the_body_is_read(server: ServerUnderTest, method: str, path: str) -> None:
    answer = server.call(method, path, "rubbish")
    assert (answer.status, answer.json["error"]) == (404, "proxy not found")


def test_an_update_with_the_same_values_drops_nothing(proxy: ProxyUnderTest, upstream: Upstream) -> None:
    pair = upstream.pair(proxy)
    state = proxy.state()
    listen, upstream_text = state["listen"], state["upstream"]
    answer = proxy.server.call("PATCH", proxy.path, {"listen": listen, "upstream": upstream_text, "enabled": True})
    assert answer.status == 200
    pair.client.sendall(b"x")
    assert read(pair.server, 1) == b"x"


def test_an_update_with_the_hostname_of_the_same_address_drops_nothing(
    proxy: ProxyUnderTest, upstream: Upstream
) -> None:
    pair = upstream.pair(proxy)
    port = proxy.state()["listen"].rpartition(":")[2]
    assert proxy.server.call("PATCH", proxy.path, {"listen": f"localhost:{port}"}).status == 200
    pair.client.sendall(b"x")
    assert read(pair.server, 1) == b"x"


def test_a_new_upstream_drops_connections_and_keeps_toxics(proxy: ProxyUnderTest, upstream: Upstream) -> None:
    proxy.add("noop", name="kept")
    pair = upstream.pair(proxy)
    other = Upstream()
    assert proxy.server.call("PATCH", proxy.path, {"upstream": other.address}).status == 200
    assert how_it_ends(pair.client) == "end"
    assert how_it_ends(pair.server) == "end"
    fresh = other.pair(proxy)
    fresh.client.sendall(b"x")
    assert read(fresh.server, 1) == b"x"
    assert [toxic["name"] for toxic in proxy.state()["toxics"]] == ["kept"]
    other.close()


def test_port_zero_always_counts_as_changed(proxy: ProxyUnderTest, upstream: Upstream) -> None:
    pair = upstream.pair(proxy)
    assert proxy.server.call("PATCH", proxy.path, {"listen": ADDRESS}).status == 200
    assert how_it_ends(pair.client) == "end"


def test_an_update_to_a_bad_address_changes_nothing(proxy: ProxyUnderTest) -> None:
    before = proxy.state()
    answer = proxy.server.call("PATCH", proxy.path, {"listen": "nonsense", "upstream": "other:1", "enabled": False})
    assert (answer.status, answer.json["error"]) == (500, "address nonsense: missing port in address")
    assert proxy.state() == before


def test_an_update_that_cannot_bind_leaves_it_disabled_there(proxy: ProxyUnderTest, upstream: Upstream) -> None:
    assert proxy.server.call("PATCH", proxy.path, {"listen": upstream.address}).status == 500
    state = proxy.state()
    assert (state["listen"], state["enabled"]) == (upstream.address, False)


def test_disabling_ends_connections_and_refuses_new_ones(proxy: ProxyUnderTest, upstream: Upstream) -> None:
    pair = upstream.pair(proxy)
    answer = proxy.enable(False)
    assert (answer.status, answer.json["enabled"]) == (200, False)
    assert how_it_ends(pair.client) == "end"
    assert how_it_ends(pair.server) == "end"
    with pytest.raises(ConnectionRefusedError):
        proxy.dial()


def test_enabling_takes_the_same_port_and_the_same_toxics(proxy: ProxyUnderTest, upstream: Upstream) -> None:
    proxy.add("noop", name="kept")
    before = proxy.state()
    upstream.pair(proxy)
    proxy.enable(False)
    assert proxy.enable(True).json == before
    pair = upstream.pair(proxy)
    pair.client.sendall(b"x")
    assert read(pair.server, 1) == b"x"


def test_down_is_no_toxic(proxy: ProxyUnderTest) -> None:
    answer = proxy.server.call("POST", f"{proxy.path}/toxics", {"type": "down"})
    assert (answer.status, answer.json["error"]) == (400, "invalid toxic type")


def test_delete_drops_connections(proxy: ProxyUnderTest, upstream: Upstream) -> None:
    pair = upstream.pair(proxy)
    answer = proxy.delete()
    assert (answer.status, answer.text) == (204, "")
    assert "content-type" not in answer.headers
    assert how_it_ends(pair.client) == "end"
    assert proxy.delete().status == 404


def test_closing_one_side_closes_the_other(proxy: ProxyUnderTest, upstream: Upstream) -> None:
    pair = upstream.pair(proxy)
    pair.client.close()
    assert how_it_ends(pair.server) == "end"
    pair = upstream.pair(proxy)
    pair.server.close()
    assert how_it_ends(pair.client) == "end"


def test_a_half_close_closes_both(proxy: ProxyUnderTest, upstream: Upstream) -> None:
    pair = upstream.pair(proxy)
    pair.client.sendall(b"question")
    pair.client.shutdown(socket.SHUT_WR)
    assert read(pair.server, 9) == b"question"
    assert how_it_ends(pair.client) == "end"


def test_big_data_arrives_whole_both_ways(proxy: ProxyUnderTest, upstream: Upstream) -> None:
    pair = upstream.pair(proxy)
    data = bytes(range(256)) * 2000
    for here, there in ((pair.client, pair.server), (pair.server, pair.client)):
        here.settimeout(0.5)
        there.settimeout(5)
        for start in range(0, len(data), 64_000):
            here.sendall(data[start : start + 64_000])
            assert read(there, len(data[start : start + 64_000])) == data[start : start + 64_000]
