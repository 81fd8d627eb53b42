"""A node's link on the real NATS: announced when it works, honest when it does not."""

import asyncio
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from cluster.live.broker import Broker
from cluster.live.nats import LinkUnavailable, NatsLink
from cluster.node import Event, LinkDown, LinkUp, NoResponders, Received, Send, SendFailed
from cluster.policy import LinkPolicy
from cluster.protocol import Ping

POLICY = LinkPolicy(ping_s=0.2, reconnect_s=0.05, connect_s=0.5)


class Server:
    """A broker that can be killed and come back on its ports."""

    def __init__(self, folder: Path) -> None:
        self.broker = Broker(folder, ["a", "b"])
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
def test_a_wrong_password_is_one_line_and_not_an_endless_loop(server: Server) -> None:
    async def talk() -> None:
        url = server.broker.url("a").replace("nats://a:", "nats://a:wrong")
        with pytest.raises(LinkUnavailable, match=r"a: no connection to NATS within 1 s: .*Authorization"):
            await NatsLink("a", url, POLICY, lambda event: None).open(1)

    asyncio.run(talk())
