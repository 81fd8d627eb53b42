"""The two shapes in which an answer goes out, chat and text, whole or as server-sent events."""

import asyncio
from typing import Literal, Protocol

import msgspec
from aiohttp import web
from msgspec import UNSET

from cluster.live.openai import (
    AssistantMessage,
    ChatChoice,
    ChatCompletion,
    ChatEvent,
    Delta,
    DeltaChoice,
    TextChoice,
    TextCompletion,
    Usage,
)

_encoder = msgspec.json.Encoder()
DONE = b"data: [DONE]\n\n"


class SlowReader(Exception):
    """The caller does not read what it asked for."""


class Style(Protocol):
    """How answers of one endpoint look. with_usage: streams tell their tokens at the end, and null before."""

    def __init__(self, request_id: str, created: int, model: str, with_usage: bool) -> None:
        """created: Unix time, seconds."""

    def whole(self, text: str, finish: str, usage: Usage) -> msgspec.Struct:
        """The whole answer."""

    def part(self, text: str, finish: str | None) -> msgspec.Struct:
        """An event with a piece of it. finish: on the last one."""

    def end(self, usage: Usage) -> msgspec.Struct:
        """The event that tells the tokens."""


class ChatStyle:
    """/v1/chat/completions"""

    def __init__(self, request_id: str, created: int, model: str, with_usage: bool) -> None:
        self._id, self._created, self._model = request_id, created, model
        self._usage = None if with_usage else UNSET
        self._begun = False

    def whole(self, text: str, finish: str, usage: Usage) -> ChatCompletion:
        """See Style."""
        choice = ChatChoice(AssistantMessage(text), _reason(finish))
        return ChatCompletion(self._id, self._created, self._model, [choice], usage)

    def part(self, text: str, finish: str | None) -> ChatEvent:
        """See Style. The first one tells the role."""
        delta = Delta("assistant" if not self._begun else UNSET, text if text or not self._begun else UNSET)
        self._begun = True
        choice = DeltaChoice(delta, _reason(finish) if finish is not None else None)
        return ChatEvent(self._id, self._created, self._model, [choice], self._usage)

    def end(self, usage: Usage) -> ChatEvent:
        """See Style."""
        return ChatEvent(self._id, self._created, self._model, [], usage)


class TextStyle:
    """/v1/completions"""

    def __init__(self, request_id: str, created: int, model: str, with_usage: bool) -> None:
        self._id, self._created, self._model = request_id, created, model
        self._usage = None if with_usage else UNSET

    def whole(self, text: str, finish: str, usage: Usage) -> TextCompletion:
        """See Style."""
        return TextCompletion(self._id, self._created, self._model, [TextChoice(text, _reason(finish))], usage)

    def part(self, text: str, finish: str | None) -> TextCompletion:
        """See Style."""
        choice = TextChoice(text, _reason(finish) if finish is not None else None)
        return TextCompletion(self._id, self._created, self._model, [choice], self._usage)

    def end(self, usage: Usage) -> TextCompletion:
        """See Style."""
        return TextCompletion(self._id, self._created, self._model, [], usage)


class EventStream(web.StreamResponse):
    """A stream of server-sent events. outcome: `ok`, or the code with which it ended."""

    def __init__(self, request_id: str) -> None:
        headers = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"}
        super().__init__(headers={**headers, "X-Request-Id": request_id, "X-Accel-Buffering": "no"})
        self.outcome = "ok"


def event(body: msgspec.Struct) -> bytes:
    """One event."""
    return b"data: " + _encoder.encode(body) + b"\n\n"


async def send(response: web.StreamResponse, payload: bytes, limit_s: float) -> None:
    """Write, and wait while too much is unread. Raises SlowReader after `limit_s`, ConnectionError without a peer."""
    try:
        async with asyncio.timeout(limit_s):
            await response.write(payload)
    except TimeoutError:
        raise SlowReader from None


def _reason(finish: str) -> Literal["stop", "length"]:
    return "stop" if finish == "stop" else "length"
