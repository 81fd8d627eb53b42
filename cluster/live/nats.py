"""A node's link to the bus, on nats-py.

One subscription per node: its inbox and everything below. `<inbox>.in` carries messages, `<inbox>.nr.<n>` the
broker's word that nobody listens, `<inbox>.echo.<n>` what the node sends to itself to prove its link. A controller
has two more: what is meant for all controllers, and its share of what is meant for any of them.
"""

import asyncio
import itertools
import logging
import time
from collections import OrderedDict
from collections.abc import Callable

import msgspec
import nats
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from cluster.node import Event, LinkDown, LinkUp, NoResponders, Received, Send, SendFailed
from cluster.policy import LinkPolicy
from cluster.protocol import CONTROLLERS, EVERY_CONTROLLER, Message, Subject, decode, encode

_log = logging.getLogger(__name__)
_AWAITING_MAX = 4_096
_AWAITING_S = 10.0
"""For how long the broker's word that nobody listens is awaited; it takes a round trip."""
_CLOSE_S = 1.0
_WARN_S = 10.0


class LinkUnavailable(Exception):
    """The first connection could not be made. One line."""


class LinkFacts(msgspec.Struct, frozen=True):
    """The node's view of its link. Message counts are over all its connections.

    lost: messages that came faster than they were taken. undecoded: messages that were not of our protocol. awaiting:
    sends of which the broker may still say that nobody listens.
    """

    connected: bool
    cid: int
    messages_in: int
    messages_out: int
    reconnects: int
    lost: int
    subscriptions: int
    undecoded: int = 0
    awaiting: int = 0


class NatsLink:
    """Connects once, then reconnects as often as `policy.reconnects_max` says. While disconnected nothing is buffered:
    sends fail at once.

    deliver: told of everything that happens, on the event loop's thread; must not block. controller: whether it also
    hears what is addressed to all controllers, or to any.
    """

    def __init__(
        self,
        node: str,
        url: str,
        policy: LinkPolicy,
        deliver: Callable[[Event], None],
        *,
        controller: bool = False,
    ) -> None:
        self.failure = ""
        """Why it stays off the bus for good, one line; empty as long as it does not."""
        self._node = node
        self._url = url
        self._policy = policy
        self._deliver = deliver
        self._client = Client()
        self._inbox = Subject.inbox(node)
        self._controller = controller
        self._numbers = itertools.count(1)
        self._awaiting: OrderedDict[str, tuple[str, Message]] = OrderedDict()
        self._forgetting: asyncio.TimerHandle | None = None
        self._echoes: dict[str, asyncio.Future[float]] = {}
        self._last_error = ""
        self._refused = ""
        self._lost = 0
        self._undecoded = 0
        self._warned_s = float("-inf")
        self._reconnects_failed = 0
        self._closing = False
        self._announcing: asyncio.Task[None] | None = None
        self._giving_up: asyncio.Task[None] | None = None

    async def open(self, limit_s: float) -> None:
        """Connect, subscribe, see it work; LinkUp follows. Raises LinkUnavailable within `limit_s`."""
        policy = self._policy
        try:
            async with asyncio.timeout(limit_s):
                await self._client.connect(
                    self._url,
                    name=self._node,
                    inbox_prefix=self._inbox,
                    ping_interval=policy.ping_s,
                    max_outstanding_pings=policy.pings_outstanding_max,
                    connect_timeout=policy.connect_s,
                    reconnect_time_wait=policy.reconnect_s,
                    max_reconnect_attempts=-1,
                    # No buffer: what is sent after a reconnect would be stale, and nobody could tell.
                    pending_size=-1,
                    error_cb=self._on_error,
                    disconnected_cb=self._on_disconnected,
                    reconnected_cb=self._on_reconnected,
                )
                for subject, group in self._subscriptions():
                    limit = policy.pending_messages_max
                    await self._client.subscribe(subject, group, cb=self._on_message, pending_msgs_limit=limit)
                # Not `flush`: its ping overtakes a subscription that still waits to be written. The broker takes a
                # connection's lines in order, so the echo proves every subscription made before it.
                if not await self.echo(limit_s):
                    raise TimeoutError("the subscriptions did not come into force")
                if self._refused:
                    raise TimeoutError(self._refused)
        except (TimeoutError, OSError, NatsError) as error:
            reason = self._last_error or str(error) or type(error).__name__
            await self.close()
            raise LinkUnavailable(f"{self._node}: no connection to NATS within {limit_s:g} s: {reason}") from error
        self._deliver(LinkUp())

    async def send(self, send: Send) -> None:
        """Publish; what cannot be sent comes back as SendFailed."""
        reply = ""
        if send.needs_responder:
            reply = f"{self._inbox}.nr.{next(self._numbers)}"
            self._await_word(reply, send)
        try:
            await self._client.publish(Subject.of(send.to), encode(send.message), reply)
        except (NatsError, OSError) as error:
            _log.debug("%s: not sent: %s", self._node, error)
            self._awaiting.pop(reply, None)
            self._deliver(SendFailed(send.to, send.message))

    async def echo(self, limit_s: float) -> bool:
        """Whether a message to ourselves comes back over the present connection within `limit_s`."""
        return await self.round_trip(limit_s) is not None

    async def round_trip(self, limit_s: float, payload_bytes: int = 0) -> float | None:
        """Seconds until a message to ourselves of that size has come back; None when it has not within `limit_s`."""
        if not self._client.is_connected:
            return None
        subject = f"{self._inbox}.echo.{next(self._numbers)}"
        loop = asyncio.get_running_loop()
        arrived: asyncio.Future[float] = loop.create_future()
        self._echoes[subject] = arrived
        began_s = loop.time()
        try:
            await self._client.publish(subject, bytes(payload_bytes))
            return await asyncio.wait_for(arrived, limit_s) - began_s
        except (TimeoutError, NatsError):
            return None
        finally:
            del self._echoes[subject]

    def facts(self) -> LinkFacts:
        """The link's counters."""
        client = self._client
        return LinkFacts(
            connected=client.is_connected,
            cid=int(client.client_id or 0) if client.is_connected else 0,
            messages_in=client.stats["in_msgs"],
            messages_out=client.stats["out_msgs"],
            reconnects=client.stats["reconnects"],
            lost=self._lost,
            subscriptions=len(client._subs),
            undecoded=self._undecoded,
            awaiting=len(self._awaiting),
        )

    async def close(self) -> None:
        """Leave the bus. Never raises, never waits for a dead link."""
        self._closing = True
        for job in (self._announcing, self._giving_up, self._forgetting):
            if job is not None:
                job.cancel()
        await self._close_client()

    async def _close_client(self) -> None:
        try:
            async with asyncio.timeout(_CLOSE_S):
                await self._client.close()
        except (TimeoutError, OSError, NatsError) as error:
            _log.debug("%s: closing: %s", self._node, error)

    def _subscriptions(self) -> list[tuple[str, str]]:
        """Subject and queue group of each."""
        own = [(f"{self._inbox}.>", "")]
        if not self._controller:
            return own
        return [*own, (Subject.of(EVERY_CONTROLLER), ""), (Subject.of(CONTROLLERS), CONTROLLERS)]

    def _await_word(self, reply: str, send: Send) -> None:
        self._awaiting[reply] = (send.to, send.message)
        if len(self._awaiting) > _AWAITING_MAX:
            self._awaiting.popitem(last=False)
        if self._forgetting is None:
            self._arrange_forgetting(reply)

    def _arrange_forgetting(self, newest: str) -> None:
        """A receiver that is there says nothing: forget in `_AWAITING_S` what was sent up to now."""
        loop = asyncio.get_running_loop()
        self._forgetting = loop.call_later(_AWAITING_S, self._forget, newest)

    def _forget(self, newest: str) -> None:
        self._forgetting = None
        last = int(newest.rpartition(".")[2])
        while self._awaiting and int(next(iter(self._awaiting)).rpartition(".")[2]) <= last:
            self._awaiting.popitem(last=False)
        if self._awaiting:
            self._arrange_forgetting(next(reversed(self._awaiting)))

    async def _on_message(self, msg: Msg) -> None:
        subject = msg.subject
        if subject.startswith(f"{self._inbox}.echo."):
            echo = self._echoes.get(subject)
            # One that nobody waits for any more comes late, and is no message of our protocol all the same.
            if echo is not None and not echo.done():
                echo.set_result(asyncio.get_running_loop().time())
            return
        if subject.startswith(f"{self._inbox}.nr."):
            waiting = self._awaiting.pop(subject, None)
            if waiting is not None and msg.headers is not None and msg.headers.get("Status") == "503":
                self._deliver(NoResponders(*waiting))
            return
        try:
            message = decode(msg.data)
        except msgspec.DecodeError as error:
            self._undecoded += 1
            if time.monotonic() - self._warned_s >= _WARN_S:
                self._warned_s = time.monotonic()
                count = self._undecoded
                _log.warning("%s: dropped a message not of our protocol (%d so far): %s", self._node, count, error)
            return
        self._deliver(Received(message))

    async def _on_error(self, error: Exception) -> None:
        self._last_error = str(error) or type(error).__name__
        if "permissions violation for subscription" in self._last_error.lower():
            self._refused = self._last_error
        if self._client.is_reconnecting:
            self._reconnect_failed()
        if isinstance(error, nats.errors.SlowConsumerError):
            self._lost += 1
            if self._lost % 1_000 != 1:
                return
        _log.info("%s: nats: %s", self._node, self._last_error)

    def _reconnect_failed(self) -> None:
        """nats-py counts in its own way, and takes 0 for no limit."""
        self._reconnects_failed += 1
        most = self._policy.reconnects_max
        if most is not None and self._reconnects_failed >= most and not (self.failure or self._closing):
            self.failure = f"off the bus for good after {most} failed reconnects: {self._last_error}"
            _log.error("%s: %s", self._node, self.failure)
            # In a task of its own: this one is the client's, which closing cancels.
            self._giving_up = asyncio.create_task(self._close_client())

    async def _on_disconnected(self) -> None:
        self._awaiting.clear()
        self._reconnects_failed = 0
        if not (self._closing or self.failure):
            self._deliver(LinkDown(self._last_error or "connection lost"))

    async def _on_reconnected(self) -> None:
        if self._announcing is not None:
            self._announcing.cancel()
        self._announcing = asyncio.create_task(self._announce(self.facts().cid))

    async def _announce(self, cid: int) -> None:
        """LinkUp as soon as the subscription works on the new connection, for as long as that one lasts."""
        while self.facts().cid == cid and not self._closing:
            if await self.echo(self._policy.connect_s):
                self._deliver(LinkUp())
                return
