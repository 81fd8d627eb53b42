"""What each toxic does to the bytes. Lower bounds of time are strict; upper ones leave room for a busy machine."""

import socket
import time
from typing import Any

import pytest

from tests.chaos.toxiproxy.conformance.rig import (
    PATIENCE_S,
    Pair,
    ProxyUnderTest,
    Upstream,
    how_it_ends,
    is_silent,
    read,
    read_all,
)

STREAMS = ("upstream", "downstream")
SLACK_S = 5.0
"""How much later than it should anything may be."""


def ends(pair: Pair, stream: str) -> tuple[socket.socket, socket.socket]:
    """Who sends and who receives in that direction."""
    return (pair.client, pair.server) if stream == "upstream" else (pair.server, pair.client)


def transfer_s(pair: Pair, stream: str, data: bytes = b"x") -> float:
    """How long the data takes; it has to arrive whole."""
    source, sink = ends(pair, stream)
    began_s = time.monotonic()
    source.sendall(data)
    assert read(sink, len(data)) == data
    return time.monotonic() - began_s


def send_until_held(source: socket.socket, chunk: int, limit: int) -> int:
    """How many bytes it takes before the sender has to wait, for half a second at least."""
    source.settimeout(0.5)
    sent = 0
    try:
        while sent < limit:
            sent += source.send(b"x" * chunk)
    except TimeoutError:
        return sent
    finally:
        source.settimeout(PATIENCE_S)
    raise AssertionError("nothing holds it back")


# --- latency ---


@pytest.mark.parametrize("stream", STREAMS)
def test_latency_delays_one_direction_of_an_open_connection(
    proxy: ProxyUnderTest, upstream: Upstream, stream: str
) -> None:
    pair = upstream.pair(proxy)
    proxy.add("latency", stream, latency=200)
    other = STREAMS[stream == "upstream"]
    assert 0.199 <= transfer_s(pair, stream) < 0.2 + SLACK_S
    proxy.update(proxy.state()["toxics"][0]["name"], attributes={"latency": 600_000})
    assert transfer_s(pair, other) < SLACK_S


def test_latencies_add_up(proxy: ProxyUnderTest, upstream: Upstream) -> None:
    pair = upstream.pair(proxy)
    proxy.add("latency", latency=150, name="a")
    proxy.add("latency", latency=200, name="b")
    assert 0.34 <= transfer_s(pair, "downstream") < 0.35 + SLACK_S


def test_latency_does_not_slow_a_burst(proxy: ProxyUnderTest, upstream: Upstream) -> None:
    """Each chunk is held for the latency, not one after the other."""
    pair = upstream.pair(proxy)
    proxy.add("latency", latency=250)
    began_s = time.monotonic()
    for _ in range(25):
        pair.server.sendall(b"x" * 100)
        time.sleep(0.005)
    read(pair.client, 2500)
    assert 0.25 <= time.monotonic() - began_s < 0.25 + SLACK_S


def test_jitter_stays_within_its_bounds_and_keeps_the_order(proxy: ProxyUnderTest, upstream: Upstream) -> None:
    pair = upstream.pair(proxy)
    proxy.add("latency", latency=60, jitter=50)
    taken_s = [transfer_s(pair, "downstream") for _ in range(8)]
    assert min(taken_s) >= 0.009
    assert max(taken_s) - min(taken_s) > 0.005
    for number in range(30):
        pair.server.sendall(b"%03d" % number)
        time.sleep(0.001)
    assert read(pair.client, 90) == b"".join(b"%03d" % number for number in range(30))


def test_negative_jitter_is_none(proxy: ProxyUnderTest, upstream: Upstream) -> None:
    pair = upstream.pair(proxy)
    proxy.add("latency", latency=100, jitter=-90)
    assert all(transfer_s(pair, "downstream") >= 0.099 for _ in range(4))


def test_latency_holds_neither_the_connect_nor_a_bare_end(proxy: ProxyUnderTest, upstream: Upstream) -> None:
    for stream in STREAMS:
        proxy.add("latency", stream, latency=20_000)
    pair = upstream.pair(proxy)
    pair.client.close()
    assert how_it_ends(pair.server) == "end"


def test_the_end_comes_after_delayed_data(proxy: ProxyUnderTest, upstream: Upstream) -> None:
    proxy.add("latency", latency=200)
    pair = upstream.pair(proxy)
    pair.server.sendall(b"last words")
    pair.server.close()
    began_s = time.monotonic()
    assert read_all(pair.client) == b"last words"
    assert time.monotonic() - began_s >= 0.15


def test_latency_buffers_much_and_not_all(proxy: ProxyUnderTest, upstream: Upstream) -> None:
    pair = upstream.pair(proxy)
    proxy.add("latency", latency=600_000)
    sent = send_until_held(pair.server, 32_768, 300_000_000)
    # About 1024 chunks of at most 32 KiB, and what the kernel holds.
    assert sent > 1_000_000


@pytest.mark.parametrize("stream", STREAMS)
def test_removing_latency_releases_what_it_held(proxy: ProxyUnderTest, upstream: Upstream, stream: str) -> None:
    pair = upstream.pair(proxy)
    proxy.add("latency", stream, latency=600_000, name="it")
    source, sink = ends(pair, stream)
    for number in range(50):
        source.sendall(b"%04d" % number * 100)
        time.sleep(0.001)
    assert is_silent(sink, 0.2)
    assert proxy.remove("it") < SLACK_S
    assert read(sink, 20_000) == b"".join(b"%04d" % number * 100 for number in range(50))


def test_updating_latency_acts_on_an_open_connection(proxy: ProxyUnderTest, upstream: Upstream) -> None:
    pair = upstream.pair(proxy)
    proxy.add("latency", latency=600_000, name="it")
    proxy.update("it", attributes={"latency": 150})
    assert 0.149 <= transfer_s(pair, "downstream") < 0.15 + SLACK_S


# --- bandwidth ---


def test_bandwidth_limits_the_rate(proxy: ProxyUnderTest, upstream: Upstream) -> None:
    pair = upstream.pair(proxy)
    proxy.add("bandwidth", rate=100)
    # 1 KB is 1000 bytes.
    assert 0.49 <= transfer_s(pair, "downstream", b"x" * 50_000) < 0.5 + SLACK_S
    proxy.update("bandwidth_downstream", attributes={"rate": 0})
    assert transfer_s(pair, "upstream", b"x" * 50_000) < SLACK_S


def test_bandwidth_sends_big_chunks_in_pieces(proxy: ProxyUnderTest, upstream: Upstream) -> None:
    pair = upstream.pair(proxy)
    proxy.add("bandwidth", rate=20)
    pair.server.sendall(b"x" * 12_000)
    began_s = time.monotonic()
    first = pair.client.recv(100_000)
    assert len(first) % 2000 == 0
    assert len(first) < 12_000
    assert time.monotonic() - began_s >= 0.09
    read(pair.client, 12_000 - len(first))
    assert 0.55 <= time.monotonic() - began_s < 0.6 + SLACK_S


@pytest.mark.parametrize("stream", STREAMS)
def test_rate_zero_stalls_and_loses_nothing(proxy: ProxyUnderTest, upstream: Upstream, stream: str) -> None:
    pair = upstream.pair(proxy)
    proxy.add("bandwidth", stream, rate=0, name="stall")
    source, sink = ends(pair, stream)
    source.sendall(b"held back")
    assert is_silent(sink, 0.15)
    assert proxy.remove("stall") < SLACK_S
    assert read(sink, 9) == b"held back"


def test_a_stall_holds_the_sender_back(proxy: ProxyUnderTest, upstream: Upstream) -> None:
    pair = upstream.pair(proxy)
    proxy.add("bandwidth", rate=0, name="stall")
    sent = send_until_held(pair.server, 65_536, 100_000_000)
    proxy.remove("stall")
    assert len(read(pair.client, sent)) == sent


def test_updating_a_rate_acts_on_an_open_connection(proxy: ProxyUnderTest, upstream: Upstream) -> None:
    pair = upstream.pair(proxy)
    proxy.add("bandwidth", rate=0, name="it")
    pair.server.sendall(b"x" * 1000)
    assert is_silent(pair.client, 0.2)
    proxy.update("it", attributes={"rate": 1000})
    assert len(read(pair.client, 1000)) == 1000


# --- slow_close ---


@pytest.mark.parametrize("stream", STREAMS)
def test_slow_close_passes_data_and_holds_the_end(proxy: ProxyUnderTest, upstream: Upstream, stream: str) -> None:
    pair = upstream.pair(proxy)
    proxy.add("slow_close", stream, delay=250)
    assert transfer_s(pair, stream) < SLACK_S
    source, sink = ends(pair, stream)
    began_s = time.monotonic()
    source.close()
    assert how_it_ends(sink) == "end"
    assert 0.24 <= time.monotonic() - began_s < 0.25 + SLACK_S


def test_removing_slow_close_lets_the_end_through(proxy: ProxyUnderTest, upstream: Upstream) -> None:
    pair = upstream.pair(proxy)
    proxy.add("slow_close", "upstream", name="it", delay=600_000)
    pair.client.close()
    assert is_silent(pair.server, 0.2)
    assert proxy.remove("it") < SLACK_S
    assert how_it_ends(pair.server) == "end"


# --- timeout ---


@pytest.mark.parametrize("stream", STREAMS)
def test_timeout_drops_and_closes(proxy: ProxyUnderTest, upstream: Upstream, stream: str) -> None:
    pair = upstream.pair(proxy)
    proxy.add("timeout", stream, timeout=300)
    source, sink = ends(pair, stream)
    began_s = time.monotonic()
    source.sendall(b"lost")
    assert how_it_ends(sink) == "end"
    assert 0.29 <= time.monotonic() - began_s < 0.3 + SLACK_S
    assert how_it_ends(source) in ("end", "reset")


def test_timeout_closes_an_idle_connection_too(proxy: ProxyUnderTest, upstream: Upstream) -> None:
    proxy.add("timeout", timeout=200)
    pair = upstream.pair(proxy)
    assert how_it_ends(pair.client) == "end"


def test_every_chunk_restarts_the_clock_of_timeout(proxy: ProxyUnderTest, upstream: Upstream) -> None:
    pair = upstream.pair(proxy)
    proxy.add("timeout", timeout=900)
    began_s = last_s = time.monotonic()
    longest_s = 0.0
    while last_s - began_s < 1.2:
        pair.server.sendall(b"busy")
        time.sleep(0.02)
        longest_s, last_s = max(longest_s, time.monotonic() - last_s), time.monotonic()
    # A machine that stood still for so long proves nothing.
    assert is_silent(pair.client, 0.1) or longest_s > 0.5


def test_timeout_zero_is_a_black_hole(proxy: ProxyUnderTest, upstream: Upstream) -> None:
    pair = upstream.pair(proxy)
    proxy.add("timeout", "upstream", timeout=0)
    pair.client.sendall(b"x" * 3_000_000)
    assert is_silent(pair.server, 0.15)
    assert transfer_s(pair, "downstream") < SLACK_S


def test_a_black_hole_passes_the_end_on(proxy: ProxyUnderTest, upstream: Upstream) -> None:
    pair = upstream.pair(proxy)
    for stream in STREAMS:
        proxy.add("timeout", stream, timeout=0)
    pair.client.close()
    assert how_it_ends(pair.server) == "end"


def test_slow_close_behind_a_black_hole_holds_the_end(proxy: ProxyUnderTest, upstream: Upstream) -> None:
    pair = upstream.pair(proxy)
    for stream in STREAMS:
        proxy.add("timeout", stream, timeout=0)
        proxy.add("slow_close", stream, delay=600_000)
    pair.client.sendall(b"lost")
    pair.client.close()
    assert is_silent(pair.server, 0.2)


def test_removing_timeout_closes_its_connections(proxy: ProxyUnderTest, upstream: Upstream) -> None:
    pairs = [upstream.pair(proxy) for _ in range(3)]
    proxy.add("timeout", name="it", timeout=0)
    assert proxy.remove("it") < SLACK_S
    for pair in pairs:
        assert how_it_ends(pair.client) == "end"
        assert how_it_ends(pair.server) == "end"


def test_removing_timeout_closes_even_those_that_toxicity_spared(proxy: ProxyUnderTest, upstream: Upstream) -> None:
    pair = upstream.pair(proxy)
    proxy.add("timeout", name="it", timeout=0, toxicity=0)
    assert transfer_s(pair, "downstream") < SLACK_S
    proxy.remove("it")
    assert how_it_ends(pair.client) == "end"


# --- reset_peer ---


@pytest.mark.parametrize("stream", STREAMS)
def test_reset_peer_resets_a_new_connection_after_its_first_bytes(
    proxy: ProxyUnderTest, upstream: Upstream, stream: str
) -> None:
    proxy.add("reset_peer", stream, timeout=200)
    pair = upstream.pair(proxy)
    source, sink = ends(pair, stream)
    assert is_silent(sink, 0.15), "an idle one is not reset"
    began_s = time.monotonic()
    source.sendall(b"x")
    assert how_it_ends(sink) == "reset"
    assert 0.19 <= time.monotonic() - began_s < 0.2 + SLACK_S
    assert how_it_ends(source) == "reset"


def test_reset_peer_resets_at_the_end_too(proxy: ProxyUnderTest, upstream: Upstream) -> None:
    proxy.add("reset_peer", "upstream", timeout=0)
    pair = upstream.pair(proxy)
    pair.client.close()
    assert how_it_ends(pair.server) == "reset"


def test_reset_peer_only_closes_a_connection_that_was_open_before(proxy: ProxyUnderTest, upstream: Upstream) -> None:
    pair = upstream.pair(proxy)
    proxy.add("reset_peer", "upstream", timeout=0)
    pair.client.sendall(b"x")
    assert how_it_ends(pair.server) == "end"


def test_reset_peer_without_toxicity_still_resets_upstream_closes(proxy: ProxyUnderTest, upstream: Upstream) -> None:
    proxy.add("reset_peer", "upstream", timeout=0, toxicity=0)
    pair = upstream.pair(proxy)
    assert transfer_s(pair, "upstream") < SLACK_S
    pair.client.close()
    assert how_it_ends(pair.server) == "reset"


def test_removing_reset_peer_spares_idle_connections(proxy: ProxyUnderTest, upstream: Upstream) -> None:
    proxy.add("reset_peer", "upstream", name="it", timeout=0)
    pair = upstream.pair(proxy)
    assert proxy.remove("it") < SLACK_S
    assert transfer_s(pair, "upstream") < SLACK_S


# --- slicer ---


def test_slicer_cuts_and_loses_nothing(proxy: ProxyUnderTest, upstream: Upstream) -> None:
    pair = upstream.pair(proxy)
    proxy.add("slicer", average_size=50, size_variation=10, delay=20_000)
    data = bytes(range(250))
    pair.server.sendall(data)
    parts: list[bytes] = []
    while sum(len(part) for part in parts) < len(data):
        parts.append(pair.client.recv(1000))
    assert b"".join(parts) == data
    assert len(parts) >= 3
    assert all(len(part) <= 61 for part in parts[:1])


def test_slicer_waits_after_each_piece(proxy: ProxyUnderTest, upstream: Upstream) -> None:
    pair = upstream.pair(proxy)
    proxy.add("slicer", average_size=10, size_variation=0, delay=50_000)
    # Halved until 10 or less: 80 bytes are 8 pieces.
    assert 0.34 <= transfer_s(pair, "downstream", b"x" * 80) < 0.4 + SLACK_S


def test_slicer_leaves_small_chunks_alone(proxy: ProxyUnderTest, upstream: Upstream) -> None:
    pair = upstream.pair(proxy)
    proxy.add("slicer", average_size=100, size_variation=20, delay=600_000_000)
    assert transfer_s(pair, "downstream", b"x" * 120) < SLACK_S


def test_removing_slicer_releases_the_rest(proxy: ProxyUnderTest, upstream: Upstream) -> None:
    pair = upstream.pair(proxy)
    proxy.add("slicer", name="it", average_size=10, size_variation=0, delay=600_000_000)
    pair.server.sendall(b"0123456789" * 10)
    first = pair.client.recv(1000)
    assert len(first) <= 10
    assert is_silent(pair.client, 0.2)
    proxy.remove("it")
    assert first + read(pair.client, 100 - len(first)) == b"0123456789" * 10


# --- limit_data ---


@pytest.mark.parametrize("stream", STREAMS)
def test_limit_data_forwards_so_much_and_closes(proxy: ProxyUnderTest, upstream: Upstream, stream: str) -> None:
    proxy.add("limit_data", stream, bytes=7)
    pair = upstream.pair(proxy)
    source, sink = ends(pair, stream)
    source.sendall(b"0123")
    assert read(sink, 4) == b"0123"
    assert is_silent(sink, 0.1)
    source.sendall(b"456789")
    assert read_all(sink) == b"456"


def test_limit_data_closes_at_the_last_byte(proxy: ProxyUnderTest, upstream: Upstream) -> None:
    proxy.add("limit_data", bytes=4)
    pair = upstream.pair(proxy)
    pair.server.sendall(b"0123")
    assert read_all(pair.client) == b"0123"


@pytest.mark.parametrize("limit", [0, -5])
def test_limit_data_of_nothing_closes_at_the_first_data(proxy: ProxyUnderTest, upstream: Upstream, limit: int) -> None:
    proxy.add("limit_data", bytes=limit)
    pair = upstream.pair(proxy)
    assert is_silent(pair.client, 0.2), "an idle one stays"
    pair.server.sendall(b"x")
    assert read_all(pair.client) == b""


def test_limit_data_counts_each_connection_from_when_it_came(proxy: ProxyUnderTest, upstream: Upstream) -> None:
    old = upstream.pair(proxy)
    assert transfer_s(old, "downstream", b"x" * 100) < SLACK_S
    proxy.add("limit_data", bytes=5)
    for pair in (old, upstream.pair(proxy)):
        pair.server.sendall(b"0123456789")
        assert read_all(pair.client) == b"01234"


def test_limit_data_counts_on_after_an_update(proxy: ProxyUnderTest, upstream: Upstream) -> None:
    proxy.add("limit_data", name="it", bytes=100)
    pair = upstream.pair(proxy)
    assert transfer_s(pair, "downstream", b"x" * 8) < SLACK_S
    proxy.update("it", attributes={"bytes": 10})
    pair.server.sendall(b"abcdef")
    assert read_all(pair.client) == b"ab"


# --- noop, and several at once ---


def test_noop_passes_everything(proxy: ProxyUnderTest, upstream: Upstream) -> None:
    proxy.add("noop")
    pair = upstream.pair(proxy)
    assert transfer_s(pair, "downstream", b"x" * 100_000) < SLACK_S
    pair.client.close()
    assert how_it_ends(pair.server) == "end"


def test_a_chain_in_order_of_addition(proxy: ProxyUnderTest, upstream: Upstream) -> None:
    proxy.add("limit_data", bytes=2000)
    proxy.add("latency", latency=200)
    proxy.add("slicer", average_size=100, size_variation=0, delay=1000)
    pair = upstream.pair(proxy)
    began_s = time.monotonic()
    pair.server.sendall(b"y" * 5000)
    assert read_all(pair.client) == b"y" * 2000
    assert time.monotonic() - began_s >= 0.199


def test_toxics_come_and_go_under_traffic_without_a_byte_lost(proxy: ProxyUnderTest, upstream: Upstream) -> None:
    pair = upstream.pair(proxy)
    sent, got = bytearray(), bytearray()
    pair.client.settimeout(PATIENCE_S)
    kinds: dict[str, dict[str, Any]] = {"latency": {"latency": 20}, "noop": {}, "bandwidth": {"rate": 2000}}
    kinds["slicer"] = {"average_size": 64, "size_variation": 8}
    for number in range(40):
        kind = list(kinds)[number % len(kinds)]
        if number % 8 < 4:
            proxy.add(kind, name=kind, **kinds[kind])
        else:
            proxy.remove(kind)
        data = bytes([number]) * 997
        pair.server.sendall(data)
        sent += data
    got += read(pair.client, len(sent))
    assert got == sent
