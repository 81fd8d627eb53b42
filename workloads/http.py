"""Drives an OpenAI-compatible endpoint with a planned load; nothing of this project need run behind it."""

import asyncio
import os
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import urlsplit

import aiohttp
import msgspec

from analysis.schema import RequestRow
from cluster.caller import Source
from cluster.errors import Code
from cluster.node import Ask
from workloads import words
from workloads.answer import BAD_RESPONSE, CONNECT_FAILED, CONNECTION_BROKEN, Answer
from workloads.event_stream import EventStreamDecoder, EventStreamError

CONNECTIONS_MAX = 1024
"""Requests beyond wait for a connection, and their dispatch lag says so."""
_ERROR_BYTES_MAX = 2**16
_FAILURES_MAX = 20
_LINGER_S = 1.0
_ENDED = "the run was ended"
_READ_BYTES = 2**16
_encoder = msgspec.json.Encoder()


class BadTarget(ValueError):
    """What is to be driven is named wrongly. The message is one line."""


class HttpTarget(msgspec.Struct, frozen=True):
    """An endpoint. url: its base, up to and with `/v1`. key_env: the variable that holds its API key, empty for none.

    api: /chat/completions or /completions. length_field: where the output cap goes (newer models of OpenAI want
    `max_completion_tokens`). session_field: where the session's name goes, empty: nowhere; endpoints may refuse what
    they do not know. extra: fields of every request, over ours. Raises BadTarget.
    """

    url: str
    model: str
    api: Literal["chat", "completions"] = "chat"
    key_env: str = ""
    length_field: str = "max_tokens"
    session_field: str = ""
    extra: dict[str, Any] = {}

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            parts.port  # noqa: B018 - it is read only to see whether it is one
        except ValueError as error:
            raise BadTarget(f"{self.url}: {error}") from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise BadTarget(f"{self.url}: expected a URL such as http://127.0.0.1:8000/v1")
        if parts.username is not None or parts.password is not None:
            raise BadTarget("the URL holds a user name or password, which would be stored with the results")
        if parts.query or parts.fragment:
            raise BadTarget(f"{self.url}: expected a base URL, without ? and #")

    @property
    def path(self) -> str:
        """Where requests go."""
        end = "chat/completions" if self.api == "chat" else "completions"
        return f"{self.url.rstrip('/')}/{end}"

    def headers(self) -> dict[str, str]:
        """Of every request. Raises BadTarget when there is no key where there should be one."""
        found = {"Content-Type": "application/json", "Accept": "text/event-stream", "Accept-Encoding": "identity"}
        if self.key_env:
            key = os.environ.get(self.key_env, "").strip()
            if not key:
                raise BadTarget(f"the environment has no {self.key_env}, from which the API key is taken")
            if not key.isprintable() or not key.isascii():
                raise BadTarget(f"{self.key_env}: expected an API key of printable ASCII characters")
            found["Authorization"] = f"Bearer {key}"
        return found

    def body(self, ask: Ask) -> bytes:
        """The request: greedy, streamed, with the counts of tokens at its end."""
        said: dict[str, Any] = {"model": self.model, "stream": True, "stream_options": {"include_usage": True}}
        said |= {self.length_field: ask.max_tokens, "temperature": 0}
        if self.api == "chat":
            said["messages"] = words.messages(ask.prompt)
        else:
            said["prompt"] = words.text(ask.prompt)
        if self.session_field and ask.session_id:
            said[self.session_field] = ask.session_id
        return _encoder.encode(said | self.extra)


class HttpDriver:
    """Executes a source of requests against a target. In an `async with` it holds its connections.

    Every request ends as exactly one row, at its deadline at the latest: what hangs has failed. Nothing is retried:
    what an endpoint's users would see is what is measured. All times are the event loop's, seconds, which is the
    monotonic clock. Several sources may be run, one after the other.
    """

    def __init__(
        self,
        target: HttpTarget,
        record: Callable[[RequestRow], None],
        connections_max: int = CONNECTIONS_MAX,
        told: Callable[[Ask], None] = lambda ask: None,
    ) -> None:
        """told: of every ask, as it begins. Raises BadTarget."""
        self._target = target
        self._record = record
        self._told = told
        self._headers = target.headers()
        self._connections_max = connections_max
        self._free = asyncio.Semaphore(connections_max)
        self._session: aiohttp.ClientSession | None = None
        self._source: Source | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._over: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.asked = 0
        self.outcomes: Counter[str] = Counter()
        self.untold = self.spread = 0
        """Completed answers of which the endpoint told no count of tokens, or another one than there were pieces."""
        self.failures: dict[tuple[str, str], int] = {}
        """How often each failure was seen, by code and what was said about it; of the first few different ones."""

    async def __aenter__(self) -> Self:
        # Our own semaphore is the bound, so that a request is "sent" when it is, and not when it queues in the pool.
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=30)
        self._session = aiohttp.ClientSession(
            connector=connector,
            headers=self._headers,
            timeout=aiohttp.ClientTimeout(total=None),
            read_bufsize=_READ_BYTES,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    @property
    def in_flight(self) -> int:
        """Asked and not ended."""
        return len(self._tasks)

    async def run(self, source: Source) -> None:
        """Ask everything that the source says, and return when all of it has ended.

        Cancelled, it gives up what is in flight, and each gets its row as `cancelled`.
        """
        self._source = source
        self._over = asyncio.get_running_loop().create_future()
        try:
            self._pump()
            await self._over
        finally:
            if self._timer is not None:
                self._timer.cancel()
            self._source = None
            for task in self._tasks:
                task.cancel()
            if self._tasks:
                await asyncio.wait(self._tasks)

    def _pump(self) -> None:
        """Ask what is due, and come back when more will be."""
        loop, source = asyncio.get_running_loop(), self._source
        self._timer = None
        if source is None:
            return
        for ask in source.due(loop.time()):
            self._begin(ask)
        self._after(source)

    def _after(self, source: Source) -> None:
        next_s = source.next_time()
        if self._timer is not None:
            if not self._timer.cancelled() and self._timer.when() == next_s:
                return
            self._timer.cancel()
            self._timer = None
        if next_s is not None:
            self._timer = asyncio.get_running_loop().call_at(next_s, self._pump)
        elif source.finished and not self._tasks and self._over is not None and not self._over.done():
            self._over.set_result(None)

    def _begin(self, ask: Ask) -> None:
        self.asked += 1
        self._told(ask)
        task = asyncio.get_running_loop().create_task(self._ask(ask))
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._ended(done, ask))

    def _ended(self, task: "asyncio.Task[None]", ask: Ask) -> None:
        self._tasks.discard(task)
        over = self._over
        if task.cancelled():
            # Before its first step; later it would have written its row itself.
            answer = Answer()
            answer.fail(Code.CANCELLED, _ENDED)
            self._finish(answer, ask, None)
        elif (error := task.exception()) is not None:
            # An error of ours or of the disk: nobody else would tell.
            if over is not None and not over.done():
                over.set_exception(error)
            return
        source = self._source
        if source is None:
            return
        for following in source.ended(ask.request_id, asyncio.get_running_loop().time()):
            self._begin(following)
        # An end may bring a time at which more is due, or be the last.
        self._after(source)

    async def _ask(self, ask: Ask) -> None:
        """One request from its due time to its row."""
        loop = asyncio.get_running_loop()
        answer = Answer()
        sent_s = None
        try:
            async with asyncio.timeout_at(ask.intended_s + ask.timeout_s), self._free:
                sent_s = loop.time()
                await self._exchange(ask, answer)
        except TimeoutError:
            answer.fail(Code.DEADLINE_EXCEEDED, f"not over {ask.timeout_s:g} s after it was to be sent")
        except asyncio.CancelledError:
            answer.fail(Code.CANCELLED, _ENDED)
        except aiohttp.ClientConnectorError as error:
            answer.fail(CONNECT_FAILED, str(error))
        except (EventStreamError, aiohttp.ClientPayloadError, aiohttp.ClientResponseError) as error:
            answer.fail(BAD_RESPONSE, f"{type(error).__name__}: {error}")
        except (aiohttp.ClientError, OSError) as error:
            answer.fail(CONNECTION_BROKEN, f"{type(error).__name__}: {error}")
        self._finish(answer, ask, sent_s)

    def _finish(self, answer: Answer, ask: Ask, sent_s: float | None) -> None:
        ended_s = answer.done_s or asyncio.get_running_loop().time()
        row = answer.row(ask, ended_s if sent_s is None else sent_s, ended_s, len(ask.prompt))
        self.outcomes[row.outcome] += 1
        if answer.code:
            self._note(answer.code, answer.detail)
        elif answer.tokens_told is None:
            self.untold += 1
        elif answer.tokens_told != len(answer.pieces):
            self.spread += 1
        self._record(row)

    async def _exchange(self, ask: Ask, answer: Answer) -> None:
        assert self._session is not None, "use `async with`"
        clock = asyncio.get_running_loop().time
        body = self._target.body(ask)
        async with self._session.post(self._target.path, data=body, allow_redirects=False) as response:
            if response.status != 200:
                return answer.refuse(response.status, await _beginning(response))
            if response.content_type != "text/event-stream":
                told = (await _beginning(response)).decode("utf-8", "replace")
                return answer.fail(BAD_RESPONSE, f"{response.content_type} instead of text/event-stream: {told}")
            decoder = EventStreamDecoder()
            async for piece in response.content.iter_any():
                now = clock()
                for event in decoder.feed(piece):
                    answer.take(event, now)
                if answer.done or answer.code:
                    break
            answer.close()
            # What goes on for ever must not come back as somebody else's connection.
            if not answer.done or not await _reaches_end(response):
                response.close()
            return None

    def _note(self, code: str, detail: str) -> None:
        seen = (code, detail)
        if seen not in self.failures and len(self.failures) >= _FAILURES_MAX:
            seen = (code, "and others")
        self.failures[seen] = self.failures.get(seen, 0) + 1


async def _reaches_end(response: aiohttp.ClientResponse) -> bool:
    """Whether the body ends soon after its [DONE]: then its connection can serve the next request."""
    try:
        async with asyncio.timeout(_LINGER_S):
            return not await response.content.readany()
    except TimeoutError:
        return False


async def _beginning(response: aiohttp.ClientResponse) -> bytes:
    """The first bytes of a body, which may be endless."""
    body = b""
    async for piece in response.content.iter_any():
        body += piece
        if len(body) > _ERROR_BYTES_MAX:
            response.close()
            break
    return body[:_ERROR_BYTES_MAX]
