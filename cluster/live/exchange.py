"""One HTTP request and the cluster: what was asked, what has come back, and its text as far as it is certain."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import msgspec

from cluster.errors import Code
from cluster.live.chat import Detokenizer, StopFinder
from cluster.live.openai import INTERNAL_ERROR, Refusal, Usage, refusal_of
from cluster.live.prometheus import GatewayMetrics
from cluster.node import Abandon, Ask, Deliver, Event
from cluster.protocol import Token

_OVERDUE_S = 5.0
"""A client node ends each request at its deadline; this much later it has failed itself."""


class Caller(Protocol):
    """What drives a client node; cluster.live.node.LiveNode is one."""

    delivered: Callable[[Deliver], None] | None

    def feed(self, event: Event) -> None:
        """Hand an event to the node."""


class Exchange:
    """A request that the cluster was asked, and the tokens that have come and were not taken yet.

    It holds no more than the request's own limit of tokens, however slowly they are taken.
    """

    def __init__(self, ask: Ask) -> None:
        self.ask = ask
        self.answered = 0
        """Tokens that are part of the answer, as far as its text has been made. Whoever makes the text counts."""
        self.cached = 0
        self.finish: str | None = None
        self.refusal: Refusal | None = None
        self._tokens: list[Token] = []
        self._news = asyncio.Event()

    @property
    def ended(self) -> bool:
        """Whether the cluster has said its last word about it."""
        return self.finish is not None or self.refusal is not None

    def deliver(self, delivery: Deliver) -> None:
        """News from the client node."""
        self._tokens += delivery.tokens
        self.cached = max(self.cached, delivery.cached_tokens)
        self.finish = delivery.finish
        if delivery.code is not None:
            self.refusal = refusal_of(delivery.code)
        self._news.set()

    def fail(self, refusal: Refusal) -> None:
        """Nothing more will come."""
        if not self.ended:
            self.refusal = refusal
            self._news.set()

    async def take(self) -> list[Token]:
        """The tokens that have come; waits for some, or for the end. Raises Refusal when the request has failed."""
        try:
            async with asyncio.timeout_at(self.ask.intended_s + self.ask.timeout_s + _OVERDUE_S):
                await self._news.wait()
        except TimeoutError:
            raise refusal_of(Code.DEADLINE_EXCEEDED) from None
        self._news.clear()
        tokens, self._tokens = self._tokens, []
        if not tokens and self.refusal is not None:
            raise self.refusal
        if self.ended:
            # What came together with the end is taken first; the next call tells the end.
            self._news.set()
        return tokens

    def usage(self) -> Usage:
        """The request's tokens up to now."""
        return Usage.of(len(self.ask.prompt), self.answered, self.cached)


class Exchanges:
    """All open exchanges of one client node."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._open: dict[str, Exchange] = {}
        caller.delivered = self._delivered

    def __len__(self) -> int:
        return len(self._open)

    @contextmanager
    def open(self, ask: Ask) -> Iterator[Exchange]:
        """Ask the cluster. Whoever leaves before the end, for whatever reason, has abandoned the request."""
        exchange = Exchange(ask)
        self._caller.feed(ask)
        self._open[ask.request_id] = exchange
        try:
            yield exchange
        finally:
            del self._open[ask.request_id]
            if not exchange.ended:
                self._caller.feed(Abandon(ask.request_id))

    def fail_all(self, message: str) -> None:
        """The client node is of no use any more."""
        for exchange in self._open.values():
            exchange.fail(Refusal(INTERNAL_ERROR, message))

    def _delivered(self, delivery: Deliver) -> None:
        exchange = self._open.get(delivery.request_id)
        if exchange is not None:
            exchange.deliver(delivery)


class Part(msgspec.Struct, frozen=True):
    """A piece of an answer's text. finish: on the last one, `stop` or `length`."""

    text: str
    finish: str | None = None


async def answer(
    exchange: Exchange, detokenizer: Detokenizer, stops: StopFinder, metrics: GatewayMetrics
) -> AsyncGenerator[Part, None]:
    """The text of an exchange as it comes, one part for all tokens that came together. Raises Refusal."""
    last_s = exchange.ask.intended_s
    first = True
    while True:
        tokens = await exchange.take()
        if tokens:
            now = time.monotonic()
            if first:
                metrics.first_token(now - last_s)
            else:
                metrics.more_tokens(len(tokens), now - last_s)
            first, last_s = False, now
        text = _text(exchange, tokens, detokenizer, stops)
        finish = exchange.finish
        if finish is not None and not stops.found:
            text += stops.push(detokenizer.end())
            text += stops.end()
        if stops.found:
            finish = "stop"
        if text or finish is not None:
            yield Part(text, finish)
        if finish is not None:
            return


def _text(exchange: Exchange, tokens: list[Token], detokenizer: Detokenizer, stops: StopFinder) -> str:
    """What may be given out now. Tokens after a stop string came too late to be stopped and are not counted."""
    if not stops.sought:
        exchange.answered += len(tokens)
        return stops.push(detokenizer.push(tokens))
    text = ""
    for token in tokens:
        # One at a time: only so it is known which of them has completed the stop string.
        exchange.answered += 1
        text += stops.push(detokenizer.push([token]))
        if stops.found:
            break
    return text
