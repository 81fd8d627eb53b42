"""The same cases for our server and for the real one."""

from collections.abc import Callable, Iterator

import pytest

from chaos.toxiproxy.launcher import ToxiproxyUnavailable
from tests.chaos.toxiproxy.conformance.rig import Kind, ProxyUnderTest, ServerUnderTest, Upstream, running


@pytest.fixture(scope="session", params=["embedded", "real"])
def server(request: pytest.FixtureRequest) -> Iterator[ServerUnderTest]:
    """With metrics, and the same for all cases: each makes proxies of its own."""
    kind: Kind = request.param
    try:
        with running(kind, "-proxy-metrics", "-runtime-metrics", "-seed", "1") as started:
            yield started
    except ToxiproxyUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def embedded() -> Iterator[ServerUnderTest]:
    """Ours only, for what the real one does otherwise or not at all."""
    with running("embedded", "-proxy-metrics", "-seed", "1") as started:
        yield started


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    """What the proxies of a case lead to."""
    listening = Upstream()
    yield listening
    listening.close()


@pytest.fixture
def make(upstream: Upstream) -> Iterator[Callable[[ServerUnderTest], ProxyUnderTest]]:
    """Makes proxies that lead to `upstream` and are gone after the case."""
    made: list[ProxyUnderTest] = []

    def one(server: ServerUnderTest, **fields: object) -> ProxyUnderTest:
        made.append(server.proxy(upstream.address, **fields))
        return made[-1]

    yield one
    upstream.close()
    for proxy in made:
        proxy.delete()


@pytest.fixture
def proxy(server: ServerUnderTest, make: Callable[[ServerUnderTest], ProxyUnderTest]) -> ProxyUnderTest:
    """One of them."""
    return make(server)
