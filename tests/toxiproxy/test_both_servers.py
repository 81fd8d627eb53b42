"""What Toxiproxy is known to stumble over, through the adapter: refused or survived, whichever server it is."""

import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from chaos.healing import heal_all
from chaos.toxiproxy.adapter import (
    Toxic,
    Toxiproxy,
    ToxiproxyError,
    ToxiproxyRefused,
    ToxiproxyTimeout,
    ToxiproxyUnsafe,
)
from chaos.toxiproxy.launcher import ToxiproxyUnavailable
from chaos.undo import ToxicEntry
from tests.chaos.toxiproxy.conformance.rig import (
    HOST,
    PATIENCE_S,
    Kind,
    ServerUnderTest,
    Upstream,
    connect,
    read,
    running,
)


@contextmanager
def _running(kind: Kind) -> Iterator[ServerUnderTest]:
    try:
        with running(kind) as started:
            yield started
    except ToxiproxyUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module", params=["embedded", "real"])
def server(request: pytest.FixtureRequest) -> Iterator[ServerUnderTest]:
    with _running(request.param) as started:
        yield started


@pytest.fixture
def api(server: ServerUnderTest) -> Iterator[Toxiproxy]:
    # Patient, because the machine may be busy; what has to be quick is asked of another one.
    yield Toxiproxy(f"http://{HOST}:{server.port}", deadline_s=PATIENCE_S)
    assert server.process.poll() is None, "the server has ended"
    assert server.call("DELETE", "/proxies/w").status in (204, 404)


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    listening = Upstream()
    yield listening
    listening.close()


def _dial(listen: str) -> socket.socket:
    host, _, port = listen.rpartition(":")
    return connect(host, int(port))


def _heal(entries: list[ToxicEntry]) -> str:
    """As the keeper does: again, when it failed. What was said of it."""
    ends_s = time.monotonic() + 2 * PATIENCE_S
    said: list[str] = []
    while True:
        results = heal_all(entries)
        said += [result.text for result in results]
        if all(result.healed for result in results):
            return "; ".join(said)
        assert time.monotonic() < ends_s, said


@pytest.mark.parametrize(
    ("toxic", "says"),
    [
        (Toxic("bad", "slicer", attributes={"average_size": 0}), "average_size = 0 is not an integer in 1.."),
        (Toxic("bad", "slicer"), "average_size >= 1"),
        (Toxic("bad", "bandwidth", attributes={"rate": -1}), "rate = -1 is not an integer in 0.."),
    ],
)
def test_what_would_end_the_server_is_refused_and_bytes_still_pass(
    api: Toxiproxy, upstream: Upstream, toxic: Toxic, says: str
) -> None:
    state = api.create_proxy("w", f"{HOST}:0", upstream.address)
    with pytest.raises(ToxiproxyUnsafe) as refused:
        api.add_toxic("w", toxic)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)
    assert api.proxy("w") == state
    with _dial(state.listen) as client, upstream.accept() as end:
        end.sendall(b"x" * 1_000)
        assert read(client, 1_000) == b"x" * 1_000


def test_a_proxy_whose_port_was_taken_during_a_reset(api: Toxiproxy, server: ServerUnderTest) -> None:
    """The link is switched off and on, or somebody else resets the whole server, and the port is gone meanwhile."""
    state = api.create_proxy("w", f"{HOST}:0", f"{HOST}:9")
    api.set_enabled("w", False)
    with socket.create_server((HOST, int(state.listen.rpartition(":")[2]))):
        with pytest.raises(ToxiproxyRefused, match="address already in use") as refused:
            api.set_enabled("w", True)
        assert "\n" not in str(refused.value)
        answer = server.call("POST", "/reset")
        assert (answer.status, "address already in use" in answer.json["error"]) == (500, True)
        left = api.proxy("w")
        assert left is not None
        assert not left.enabled
    assert api.set_enabled("w", True) == state


def test_an_api_that_hangs_costs_the_deadline_and_is_of_use_when_it_goes_on(
    api: Toxiproxy, server: ServerUnderTest
) -> None:
    state = api.create_proxy("w", f"{HOST}:0", f"{HOST}:9")
    slow = api.add_toxic("w", Toxic("slow", "latency", attributes={"latency": 5}))
    entry = ToxicEntry(api_url=api.url, proxy="w", toxic=slow.name)
    hasty = Toxiproxy(api.url, deadline_s=0.3, removal_s=0.3)
    os.kill(server.process.pid, signal.SIGSTOP)
    try:
        began_s = time.monotonic()
        with pytest.raises(ToxiproxyTimeout, match=r"no answer within 0\.3 s") as caught:
            hasty.remove_toxic("w", "slow")
        assert "\n" not in str(caught.value)
        assert time.monotonic() - began_s < 0.3 + PATIENCE_S
        # The keeper's way: not healed, and said so, until it is tried again.
        [result] = heal_all([entry])
        assert (result.healed, "no answer within" in result.text) == (False, True)
    finally:
        os.kill(server.process.pid, signal.SIGCONT)
    _heal([entry])
    assert api.proxy("w") == state


def test_a_stall_removed_after_its_client_has_gone(api: Toxiproxy, server: ServerUnderTest, upstream: Upstream) -> None:
    state = api.create_proxy("w", f"{HOST}:0", upstream.address)
    kept = api.add_toxic("w", Toxic("kept", "noop"))
    entries = []
    with _dial(state.listen) as client, upstream.accept() as end:
        for stream in ("upstream", "downstream"):
            api.add_toxic("w", Toxic(f"hold_{stream}", "bandwidth", stream, {"rate": 0}))
            entries.append(ToxicEntry(api_url=api.url, proxy="w", toxic=f"hold_{stream}"))
        client.sendall(b"x" * 100_000)
        end.sendall(b"y" * 100_000)
        time.sleep(0.2)
        client.close()
        time.sleep(0.2)
        said = _heal(entries)
        # The real server's own removal blocks 5 s for each connection, so both toxics go with the proxy instead.
        assert server.embedded or "replaced" in said
    after = api.proxy("w")
    assert after is not None
    assert (after.listen, after.enabled, after.toxics) == (state.listen, True, (kept,))
    with _dial(state.listen) as client, upstream.accept() as end:
        client.sendall(b"again")
        assert read(end, 5) == b"again"


@pytest.mark.parametrize("kind", ["embedded", "real"])
def test_a_server_that_has_gone_is_one_line_and_its_faults_count_as_healed(kind: Kind) -> None:
    with _running(kind) as server:
        api = Toxiproxy(f"http://{HOST}:{server.port}")
        api.create_proxy("w", f"{HOST}:0", f"{HOST}:9")
        server.process.kill()
        server.process.wait()
        with pytest.raises(ToxiproxyError, match="nothing listens there"):
            api.proxy("w")
        [result] = heal_all([ToxicEntry(api_url=api.url, proxy="w", toxic="t")])
        assert (result.healed, "server has ended" in result.text) == (True, True)
