"""`/metrics`."""

import time

import pytest

from tests.chaos.toxiproxy.conformance.rig import Kind, ProxyUnderTest, ServerUnderTest, Upstream, read, running


def counters(server: ServerUnderTest, proxy: ProxyUnderTest) -> dict[tuple[str, str], float]:
    """By what is counted and direction."""
    found = {}
    for line in server.call("GET", "/metrics").text.splitlines():
        if line.startswith("toxiproxy_proxy_") and f'proxy="{proxy.name}"' in line:
            what = line.partition("_bytes_total")[0].removeprefix("toxiproxy_proxy_")
            direction = line.partition('direction="')[2].partition('"')[0]
            found[what, direction] = float(line.rpartition(" ")[2])
    return found


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_any_method_is_answered_in_the_text_format(server: ServerUnderTest, method: str) -> None:
    answer = server.call(method, "/metrics")
    assert answer.status == 200
    assert answer.kind.startswith("text/plain; version=0.0.4; charset=utf-8")
    assert answer.headers["x-toxiproxy-request-id"]


def test_runtime_figures(server: ServerUnderTest) -> None:
    assert "\nprocess_resident_memory_bytes " in server.call("GET", "/metrics").text


@pytest.mark.parametrize("kind", ["embedded", "real"])
def test_without_a_flag_there_are_none(kind: Kind) -> None:
    with running(kind) as server:
        answer = server.call("GET", "/metrics")
        assert (answer.status, answer.text) == (404, "404 page not found\n")


def test_bytes_of_a_connection_that_has_ended(
    server: ServerUnderTest, proxy: ProxyUnderTest, upstream: Upstream
) -> None:
    pair = upstream.pair(proxy)
    pair.client.sendall(b"x" * 10)
    read(pair.server, 10)
    pair.server.sendall(b"x" * 2000)
    read(pair.client, 2000)
    pair.close()
    wanted = {
        ("received", "upstream"): 10,
        ("sent", "upstream"): 10,
        ("received", "downstream"): 2000,
        ("sent", "downstream"): 2000,
    }
    ends_s = time.monotonic() + 10
    # The real server leaves out what it sent when the other side had gone first.
    while not counters(server, proxy).items() >= {("received", "upstream"): 10}.items():
        assert time.monotonic() < ends_s, counters(server, proxy)
        time.sleep(0.02)
    assert counters(server, proxy).items() <= wanted.items()


def test_labels(server: ServerUnderTest, proxy: ProxyUnderTest, upstream: Upstream) -> None:
    pair = upstream.pair(proxy)
    pair.client.sendall(b"x")
    read(pair.server, 1)
    pair.close()
    listen = proxy.state()["listen"]
    labels = f'{{direction="upstream",listener="{listen}",proxy="{proxy.name}",upstream="{upstream.address}"}}'
    ends_s = time.monotonic() + 10
    while f"toxiproxy_proxy_received_bytes_total{labels} 1" not in server.call("GET", "/metrics").text:
        assert time.monotonic() < ends_s, server.call("GET", "/metrics").text
        time.sleep(0.02)


def test_when_living_connections_count(server: ServerUnderTest, proxy: ProxyUnderTest, upstream: Upstream) -> None:
    """The real server counts at the end of a connection only, ours at once."""
    pair = upstream.pair(proxy)
    pair.client.sendall(b"x" * 10)
    read(pair.server, 10)
    counted = counters(server, proxy)
    assert counted.get(("received", "upstream"), 0) == (10 if server.embedded else 0)
