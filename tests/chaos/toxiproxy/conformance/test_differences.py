"""What our server deliberately does otherwise (`differences.py`), and the real one's way where that can be shown."""

import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chaos.toxiproxy.embedded.__main__ import main
from chaos.toxiproxy.embedded.differences import DIFFERENCES
from tests.chaos.toxiproxy.conformance.rig import (
    HOST,
    ProxyUnderTest,
    ServerUnderTest,
    Upstream,
    how_it_ends,
    is_silent,
    names,
    read,
    running,
)

Make = Callable[..., ProxyUnderTest]
SHOWN = {
    "slicer_sizes",
    "negative_rate",
    "toxicity_range",
    "omitted_listen",
    "reset",
    "live_counters",
    "removal",
    "slash_in_name",
    "update_of_toxics",
    "latencies_in_a_row",
    "seed",
    "hanging_upstream",
    "start",
    "error_texts",
    "large_bodies",
}


def test_each_difference_is_shown_here() -> None:
    """The byte counters are in `test_metrics.py`, texts of errors need no case of their own."""
    assert set(DIFFERENCES) == SHOWN


@pytest.mark.parametrize(
    ("kind", "attributes", "message"),
    [
        ("slicer", {}, "slicer.average_size: expected bytes of 1 or more, got 0"),
        ("slicer", {"average_size": -5}, "slicer.average_size: expected bytes of 1 or more, got -5"),
        (
            "slicer",
            {"average_size": 5, "size_variation": 6},
            "slicer.size_variation: expected 0 to average_size (5), got 6",
        ),
        (
            "slicer",
            {"average_size": 5, "size_variation": -1},
            "slicer.size_variation: expected 0 to average_size (5), got -1",
        ),
        ("bandwidth", {"rate": -1}, "bandwidth.rate: expected KB/s of 0 or more, got -1"),
    ],
)
def test_what_would_end_the_server(
    server: ServerUnderTest, proxy: ProxyUnderTest, kind: str, attributes: dict[str, int], message: str
) -> None:
    answer = server.call("POST", f"{proxy.path}/toxics", {"type": kind, "attributes": attributes})
    if not server.embedded:
        # No data is sent after this.
        assert answer.status == 200
        return
    assert (answer.status, answer.json["error"]) == (400, f"bad request body: {message}")
    proxy.add(kind, name="it", average_size=5, rate=1)
    assert proxy.update("it", attributes={"rate": -1, "average_size": 0}).status == 400


@pytest.mark.parametrize("toxicity", [7, -1, 1.0001])
def test_toxicity_outside_its_range(server: ServerUnderTest, proxy: ProxyUnderTest, toxicity: float) -> None:
    answer = server.call("POST", f"{proxy.path}/toxics", {"type": "noop", "toxicity": toxicity})
    assert answer.status == (400 if server.embedded else 200)
    assert not server.embedded or "toxicity: expected a number from 0 to 1" in answer.json["error"]


@pytest.mark.parametrize("fields", [{}, {"listen": ""}, {"listen": ":0"}])
def test_where_a_proxy_without_a_host_listens(server: ServerUnderTest, fields: dict[str, str]) -> None:
    answer = server.call("POST", "/proxies", {"name": "omitted", "upstream": "x:1", **fields})
    assert answer.status == 201
    assert answer.json["listen"].startswith(f"{HOST}:" if server.embedded else "[::]:")
    server.call("DELETE", "/proxies/omitted")


def test_reset_does_all_that_can_be_done() -> None:
    with running("embedded") as server:
        good = [server.proxy() for _ in range(6)]
        for proxy in good:
            proxy.add("latency")
            proxy.enable(False)
        bad = [server.proxy(listen="nonsense", enabled=False, name=name) for name in ("a-bad", "z-bad")]
        bad[0].add("noop")
        answer = server.call("POST", "/reset")
        assert (answer.status, answer.json["status"]) == (500, 500)
        assert "proxy a-bad: " in answer.json["error"]
        assert "proxy z-bad: " in answer.json["error"]
        for proxy in good:
            assert (proxy.state()["enabled"], proxy.state()["toxics"]) == (True, [])
        assert bad[0].state()["toxics"] == []


def test_removing_a_stall_whose_peers_have_gone(embedded: ServerUnderTest, make: Make, upstream: Upstream) -> None:
    """The real server blocks 5 s here, for each connection."""
    proxy = make(embedded)
    pairs = [upstream.pair(proxy) for _ in range(5)]
    for stream in ("upstream", "downstream"):
        proxy.add("bandwidth", stream, name=stream, rate=0)
    for pair in pairs:
        for end in pair:
            end.sendall(b"x" * 100_000)
    time.sleep(0.1)
    for pair in pairs:
        pair.client.close()
    assert proxy.remove("upstream") + proxy.remove("downstream") < 3
    for pair in pairs:
        assert read(pair.server, 100_000) == b"x" * 100_000
    ends_s = time.monotonic() + 10
    while embedded.call("GET", f"{proxy.path}/connections").json:
        assert time.monotonic() < ends_s, "connections stay open"
        time.sleep(0.02)


def test_removing_reset_peer_during_its_wait(
    server: ServerUnderTest, proxy: ProxyUnderTest, upstream: Upstream
) -> None:
    wait_s = 600 if server.embedded else 1
    proxy.add("reset_peer", "upstream", name="it", timeout=wait_s * 1000)
    pair = upstream.pair(proxy)
    pair.client.sendall(b"x")
    time.sleep(0.2)
    took_s = proxy.remove("it")
    assert took_s < 10 if server.embedded else took_s > 0.5
    # Its first bytes are lost, so the connection cannot go on.
    assert how_it_ends(pair.server) == "reset"


def test_a_name_with_a_slash(server: ServerUnderTest) -> None:
    proxy = server.proxy(name="a/b")
    if not server.embedded:
        assert server.call("GET", proxy.path).status == 404
        return
    proxy.add("noop", name="c/d//e")
    assert names(proxy.state()["toxics"]) == ["c/d//e"]
    assert server.call("DELETE", f"{proxy.path}/toxics/c%2Fd%2F%2Fe").status == 204
    assert proxy.delete().status == 204


def test_an_update_of_which_a_part_is_wrong(server: ServerUnderTest, proxy: ProxyUnderTest) -> None:
    proxy.add("latency", name="it", latency=1, jitter=1)
    answer = proxy.update("it", attributes={"latency": 9, "jitter": "many"}, toxicity=0.5)
    assert answer.status == 400
    after = server.call("GET", f"{proxy.path}/toxics/it").json
    assert (after["attributes"]["latency"], after["toxicity"]) == (1 if server.embedded else 9, 1)


def test_latencies_in_a_row(server: ServerUnderTest, proxy: ProxyUnderTest, upstream: Upstream) -> None:
    pair = upstream.pair(proxy)
    proxy.add("latency", name="a", latency=300)
    proxy.add("latency", name="b", latency=300)
    pair.server.sendall(b"1")
    time.sleep(0.2)
    began_s = time.monotonic()
    pair.server.sendall(b"2")
    assert read(pair.client, 2) == b"12"
    if server.embedded:
        assert time.monotonic() - began_s >= 0.59


def test_the_seed_decides_whom_toxicity_hits(upstream: Upstream) -> None:
    def hit(seed: str, name: str) -> list[bool]:
        with running("embedded", "-seed", seed) as server:
            proxy = server.proxy(upstream.address, name=name)
            proxy.add("limit_data", bytes=0, toxicity=0.5)
            hits = []
            for _ in range(40):
                pair = upstream.pair(proxy)
                pair.server.sendall(b"x")
                hits.append(read(pair.client, 1) == b"")
            return hits

    first = hit("5", "p")
    assert 0 < sum(first) < 40
    assert hit("5", "p") == first
    assert hit("6", "p") != first
    assert hit("5", "q") != first


def test_disabling_while_an_upstream_does_not_answer(embedded: ServerUnderTest) -> None:
    """Its queue of connections is full, so that a further connect hangs; the real server answers 503 after 25 s."""
    with socket.socket() as full:
        full.bind((HOST, 0))
        full.listen(0)
        address = full.getsockname()
        waiting = []
        for _ in range(4):
            client = socket.socket()
            client.setblocking(False)
            client.connect_ex(address)
            waiting.append(client)
        proxy = embedded.proxy(f"{HOST}:{address[1]}")
        client = proxy.dial()
        assert is_silent(client, 0.2)
        began_s = time.monotonic()
        assert proxy.enable(False).status == 200
        assert time.monotonic() - began_s < 5
        assert how_it_ends(client) in ("end", "reset")
        proxy.delete()
        for other in waiting:
            other.close()


@pytest.mark.parametrize("body", [b"x" * (8 * 1024 * 1024 + 1)])
def test_a_body_beyond_all_measure(embedded: ServerUnderTest, body: bytes) -> None:
    answer = embedded.call("POST", "/proxies", body)
    assert (answer.status, answer.json["error"]) == (400, "bad request body: more than 8388608 bytes")


def test_an_api_port_that_is_taken(upstream: Upstream, capsys: pytest.CaptureFixture[str]) -> None:
    port = upstream.address.rpartition(":")[2]
    assert main(["-port", port]) == 1
    line = f"toxiproxy-embedded: cannot listen on {HOST}:{port}: Address already in use\n"
    assert capsys.readouterr().err == line


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file or directory"),
        ("{", "expected a JSON list of proxies"),
        ("{}", "bad request body: proxies: expected a list"),
        ('[{"name": "a"}]', "missing required field: upstream at proxy 1"),
        ('[{"name": "a", "listen": "x", "upstream": "y"}]', "missing port in address"),
    ],
)
def test_a_configuration_that_is_wrong(
    tmp_path: Path, content: str | None, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "proxies.json"
    if content is not None:
        config.write_text(content)
    assert main(["-port", "0", "-config", str(config)]) == 1
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_a_configuration_that_is_right(tmp_path: Path) -> None:
    config = tmp_path / "proxies.json"
    proxies: list[Any] = [{"name": "a", "listen": f"{HOST}:0", "upstream": "x:1", "enabled": False}]
    config.write_text(str(proxies).replace("'", '"').replace("False", "false"))
    for kind in ("embedded", "real"):
        with running(kind, "-config", str(config)) as server:
            assert server.call("GET", "/proxies/a").json["enabled"] is False
