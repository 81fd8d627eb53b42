"""The servers of a live world where messages are meddled with, or where no real Toxiproxy can be had."""

import asyncio
import contextlib
import os
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path

import nats
import pytest
from nats.aio.client import Client

from chaos.healing import heal_entry
from chaos.toxiproxy import launcher
from chaos.toxiproxy.adapter import ToxiproxyRefused, ToxiproxyUnsafe
from chaos.toxiproxy.launcher import ToxiproxyUnavailable
from chaos.toxiproxy.messages import MessageToxic, MessageToxiproxy
from chaos.undo import ToxicEntry
from chaos.worlds.proxied_messages import ProxiedMessages
from chaos.worlds.servers import Servers
from chaos.worlds.world import HandleError, Meddling, MessageCounts, MessageRule
from cluster.policy import LinkPolicy
from cluster.protocol import Drain, Ping, Subject, encode
from tests.toxiproxy.real_server import server_path

pytestmark = pytest.mark.live

NODES = ("controller", "worker-0", "client-0")
PINGS = MessageRule(Meddling.DROP, "upstream", "ping", 1.0)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = server_path()
    monkeypatch.setenv("TOXIPROXY_SERVER", server)
    monkeypatch.setenv("MLX_CHAOS_CACHE", str(tmp_path / "cache"))


@contextlib.contextmanager
def started(folder: Path, meddled: Sequence[str]) -> Iterator[Servers]:
    servers = Servers(f"test-{os.getpid()}", folder, NODES, ["controller"], LinkPolicy(), 0, meddled, 7)
    servers.check(None, 0)
    servers.start(None, 0)
    try:
        yield servers
    finally:
        assert servers.stop() == []


def handle(servers: Servers, node: str) -> ProxiedMessages:
    assert servers.messages is not None
    assert servers.undo is not None
    return ProxiedMessages(servers.messages, servers.message_proxies[node], servers.undo, node)


class Talk:
    """A client that sends through its proxies, and a controller that hears it."""

    def __init__(self, servers: Servers) -> None:
        self._servers = servers
        self.heard: list[bytes] = []
        self._nodes: list[Client] = []

    async def __aenter__(self) -> "Talk":
        for name in ("client-0", "controller"):
            self._nodes.append(await nats.connect(self._servers.url(name), name=name, inbox_prefix=f"mlxc.{name}"))

        async def hear(message: nats.aio.msg.Msg) -> None:
            self.heard.append(message.data)

        await self._nodes[1].subscribe(f"{Subject.inbox('controller')}.>", cb=hear)
        await self._nodes[1].flush()
        return self

    async def __aexit__(self, *error: object) -> None:
        for node in self._nodes:
            await node.close()

    async def say(self, *payloads: bytes) -> None:
        """Send, and wait until whatever comes of it has come."""
        for payload in payloads:
            await self._nodes[0].publish(Subject.of("controller"), payload)
        for node in self._nodes:
            await node.flush()
        await asyncio.sleep(0.1)


def talk(servers: Servers, play: Callable[[Talk], Awaitable[None]]) -> None:
    async def run() -> None:
        async with Talk(servers) as talking:
            await play(talking)

    asyncio.run(run())


def test_behind_the_real_server_ours_meddles_with_the_messages_of_those_named(tmp_path: Path) -> None:
    with started(tmp_path, ["client-0"]) as servers:
        assert servers.flavour.startswith("toxiproxy-server ")
        assert "embedded server" in servers.flavour
        assert servers.toxiproxy is not servers.messages
        assert list(servers.message_proxies) == ["client-0"]
        assert servers.messages is not None
        assert list(servers.messages.proxies()) == ["client-0"]
        ping, drain = encode(Ping("client-0")), encode(Drain())

        async def play(talking: Talk) -> None:
            messages = handle(servers, "client-0")
            await talking.say(ping)
            assert await messages.meddled(PINGS) is None
            await messages.meddle(PINGS, 60.0)
            with pytest.raises(HandleError, match="drop_ping_upstream is in force already"):
                await messages.meddle(PINGS, 60.0)
            await talking.say(ping, drain, ping)
            counts = await messages.meddled(PINGS)
            assert counts is not None
            assert (counts.matched, counts.affected) == (2, 2)
            assert servers.undo is not None
            (entry,) = (entry for entry in servers.undo.open_entries() if isinstance(entry, ToxicEntry))
            # As the keeper does it when the runner is gone; the runner may still come to it.
            assert heal_entry(entry).text.endswith(": removed")
            assert await messages.meddled(PINGS) is None
            await messages.restore(PINGS)
            await messages.restore(PINGS)
            assert await messages.meddled(PINGS) is None
            await talking.say(ping)
            assert talking.heard == [ping, drain, ping]

        talk(servers, play)
        assert servers.undo is not None
        assert not [entry for entry in servers.undo.open_entries() if isinstance(entry, ToxicEntry)]


def test_the_keeper_or_else_the_server_ends_a_rule_whose_time_is_up(tmp_path: Path) -> None:
    with started(tmp_path, ["client-0"]) as servers:
        messages = handle(servers, "client-0")

        async def play(talking: Talk) -> None:
            await messages.meddle(PINGS, 1.0)
            assert await messages.meddled(PINGS) == MessageCounts(0, 0, 0)
            end_s = time.monotonic() + 10.0
            while await messages.meddled(PINGS) is not None:
                assert time.monotonic() < end_s
                await asyncio.sleep(0.05)
            await talking.say(encode(Ping("client-0")))
            assert len(talking.heard) == 1

        talk(servers, play)


@pytest.mark.parametrize("why", ["nothing", "asked"])
def test_ours_does_everything_where_no_real_one_can_be_had_or_is_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    def nowhere() -> launcher.ServerBinary:
        raise ToxiproxyUnavailable("no toxiproxy-server and no Go to be had")

    if why == "asked":
        monkeypatch.setenv("TOXIPROXY_SERVER", "embedded")
    else:
        monkeypatch.delenv("TOXIPROXY_SERVER")
        monkeypatch.setattr(launcher, "find_server", nowhere)
    with started(tmp_path, ["client-0"]) as servers:
        assert servers.flavour.startswith("embedded server, like toxiproxy-server")
        assert ("no Go to be had" if why == "nothing" else "asked for by TOXIPROXY_SERVER") in servers.flavour
        assert servers.toxiproxy is servers.messages
        ping = encode(Ping("client-0"))

        async def play(talking: Talk) -> None:
            messages = handle(servers, "client-0")
            await messages.meddle(PINGS, 60.0)
            await talking.say(ping)
            # Its proxy can be read and restored with a toxic on messages on it, as any other.
            assert servers.toxiproxy is not None
            assert [toxic.type for toxic in servers.toxiproxy.proxies()["client-0"].toxics] == ["nats_drop"]
            await messages.restore(PINGS)
            await talking.say(ping)
            assert talking.heard == [ping]

        talk(servers, play)


def test_without_a_message_fault_there_is_no_second_hop(tmp_path: Path) -> None:
    with started(tmp_path, []) as servers:
        assert servers.messages is None
        assert servers.message_proxies == {}
        assert "embedded" not in servers.flavour
        assert servers.keeper is not None
        assert sorted(servers.keeper.children()) == ["nats-server", "toxiproxy"]
        assert servers.toxiproxy is not None
        assert {proxy.upstream for proxy in servers.toxiproxy.proxies().values()} == {servers.broker.address}


def test_a_toxic_on_messages_is_checked_before_it_is_sent_and_read_back(tmp_path: Path) -> None:
    with started(tmp_path, ["client-0"]) as servers:
        api = servers.messages
        assert isinstance(api, MessageToxiproxy)
        toxic = MessageToxic("t", "nats_delay", "downstream", {"delay": 5}, 60_000)
        api.add_message_toxic("client-0", toxic)
        assert api.message_counts("client-0", "t") == {"seen": 0, "matched": 0, "affected": 0}
        with pytest.raises(ToxiproxyRefused, match="toxic already exists"):
            api.add_message_toxic("client-0", toxic)
        with pytest.raises(ToxiproxyUnsafe, match="attribute delay: expected an integer"):
            api.add_message_toxic("client-0", MessageToxic("u", "nats_delay", "upstream", {"delay": -5}, 60_000))
        assert api.remove_toxic("client-0", "t") == "removed"
        assert api.message_counts("client-0", "t") is None
