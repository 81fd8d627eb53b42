"""`python -m cluster.live.process`: one node, or the gateway, as a plain child process.

It is told what to be in the first line of standard input (never on the command line: a NATS URL holds a password),
obeys further lines, answers in lines on standard output, and ends when standard input closes: so it dies with whoever
started it, also when that was killed. All lines are JSON.
"""

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from typing import TYPE_CHECKING

import msgspec

from analysis.schema import Gauges, Row
from cluster.client import ClientNode
from cluster.live.host import NodeHost, NodeLook, NodeSpec
from cluster.live.nats import LinkUnavailable
from cluster.live.node import LiveNode
from cluster.live.prometheus import NodeStatus
from cluster.policy import Policy

if TYPE_CHECKING:
    from cluster.live.gateway import Gateway

_LINK_S = 10.0
_LINE_BYTES_MAX = 2**24
_WATCH_S = 0.2
_STOP_S = 4.0


class Line(msgspec.Struct, frozen=True, tag_field="type"):
    """One line between a process and whoever started it."""


class BeNode(Line, frozen=True, tag="node"):
    """The first line: host this node."""

    spec: NodeSpec


class BeGateway(Line, frozen=True, tag="gateway"):
    """The first line: serve HTTP as the client `name`. settings: a GatewaySettings, which only that process knows."""

    name: str
    url: str
    policy: Policy
    settings: msgspec.Raw


class Look(Line, frozen=True, tag="look"):
    """Answered with Standing."""


class DrainAsked(Line, frozen=True, tag="drain"):
    """Finish what is there, take nothing new; answered with Drained."""

    limit_s: float


class Stop(Line, frozen=True, tag="stop"):
    """End."""


class Tell(Line, frozen=True, tag="tell"):
    """For the gateway: how the nodes stand."""

    nodes: tuple[NodeStatus, ...]


class Ready(Line, frozen=True, tag="ready"):
    """The node has its link, the gateway its port."""

    pid: int
    port: int = 0
    incarnation: int = 0


class Failed(Line, frozen=True, tag="failed"):
    """It could not begin, or cannot go on; it ends."""

    reason: str


class Standing(Line, frozen=True, tag="standing"):
    """How it stands."""

    look: NodeLook
    gauges: Gauges


class Drained(Line, frozen=True, tag="drained"):
    """complete: whether everything had ended in time."""

    complete: bool


Birth = BeNode | BeGateway
Request = Look | DrainAsked | Stop | Tell
Answer = Ready | Failed | Standing | Drained


class CountingSink:
    """Counts rows and keeps none: what stays up for weeks must not fill the disk."""

    def __init__(self) -> None:
        self.rows = 0

    def append(self, row: Row, now: float) -> None:
        """See cluster.live.node.Sink."""
        self.rows += 1

    def flush(self) -> None:
        """See cluster.live.node.Sink."""

    def close(self) -> None:
        """See cluster.live.node.Sink."""


class NodePart:
    """Hosts a node."""

    def __init__(self, birth: BeNode) -> None:
        self._host = NodeHost(birth.spec, None if birth.spec.raw else CountingSink())

    async def start(self) -> Ready:
        """Raises LinkUnavailable."""
        return Ready(await self._host.start(_LINK_S), incarnation=self._host.incarnation)

    async def standing(self) -> Standing:
        """How the node stands."""
        return Standing(await self._host.look(), self._host.gauges())

    async def drain(self, limit_s: float) -> bool:
        """Whether everything ended in time. A controller holds nothing that its clients could not ask another for."""
        return await self._host.drain(limit_s) if self._host.spec.role == "worker" else True

    def tell(self, nodes: tuple[NodeStatus, ...]) -> None:
        """Nothing to do."""

    async def stop(self) -> None:
        """End the node."""
        await self._host.stop()


class GatewayPart:
    """Hosts the gateway and its client node."""

    def __init__(self, birth: BeGateway) -> None:
        self._birth = birth
        self._node = ClientNode(birth.name, time.time_ns(), birth.policy)
        self._shell: LiveNode | None = None
        self._gateway: Gateway | None = None

    async def start(self) -> Ready:
        """Raises LinkUnavailable, OSError for the port, ChatUnavailable for a model."""
        # Imported here: nodes need neither an HTTP server nor a tokenizer.
        from cluster.live.gateway import Gateway, GatewaySettings

        settings = msgspec.json.decode(self._birth.settings, type=GatewaySettings)
        shell = self._shell = LiveNode(self._node, self._birth.url, self._birth.policy.link, CountingSink())
        gateway = self._gateway = Gateway(settings, shell)
        await shell.start(_LINK_S)
        return Ready(os.getpid(), await gateway.start())

    async def standing(self) -> Standing:
        """How the client node stands."""
        assert self._shell is not None
        assert self._gateway is not None
        failure = self._shell.crash or self._shell.link.failure
        if failure:
            self._gateway.fail(failure)
        return Standing(NodeLook(failure, os.getpid()), self._node.gauges())

    async def drain(self, limit_s: float) -> bool:
        """Whether every open request ended in time."""
        assert self._gateway is not None
        return await self._gateway.drain(limit_s)

    def tell(self, nodes: tuple[NodeStatus, ...]) -> None:
        """For /metrics."""
        assert self._gateway is not None
        self._gateway.observe(nodes)

    async def stop(self) -> None:
        """End both."""
        if self._gateway is not None:
            await self._gateway.stop()
        if self._shell is not None:
            await self._shell.stop()


class Pipe:
    """Lines in and out. Whatever else the process prints goes to standard error."""

    def __init__(self) -> None:
        self._reader = asyncio.StreamReader(limit=_LINE_BYTES_MAX)
        # Libraries print what they like to descriptor 1; a line of theirs must not get between ours.
        self._out = os.fdopen(os.dup(1), "wb", buffering=0)
        os.dup2(2, 1)

    async def open(self) -> None:
        """Begin to read."""
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(self._reader), sys.stdin)

    async def line(self) -> bytes:
        """The next line; empty at the end."""
        with contextlib.suppress(ValueError, ConnectionError):
            return await self._reader.readline()
        return b""

    def say(self, answer: Answer) -> None:
        """Write a line; nobody there to read it is no reason to fail, the end of input follows."""
        with contextlib.suppress(OSError):
            self._out.write(msgspec.json.encode(answer) + b"\n")


async def live() -> int:
    """Be what the first line says until the last one; the exit code."""
    pipe = Pipe()
    await pipe.open()
    birth = msgspec.json.decode(await pipe.line() or b"null", type=Birth | None)
    if birth is None:
        return 0
    part = NodePart(birth) if isinstance(birth, BeNode) else GatewayPart(birth)
    start = asyncio.ensure_future(part.start())
    # A parent that dies while we begin must not leave us behind either.
    first = asyncio.ensure_future(pipe.line())
    await asyncio.wait((start, first), return_when=asyncio.FIRST_COMPLETED)
    if not start.done() and first.result() == b"":
        return 0
    try:
        pipe.say(await start)
    except Exception as error:
        # Whatever it is, whoever started us has to hear of it, and a line is what they read.
        pipe.say(Failed(" ".join(str(error).split())[:500] or type(error).__name__))
        if not isinstance(error, (LinkUnavailable, OSError)):
            logging.exception("could not start")
        return 1
    return await _obey(pipe, part, first)


async def _obey(pipe: Pipe, part: NodePart | GatewayPart, first: "asyncio.Future[bytes]") -> int:
    line = first
    watched_s = time.monotonic()
    draining: list[asyncio.Future[None]] = []
    try:
        while True:
            await asyncio.wait((line,), timeout=_WATCH_S)
            if time.monotonic() - watched_s >= _WATCH_S:
                watched_s = time.monotonic()
                failure = (await part.standing()).look.failure
                if failure:
                    pipe.say(Failed(failure))
                    return 1
            if not line.done():
                continue
            text = line.result()
            if not text:
                return 0
            match msgspec.json.decode(text, type=Request):
                case Look():
                    pipe.say(await part.standing())
                case DrainAsked(limit_s):
                    # Beside this loop, which has to notice the end of input also meanwhile.
                    draining.append(asyncio.ensure_future(_drain(pipe, part, limit_s)))
                case Tell(nodes):
                    part.tell(nodes)
                case Stop():
                    return 0
            line = asyncio.ensure_future(pipe.line())
    finally:
        line.cancel()
        for drain in draining:
            drain.cancel()
        # Not wait_for: what does not end when it is cancelled would be awaited for ever.
        await asyncio.wait((asyncio.ensure_future(part.stop()),), timeout=_STOP_S)


async def _drain(pipe: Pipe, part: NodePart | GatewayPart, limit_s: float) -> None:
    pipe.say(Drained(await part.drain(limit_s)))


def main() -> int:
    """The process."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    # What a terminal sends to all is for whoever started us to act on.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    code = 1
    try:
        # Not asyncio.run: that waits for every task, and nats-py's reconnecting one swallows its cancellation.
        code = asyncio.new_event_loop().run_until_complete(live())
    except Exception:
        logging.exception("ended by an error of ours")
    finally:
        sys.stderr.flush()
        # Nor may a thread that hangs in a driver keep a process alive that has ended otherwise.
        os._exit(code)


if __name__ == "__main__":
    main()
