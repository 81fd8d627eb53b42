"""Who is hit, by chance: once for each connection and direction, and anew when a stage starts anew."""

from tests.chaos.toxiproxy.conformance.rig import Pair, ProxyUnderTest, Upstream, read


def is_limited(pair: Pair) -> bool:
    """Whether `limit_data` of nothing has closed the connection at its first byte."""
    pair.server.sendall(b"x")
    return read(pair.client, 1) == b""


def test_a_share_of_a_thousand_connections_is_hit(proxy: ProxyUnderTest, upstream: Upstream) -> None:
    proxy.add("limit_data", bytes=0, toxicity=0.3)
    hit, listen = 0, proxy.state()["listen"]
    for _ in range(1000):
        pair = upstream.pair(proxy, listen)
        hit += is_limited(pair)
        pair.close()
    # 300, with more than five standard deviations to either side.
    assert 220 < hit < 380


def test_toxicity_zero_hits_nobody_and_one_everybody(proxy: ProxyUnderTest, upstream: Upstream) -> None:
    proxy.add("limit_data", bytes=0, toxicity=0, name="it")
    assert not any(is_limited(upstream.pair(proxy)) for _ in range(30))
    proxy.update("it", toxicity=1)
    assert all(is_limited(upstream.pair(proxy)) for _ in range(30))


def test_it_is_drawn_for_the_connection_and_not_for_the_chunk(proxy: ProxyUnderTest, upstream: Upstream) -> None:
    proxy.add("limit_data", bytes=0, toxicity=0.5)
    spared = 0
    for _ in range(30):
        pair = upstream.pair(proxy)
        if not is_limited(pair):
            spared += 1
            assert not any(is_limited(pair) for _ in range(20))
    assert spared


def test_an_update_draws_anew_on_open_connections(proxy: ProxyUnderTest, upstream: Upstream) -> None:
    proxy.add("limit_data", bytes=0, toxicity=0, name="it")
    pairs = [upstream.pair(proxy) for _ in range(100)]
    assert not any(is_limited(pair) for pair in pairs)
    proxy.update("it", toxicity=0.5)
    assert 20 < sum(is_limited(pair) for pair in pairs) < 80


def test_the_next_toxic_draws_anew_for_the_one_before_it(proxy: ProxyUnderTest, upstream: Upstream) -> None:
    """What was spared can be hit after an unrelated change."""
    proxy.add("limit_data", bytes=0, toxicity=0.5)
    spared = [pair for pair in (upstream.pair(proxy) for _ in range(100)) if not is_limited(pair)]
    assert len(spared) > 20
    proxy.add("noop", name="next")
    hit = sum(is_limited(pair) for pair in spared)
    assert 0 < hit < len(spared)
