"""What the embedded server can do besides: time limits, clients by name, connections, faults in NATS messages."""

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from chaos.toxiproxy.embedded.message_toxics import MESSAGE_KINDS
from tests.chaos.toxiproxy.conformance.rig import (
    Pair,
    ProxyUnderTest,
    ServerUnderTest,
    Upstream,
    how_it_ends,
    is_silent,
    read,
)

Make = Callable[..., ProxyUnderTest]


@pytest.fixture
def proxy(embedded: ServerUnderTest, make: Make) -> ProxyUnderTest:
    """A proxy of the embedded server."""
    return make(embedded)


def say(pair: Pair, data: bytes) -> bytes:
    """From the client to the server."""
    pair.client.sendall(data)
    return read(pair.server, len(data))


def introduce(pair: Pair, name: str | None) -> None:
    """As a NATS client does."""
    line = b"CONNECT " + json.dumps({"verbose": False} | ({"name": name} if name else {})).encode() + b"\r\n"
    assert say(pair, line) == line


def pub(number: int, subject: str = "a.b", size: int = 8) -> bytes:
    """A message from a client."""
    return f"PUB {subject} {size}\r\n{number:0{size}d}\r\n".encode()


def connections(proxy: ProxyUnderTest) -> Any:
    """As the API shows them."""
    return proxy.server.call("GET", f"{proxy.path}/connections").json


def awaited(condition: Callable[[], bool]) -> bool:
    """Whether it comes true in time."""
    ends_s = time.monotonic() + 10
    while not condition():
        if time.monotonic() > ends_s:
            return False
        time.sleep(0.01)
    return True


# --- ttl_ms ---


def test_a_toxic_goes_when_its_time_is_up(proxy: ProxyUnderTest, upstream: Upstream) -> None:
    pair = upstream.pair(proxy)
    began_s = time.monotonic()
    proxy.add("bandwidth", name="it", rate=0, ttl_ms=400)
    shown = proxy.state()["toxics"][0]
    assert shown["ttl_ms"] == 400
    assert 0 <= shown["remaining_ms"] <= 400
    pair.server.sendall(b"held")
    assert read(pair.client, 4) == b"held"
    assert time.monotonic() - began_s >= 0.39
    assert awaited(lambda: proxy.state()["toxics"] == [])


def test_a_change_begins_the_time_anew(proxy: ProxyUnderTest) -> None:
    proxy.add("noop", name="it", ttl_ms=60_000)
    assert proxy.update("it", ttl_ms=120_000).json["remaining_ms"] > 60_000
    assert "ttl_ms" not in proxy.update("it", ttl_ms=0).json
    assert proxy.update("it", ttl_ms=50).status == 200
    assert awaited(lambda: proxy.state()["toxics"] == [])


def test_a_toxic_of_the_same_name_has_a_time_of_its_own(proxy: ProxyUnderTest) -> None:
    proxy.add("noop", name="it", ttl_ms=300)
    proxy.remove("it")
    proxy.add("noop", name="it")
    time.sleep(0.5)
    assert [toxic["name"] for toxic in proxy.state()["toxics"]] == ["it"]


@pytest.mark.parametrize("ttl_ms", [-1, "5", 1.5, 2**60])
def test_a_time_that_is_none(proxy: ProxyUnderTest, ttl_ms: object) -> None:
    answer = proxy.server.call("POST", f"{proxy.path}/toxics", {"type": "noop", "ttl_ms": ttl_ms})
    assert (answer.status, "ttl_ms" in answer.json["error"]) == (400, True)


# --- connections and clients ---


def test_who_is_connected(proxy: ProxyUnderTest, upstream: Upstream) -> None:
    assert connections(proxy) == []
    pair = upstream.pair(proxy)
    introduce(pair, "worker-0")
    for number in range(3):
        say(pair, pub(number))
    pair.server.sendall(b"MSG a 1 2\r\nok\r\n+OK\r\n")
    read(pair.client, 20)
    proxy.add("noop", "upstream", name="n")
    (shown,) = connections(proxy)
    assert shown.pop("peer").startswith("127.0.0.1:")
    assert 0 <= shown.pop("opened_s") < 60
    upstream_bytes = len(b'CONNECT {"verbose": false, "name": "worker-0"}\r\n') + 3 * len(pub(0))
    assert shown == {
        "number": 1,
        "client": "worker-0",
        "received_bytes": {"upstream": upstream_bytes, "downstream": 20},
        "sent_bytes": {"upstream": upstream_bytes, "downstream": 20},
        "messages": {"upstream": 3, "downstream": 1},
        "toxics": ["n"],
    }
    second = upstream.pair(proxy)
    assert [item["number"] for item in connections(proxy)] == [1, 2]
    second.client.close()
    assert awaited(lambda: [item["number"] for item in connections(proxy)] == [1])


def test_connections_of_a_proxy_that_is_not_there(embedded: ServerUnderTest) -> None:
    assert embedded.call("GET", "/proxies/none/connections").status == 404
    assert embedded.call("POST", "/proxies/none/connections").status == 405


def test_a_toxic_for_certain_clients(proxy: ProxyUnderTest, upstream: Upstream) -> None:
    early, other, nameless = (upstream.pair(proxy) for _ in range(3))
    introduce(early, "worker-0")
    introduce(other, "worker-1")
    introduce(nameless, None)
    proxy.add("timeout", "upstream", name="it", clients=["worker-0", "worker-2"], timeout=0)
    late = upstream.pair(proxy)
    introduce(late, "worker-2")
    for pair in (early, late):
        pair.client.sendall(pub(1))
    for pair in (other, nameless):
        assert say(pair, pub(1)) == pub(1)
    assert is_silent(early.server, 0.2)
    assert is_silent(late.server, 0.05)
    assert [item["toxics"] for item in connections(proxy)] == [["it"], [], [], ["it"]]
    assert proxy.state()["toxics"][0]["clients"] == ["worker-0", "worker-2"]
    # Only the connections that it concerned are closed by its removal.
    proxy.remove("it")
    assert how_it_ends(early.client) in ("end", "reset")
    assert how_it_ends(late.client) in ("end", "reset")
    assert say(other, pub(2)) == pub(2)


def test_clients_can_be_changed(proxy: ProxyUnderTest, upstream: Upstream) -> None:
    pair = upstream.pair(proxy)
    introduce(pair, "worker-0")
    proxy.add("bandwidth", "upstream", name="it", clients=["worker-0"], rate=0)
    pair.client.sendall(pub(1))
    assert is_silent(pair.server, 0.2)
    assert proxy.update("it", clients=["worker-1"]).json["clients"] == ["worker-1"]
    assert read(pair.server, len(pub(1))) == pub(1)
    assert "clients" not in proxy.update("it", clients=[]).json
    pair.client.sendall(pub(2))
    assert is_silent(pair.server, 0.2)


def test_a_black_hole_that_is_meant_for_others_now_ends_the_connection(
    proxy: ProxyUnderTest, upstream: Upstream
) -> None:
    """Bytes are missing in it, so it cannot go on."""
    pair = upstream.pair(proxy)
    introduce(pair, "worker-0")
    proxy.add("timeout", "upstream", name="it", clients=["worker-0"], timeout=0)
    proxy.update("it", clients=["worker-1"])
    assert how_it_ends(pair.server) == "end"


def test_reset_peer_for_a_certain_client(proxy: ProxyUnderTest, upstream: Upstream) -> None:
    proxy.add("reset_peer", "upstream", clients=["worker-0"], timeout=0)
    pair, other = upstream.pair(proxy), upstream.pair(proxy)
    introduce(other, "worker-1")
    introduce(pair, "worker-0")
    pair.client.sendall(pub(1))
    assert how_it_ends(pair.server) == "reset"
    assert say(other, pub(1)) == pub(1)
    other.client.close()
    assert how_it_ends(other.server) == "end"


@pytest.mark.parametrize("clients", ["worker-0", [5], {"a": 1}, 5])
def test_clients_that_are_no_list_of_names(proxy: ProxyUnderTest, clients: object) -> None:
    answer = proxy.server.call("POST", f"{proxy.path}/toxics", {"type": "noop", "clients": clients})
    assert (answer.status, "toxic.clients: expected a list of strings" in answer.json["error"]) == (400, True)


# --- messages ---


@pytest.mark.parametrize("kind", MESSAGE_KINDS)
def test_message_toxics_are_shown_with_counts(proxy: ProxyUnderTest, kind: str) -> None:
    proxy.add(kind, name="it", subject="a.*")
    shown = proxy.server.call("GET", f"{proxy.path}/toxics/it").json
    assert shown["attributes"] == {**MESSAGE_KINDS[kind], "subject": "a.*"}
    assert shown["counts"].items() >= {"seen": 0, "matched": 0, "affected": 0}.items()


def test_what_a_message_toxic_may_not_be(proxy: ProxyUnderTest) -> None:
    value = {"type": "nats_drop", "name": "it", "attributes": {"share_ppm": -1}}
    answer = proxy.server.call("POST", f"{proxy.path}/toxics", value)
    assert answer.status == 400
    assert answer.json["error"].startswith("bad request body: attribute share_ppm: expected ")
    proxy.add("nats_drop", name="it")
    assert proxy.update("it", attributes={"nonsense": 1}).status == 400
    assert proxy.update("it", attributes={"subject": "x.>"}).json["attributes"]["subject"] == "x.>"


def test_a_drop_takes_whole_messages_of_a_subject(proxy: ProxyUnderTest, upstream: Upstream) -> None:
    pair = upstream.pair(proxy)
    introduce(pair, "w")
    proxy.add("nats_drop", "upstream", name="it", subject="lost.>")
    data = b"".join(pub(n, "lost.x" if n % 2 else "kept.x", 50) for n in range(20))
    kept = b"".join(pub(n, "kept.x", 50) for n in range(0, 20, 2))
    # However it is cut.
    for start in range(0, len(data), 7):
        pair.client.sendall(data[start : start + 7])
    assert read(pair.server, len(kept)) == kept
    counts = proxy.server.call("GET", f"{proxy.path}/toxics/it").json["counts"]
    assert counts.items() >= {"seen": 20, "matched": 10, "affected": 10}.items()
    pair.close()
    assert awaited(lambda: connections(proxy) == [])
    assert proxy.server.call("GET", f"{proxy.path}/toxics/it").json["counts"] == counts


def test_a_message_toxic_comes_and_goes_in_the_middle_of_a_message(proxy: ProxyUnderTest, upstream: Upstream) -> None:
    pair = upstream.pair(proxy)
    introduce(pair, "w")
    one, two, three = (pub(n, size=40) for n in range(3))
    assert say(pair, one[:20]) == one[:20]
    proxy.add("nats_drop", "upstream", name="it")
    # The message that has begun passes; the next one is lost, the one after it only half arrives before the end.
    pair.client.sendall(one[20:] + two + three[:30])
    assert read(pair.server, len(one) - 20) == one[20:]
    assert is_silent(pair.server, 0.2)
    proxy.remove("it")
    pair.client.sendall(three[30:])
    assert read(pair.server, len(three)) == three


def test_a_delay_is_flushed_on_removal(proxy: ProxyUnderTest, upstream: Upstream) -> None:
    pair = upstream.pair(proxy)
    introduce(pair, "w")
    proxy.add("nats_delay", "upstream", name="it", delay=300)
    began_s = time.monotonic()
    assert say(pair, pub(1)) == pub(1)
    assert time.monotonic() - began_s >= 0.29
    proxy.update("it", attributes={"delay": 500_000})
    pair.client.sendall(pub(2) + pub(3))
    assert is_silent(pair.server, 0.2)
    proxy.remove("it")
    assert read(pair.server, 2 * len(pub(2))) == pub(2) + pub(3)


def test_messages_are_judged_before_bytes_are_cut(proxy: ProxyUnderTest, upstream: Upstream) -> None:
    proxy.add("slicer", "upstream", average_size=5, size_variation=1)
    proxy.add("nats_duplicate", "upstream", copies=1)
    proxy.add("nats_drop", "upstream", subject="lost")
    pair = upstream.pair(proxy)
    introduce(pair, "w")
    pair.client.sendall(pub(1) + pub(2, "lost") + pub(3))
    wanted = pub(1) * 2 + pub(3) * 2
    assert read(pair.server, len(wanted)) == wanted


def test_a_message_toxic_lets_pass_what_is_not_nats(proxy: ProxyUnderTest, upstream: Upstream) -> None:
    proxy.add("nats_drop", "upstream", name="it")
    pair = upstream.pair(proxy)
    data = bytes(range(256)) * 1000
    assert say(pair, data) == data
    assert connections(proxy)[0]["client"] is None
    assert proxy.server.call("GET", f"{proxy.path}/toxics/it").json["counts"]["seen"] == 0


def test_held_messages_come_before_the_end(proxy: ProxyUnderTest, upstream: Upstream) -> None:
    proxy.add("nats_delay", "upstream", delay=200)
    proxy.add("nats_reorder", "upstream", window=8, hold=300)
    pair = upstream.pair(proxy)
    introduce(pair, "w")
    pair.client.sendall(pub(1) + pub(2))
    pair.client.close()
    assert sorted((read(pair.server, len(pub(1))), read(pair.server, len(pub(1))))) == [pub(1), pub(2)]
    assert how_it_ends(pair.server) == "end"
