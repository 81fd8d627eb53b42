"""A node's link on the real NATS: announced when it works, honest when it does not."""

import asyncio
import logging
import subprocess
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import nats
import pytest
from msgspec.structs import replace

from cluster.live.broker import Broker
from cluster.live.nats import LinkUnavailable, NatsLink
from cluster.node import Event, LinkDown, LinkUp, NoResponders, Received, Send, SendFailed
from cluster.policy import LinkPolicy
from cluster.protocol import CONTROLLERS, EVERY_CONTROLLER, Ping, Subject, encode

POLICY = LinkPolicy(ping_s=0.2, reconnect_s=0.05, connect_s=0.5)


class Server:
    """A broker that can be killed and come back on its ports."""

    def __init__(self, folder: Path) -> None:
        self.broker = Broker(folder, ["a", "b", "c"], controllers=["b", "c"])
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.broker.start(self._spawn)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def _spawn(self, name: str, argv: Sequence[str]) -> int:
        self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
        return self.process.pid


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path)
    made.start()
    yield made
    made.kill()


async def until(events: asyncio.Queue[Event], kind: type[Event]) -> Event:
    """The next event of a kind; those before it are gone."""
    async with asyncio.timeout(10):
        while not isinstance(event := await events.get(), kind):
            pass
    return event


async def become(condition: Callable[[], object]) -> None:
    """Wait until it is so, five seconds at most."""
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never came to that")


@pytest.mark.live
def test_messages_arrive_and_a_missing_addressee_is_reported(server: Server) -> None:
    async def talk() -> None:
        heard: asyncio.Queue[Event] = asyncio.Queue()
        told: asyncio.Queue[Event] = asyncio.Queue()
        a = NatsLink("a", server.broker.url("a"), POLICY, told.put_nowait)
        b = NatsLink("b", server.broker.url("b"), POLICY, heard.put_nowait)
        await a.open(5)
        await b.open(5)
        await until(told, LinkUp)
        await a.send(Send("b", Ping("a"), needs_responder=True))
        assert await until(heard, Received) == Received(Ping("a"))
        assert await a.echo(2)
        await a.send(Send("nobody", Ping("a"), needs_responder=True))
        assert await until(told, NoResponders) == NoResponders("nobody", Ping("a"))
        await a.close()
        await b.close()

    asyncio.run(talk())


@pytest.mark.live
def test_a_lost_link_buffers_nothing_and_is_announced_again_once_it_works(server: Server) -> None:
    async def talk() -> None:
        told: asyncio.Queue[Event] = asyncio.Queue()
        a = NatsLink("a", server.broker.url("a"), POLICY, told.put_nowait)
        await a.open(5)
        server.kill()
        await until(told, LinkDown)
        assert not await a.echo(0.2)
        await a.send(Send("b", Ping("a")))
        assert await until(told, SendFailed) == SendFailed("b", Ping("a"))
        server.start()
        await until(told, LinkUp)
        assert await a.echo(2)
        assert a.facts().reconnects == 1
        await a.close()

    asyncio.run(talk())


@pytest.mark.live
def test_an_echo_may_be_large_and_one_that_comes_late_is_no_strange_message(server: Server) -> None:
    async def talk() -> None:
        told: asyncio.Queue[Event] = asyncio.Queue()
        a = NatsLink("a", server.broker.url("a"), POLICY, told.put_nowait)
        await a.open(5)
        small_s, large_s = await a.round_trip(5), await a.round_trip(5, 900_000)
        assert small_s is not None
        assert large_s is not None
        heard = a.facts().messages_in
        assert await a.round_trip(0.0, 900_000) is None
        await become(lambda: a.facts().messages_in > heard)
        await asyncio.sleep(0.05)
        assert a.facts().undecoded == 0
        await a.close()
        assert await a.round_trip(1) is None

    asyncio.run(talk())


@pytest.mark.live
def test_the_broker_says_why_it_has_closed_a_connection(server: Server) -> None:
    async def talk() -> None:
        a = NatsLink("a", server.broker.url("a"), POLICY, lambda event: None)
        await a.open(5)
        cid = a.facts().cid
        assert server.broker.closed_reason(cid) == ""
        await a.close()
        await become(lambda: server.broker.closed_reason(cid) == "Client Closed")
        assert server.broker.closed_reason(999_999) == ""

    asyncio.run(talk())


@pytest.mark.live
def test_a_wrong_password_is_one_line_and_not_an_endless_loop(server: Server) -> None:
    async def talk() -> None:
        url = server.broker.url("a").replace("nats://a:", "nats://a:wrong")
        with pytest.raises(LinkUnavailable, match=r"a: no connection to NATS within 1 s: .*Authorization"):
            await NatsLink("a", url, POLICY, lambda event: None).open(1)

    asyncio.run(talk())


@pytest.mark.live
def test_all_controllers_hear_what_is_for_all_and_one_hears_what_is_for_any(server: Server) -> None:
    async def talk() -> None:
        heard: dict[str, list[Event]] = {"a": [], "b": [], "c": []}
        links = {
            name: NatsLink(name, server.broker.url(name), POLICY, heard[name].append, controller=name != "a")
            for name in heard
        }
        for link in links.values():
            await link.open(5)
        assert {name: link.facts().subscriptions for name, link in links.items()} == {"a": 1, "b": 3, "c": 3}
        for number in range(20):
            await links["a"].send(Send(CONTROLLERS, Ping(f"any{number}"), needs_responder=True))
        await links["a"].send(Send(EVERY_CONTROLLER, Ping("all"), needs_responder=True))
        await become(lambda: all(Received(Ping("all")) in heard[name] for name in "bc"))
        for _ in range(2):
            # Deliveries of the two subscriptions go side by side in nats-py: let the slower one end.
            assert await links["b"].echo(2)
            assert await links["c"].echo(2)
        served = [event.message.client for name in "bc" for event in heard[name] if isinstance(event, Received)]
        assert sorted(client for client in served if client != "all") == sorted(f"any{number}" for number in range(20))
        assert served.count("all") == 2
        for link in links.values():
            await link.close()

    asyncio.run(talk())


@pytest.mark.live
def test_the_link_of_a_node_that_may_not_be_a_controller_does_not_open_as_one(server: Server) -> None:
    async def talk() -> None:
        with pytest.raises(LinkUnavailable, match=r"a: no connection to NATS .*[Pp]ermissions"):
            await NatsLink("a", server.broker.url("a"), POLICY, lambda event: None, controller=True).open(2)

    asyncio.run(talk())


@pytest.mark.live
def test_what_is_too_large_comes_back_and_the_link_lives(server: Server) -> None:
    async def talk() -> None:
        heard: asyncio.Queue[Event] = asyncio.Queue()
        a = NatsLink("a", server.broker.url("a"), POLICY, heard.put_nowait)
        await a.open(5)
        cid = a.facts().cid
        huge = Ping("x" * 2**21)
        await a.send(Send("a", huge, needs_responder=True))
        assert await until(heard, SendFailed) == SendFailed("a", huge)
        await a.send(Send("a", Ping("small")))
        assert await until(heard, Received) == Received(Ping("small"))
        assert (a.facts().cid, a.facts().awaiting) == (cid, 0)
        await a.close()

    asyncio.run(talk())


@pytest.mark.live
def test_what_is_not_of_our_protocol_is_dropped_counted_and_told_once(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    async def talk() -> None:
        heard: asyncio.Queue[Event] = asyncio.Queue()
        a = NatsLink("a", server.broker.url("a"), POLICY, heard.put_nowait)
        await a.open(5)
        stranger = await nats.connect(server.broker.url("b"))
        right = encode(Ping("b"))
        for payload in (b"", b"hello", right[:-1], right[:3] + b"x" + right[4:]):
            await stranger.publish(Subject.of("a"), payload)
        # Whole, and still no message.
        shapeless = b"\x92\xa5pingg\xa1a"
        await stranger.publish(Subject.of("a"), shapeless + zlib.crc32(shapeless).to_bytes(4, "little"))
        await stranger.publish(Subject.of("a"), right)
        assert await until(heard, Received) == Received(Ping("b"))
        assert a.facts().undecoded == 5
        await stranger.close()
        await a.close()

    with caplog.at_level(logging.WARNING):
        asyncio.run(talk())
    assert sum("not of our protocol" in record.message for record in caplog.records) == 1


@pytest.mark.live
def test_a_limited_link_stays_off_the_bus_for_good_and_says_so(server: Server) -> None:
    async def talk() -> None:
        told: asyncio.Queue[Event] = asyncio.Queue()
        a = NatsLink("a", server.broker.url("a"), replace(POLICY, reconnects_max=3), told.put_nowait)
        await a.open(5)
        server.kill()
        await until(told, LinkDown)
        await become(lambda: a.failure)
        server.start()
        await asyncio.sleep(0.5)
        assert not a.facts().connected
        assert "3 failed reconnects" in a.failure
        await a.send(Send("b", Ping("a")))
        assert await until(told, SendFailed) == SendFailed("b", Ping("a"))
        assert told.empty()
        await a.close()

    asyncio.run(talk())


@pytest.mark.live
def test_sends_that_somebody_received_are_not_remembered(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    async def talk() -> None:
        monkeypatch.setattr("cluster.live.nats._AWAITING_S", 0.2)
        heard: asyncio.Queue[Event] = asyncio.Queue()
        a = NatsLink("a", server.broker.url("a"), POLICY, heard.put_nowait)
        await a.open(5)
        for number in range(100):
            await a.send(Send("a", Ping(str(number)), needs_responder=True))
        assert a.facts().awaiting == 100
        await asyncio.sleep(0.1)
        await a.send(Send("a", Ping("last"), needs_responder=True))
        await become(lambda: not a.facts().awaiting)
        await a.close()

    asyncio.run(talk())
