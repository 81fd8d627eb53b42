"""The gateway: an HTTP server that speaks OpenAI's API and asks the cluster through one client node."""

import asyncio
import contextlib
import hashlib
import hmac
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from pathlib import Path

import msgspec
from aiohttp import web

from cluster.errors import Code
from cluster.live import openai
from cluster.live.chat import ChatTokenizer, StopFinder
from cluster.live.exchange import Caller, Exchange, Exchanges, Part, answer
from cluster.live.http import HttpServer, Limits
from cluster.live.openai import ChatRequest, CompletionRequest, Refusal
from cluster.live.openapi import document
from cluster.live.prometheus import GatewayMetrics, NodeStatus
from cluster.live.sse import DONE, ChatStyle, EventStream, SlowReader, Style, TextStyle, event, send
from cluster.node import Ask
from cluster.protocol import Token

_log = logging.getLogger(__name__)
_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_THREAD_BYTES = 8_192
"""Of a body, from which on its tokens are computed beside the event loop: other streams must not wait for it."""
_TOKEN_BYTES_MAX = 5
_ENVELOPE_BYTES = 4_096
_NAME_TOLD_MAX = 256
_PROBE_TIMEOUT_S = 5.0
_PROBE_KEPT_S = 1.0

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class ServedModel(msgspec.Struct, frozen=True):
    """A model: its id for callers, its name in the cluster, and the directory of its tokenizer."""

    id: str
    name: str
    directory: str


class GatewaySettings(msgspec.Struct, frozen=True):
    """port: 0 for a free one. context_tokens: of prompt and answer together. api_keys: none: everybody may ask."""

    models: tuple[ServedModel, ...]
    context_tokens: int
    message_bytes_max: int
    host: str = "127.0.0.1"
    port: int = 0
    api_keys: tuple[str, ...] = ()
    open_max: int = 256
    limits: Limits = Limits()


class Gateway:
    """One HTTP server in front of one client node. Tokenizers are loaded in the constructor (ChatUnavailable)."""

    def __init__(self, settings: GatewaySettings, caller: Caller) -> None:
        self._settings = settings
        self._models = {model.id: (model, ChatTokenizer(Path(model.directory))) for model in settings.models}
        self._keys = [hashlib.sha256(key.encode()).digest() for key in settings.api_keys]
        self._exchanges = Exchanges(caller)
        self._began_unix_s = int(time.time())
        self._busy = 0
        self._failure = ""
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._probe: asyncio.Task[Refusal | None] | None = None
        self._probed_s = float("-inf")
        self._document = msgspec.json.encode(document([model.id for model in settings.models], bool(self._keys)))
        self._server = HttpServer(self._application(), settings.limits)
        self.metrics = GatewayMetrics(lambda: float(self._busy), lambda: float(self._server.connections))

    async def start(self) -> int:
        """Listen; the port. Raises OSError when it cannot be had."""
        return await self._server.start(self._settings.host, self._settings.port)

    async def drain(self, limit_s: float) -> bool:
        """Take nothing new and let what is open end; whether all of it did within `limit_s`."""
        self._draining = True
        self._server.stop_listening()
        try:
            await asyncio.wait_for(self._idle.wait(), limit_s)
        except TimeoutError:
            return False
        return True

    async def stop(self) -> None:
        """Close everything. Open requests are told."""
        self._draining = True
        self._exchanges.fail_all("the gateway stops")
        if self._probe is not None:
            self._probe.cancel()
        await self._server.stop()

    def fail(self, reason: str) -> None:
        """The client node is of no use any more: every request is told so, now and from now on."""
        self._failure = reason
        self._exchanges.fail_all("the gateway has lost its node")

    def observe(self, nodes: Sequence[NodeStatus]) -> None:
        """What /metrics tells of the nodes."""
        self.metrics.cluster.nodes = nodes

    def _application(self) -> web.Application:
        application = web.Application(
            middlewares=[self._answer_errors], client_max_size=self._settings.limits.body_bytes_max
        )
        application.add_routes(
            [
                web.post("/v1/chat/completions", self._chat),
                web.post("/v1/completions", self._completion),
                web.get("/v1/models", self._list_models),
                # With slashes, as ids of the hub have them.
                web.get("/v1/models/{id:.+}", self._tell_model),
                web.get("/healthz", self._health),
                web.get("/readyz", self._ready),
                web.get("/metrics", self._tell_metrics),
                web.get("/openapi.json", self._tell_document),
            ]
        )
        return application

    @web.middleware
    async def _answer_errors(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Whatever goes wrong before an answer has begun becomes a typed error."""
        code = "ok"
        try:
            response = await handler(request)
            if isinstance(response, EventStream):
                code = response.outcome
            return response
        except Refusal as refusal:
            code = refusal.code
            return _error(refusal)
        except web.HTTPException as error:
            refused = _of_http(error)
            code = refused.code
            return _error(refused, error.headers.get("Allow"))
        except asyncio.CancelledError:
            code = Code.CANCELLED
            raise
        except ConnectionError:
            # The caller went away while its body was read; whatever is answered reaches nobody.
            code = Code.CANCELLED
            return _error(Refusal(Code.CANCELLED, "the caller went away"))
        except Exception:
            code = openai.INTERNAL_ERROR
            _log.exception("%s %s", request.method, request.path)
            return _error(Refusal(code, "an error of the gateway, see its log"))
        finally:
            resource = request.match_info.route.resource
            endpoint = resource.canonical if resource is not None else "other"
            self.metrics.requests.labels(endpoint, str(code)).inc()

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._generate(request, ChatRequest, ChatStyle)

    async def _completion(self, request: web.Request) -> web.StreamResponse:
        return await self._generate(request, CompletionRequest, TextStyle)

    async def _generate(
        self, request: web.Request, kind: type[ChatRequest] | type[CompletionRequest], style: type[Style]
    ) -> web.StreamResponse:
        arrived_s = time.monotonic()
        tenant = self._authenticate(request)
        self._admit()
        self._busy += 1
        self._idle.clear()
        try:
            body = await self._body(request)
            wanted: ChatRequest | CompletionRequest = openai.parse(body, kind)
            ask, tokenizer = await self._ask(request, wanted, arrived_s, tenant, len(body))
            shape = style(ask.request_id, int(time.time()), wanted.model, wanted.wants_usage)
            with self._exchanges.open(ask) as exchange:
                parts = answer(exchange, tokenizer.detokenizer(), StopFinder(wanted.stops()), self.metrics)
                async with contextlib.aclosing(parts):
                    # Only now is it known whether this will be an answer, or an error with a status of its own.
                    first = await anext(parts)
                    if wanted.stream:
                        return await self._stream(request, exchange, shape, first, parts, wanted.wants_usage)
                    return await self._whole(exchange, shape, first, parts)
        finally:
            self._busy -= 1
            if self._busy == 0:
                self._idle.set()

    async def _whole(
        self, exchange: Exchange, shape: Style, part: Part, parts: AsyncGenerator[Part, None]
    ) -> web.StreamResponse:
        text = [part.text]
        async for part in parts:
            text.append(part.text)
        assert part.finish is not None
        self._completed(exchange)
        return _json(shape.whole("".join(text), part.finish, exchange.usage()), exchange.ask.request_id)

    async def _stream(
        self,
        request: web.Request,
        exchange: Exchange,
        shape: Style,
        part: Part,
        parts: AsyncGenerator[Part, None],
        with_usage: bool,
    ) -> web.StreamResponse:
        """Events as they come. What goes wrong from here on ends the stream with an event, or the connection."""
        response = EventStream(exchange.ask.request_id)
        limit_s = self._settings.limits.reader_s
        await response.prepare(request)
        try:
            while part.finish is None:
                await send(response, event(shape.part(part.text, None)), limit_s)
                part = await anext(parts)
            payload = event(shape.part(part.text, None)) if part.text else b""
            payload += event(shape.part("", part.finish))
            if with_usage:
                payload += event(shape.end(exchange.usage()))
            await send(response, payload + DONE, limit_s)
            self._completed(exchange)
        except Refusal as refusal:
            await self._break(response, refusal)
        except (SlowReader, ConnectionError) as error:
            response.outcome = Code.CANCELLED
            if isinstance(error, SlowReader) and request.transport is not None:
                # Not `close`: that would wait until the peer has read what it does not read.
                request.transport.abort()
        except Exception:
            _log.exception("in the middle of stream %s", exchange.ask.request_id)
            await self._break(response, Refusal(openai.INTERNAL_ERROR, "an error of the gateway, see its log"))
        return response

    async def _break(self, response: EventStream, refusal: Refusal) -> None:
        response.outcome = refusal.code
        with contextlib.suppress(SlowReader, ConnectionError):
            await send(response, event(openai.error_body(refusal)), self._settings.limits.reader_s)

    def _completed(self, exchange: Exchange) -> None:
        duration_s = time.monotonic() - exchange.ask.intended_s
        self.metrics.ended(len(exchange.ask.prompt), exchange.answered, exchange.cached, duration_s)

    def _authenticate(self, request: web.Request) -> str:
        """Whose request this is: sessions of different keys must not meet. Raises Refusal."""
        if not self._keys:
            return ""
        scheme, _, key = request.headers.get("Authorization", "").partition(" ")
        given = hashlib.sha256(key.strip().encode("utf-8", "surrogateescape")).digest()
        # All are compared, each in constant time, so that the time tells nothing.
        matches = [hmac.compare_digest(given, known) for known in self._keys]
        if scheme.lower() != "bearer" or not any(matches):
            raise Refusal(openai.INVALID_API_KEY, "the API key is missing or wrong; send Authorization: Bearer KEY")
        return f"{matches.index(True)}/"

    def _admit(self) -> None:
        if self._failure:
            raise Refusal(Code.CONTROLLER_UNREACHABLE, "the gateway has lost its node and is about to restart")
        if self._draining:
            raise Refusal(openai.STOPPING, "the gateway stops and takes nothing new")
        if self._busy >= self._settings.open_max:
            raise Refusal(Code.OVERLOADED, f"{self._settings.open_max} requests are open, which is the limit")

    async def _body(self, request: web.Request) -> bytes:
        # Anything else could be sent by a web page that a user of this host happens to look at.
        if request.content_type != "application/json":
            raise Refusal(openai.UNSUPPORTED_MEDIA_TYPE, "the body must be sent as Content-Type: application/json")
        if request.headers.get("Content-Encoding", "identity") != "identity":
            raise Refusal(openai.UNSUPPORTED_MEDIA_TYPE, "the body must be sent without Content-Encoding")
        try:
            async with asyncio.timeout(self._settings.limits.body_s):
                return await request.read()
        except TimeoutError:
            message = f"the body did not arrive within {self._settings.limits.body_s:g} s"
            raise Refusal(openai.REQUEST_TIMEOUT, message) from None
        except web.RequestPayloadError as error:
            raise Refusal(Code.INVALID_REQUEST, "the body is not sent as HTTP/1.1 says") from error

    async def _ask(
        self,
        request: web.Request,
        wanted: ChatRequest | CompletionRequest,
        arrived_s: float,
        tenant: str,
        body_bytes: int,
    ) -> tuple[Ask, ChatTokenizer]:
        """What the cluster is asked. Raises Refusal."""
        found = self._models.get(wanted.model)
        if found is None:
            raise self._unknown_model(wanted.model)
        model, tokenizer = found
        if body_bytes < _THREAD_BYTES:
            prompt = _prompt(tokenizer, wanted)
        else:
            prompt = await asyncio.to_thread(_prompt, tokenizer, wanted)
        max_tokens = openai.check_tokens(wanted, prompt, self._settings.context_tokens, tokenizer.vocabulary_size)
        size = _ENVELOPE_BYTES + _TOKEN_BYTES_MAX * (len(prompt) + max_tokens)
        if size > self._settings.message_bytes_max:
            message = f"prompt and answer can take {size} bytes in a message of the cluster, which may have"
            raise Refusal(openai.CONTEXT_LENGTH_EXCEEDED, f"{message} {self._settings.message_bytes_max}")
        session = wanted.session_id or _session_of(request)
        ask = Ask(
            request_id=f"{wanted.ID_PREFIX}-{secrets.token_hex(12)}",
            model=model.name,
            prompt=prompt,
            max_tokens=max_tokens,
            intended_s=arrived_s,
            timeout_s=wanted.timeout or openai.DEFAULT_TIMEOUT_S,
            session_id=None if session is None else tenant + session,
            priority=wanted.priority or 0,
            sampling=wanted.sampling(),
            worker=wanted.worker or "",
        )
        return ask, tokenizer

    async def _list_models(self, request: web.Request) -> web.Response:
        self._authenticate(request)
        return _json(openai.ModelList([self._described(name) for name in self._models]))

    async def _tell_model(self, request: web.Request) -> web.Response:
        self._authenticate(request)
        name = request.match_info["id"]
        if name not in self._models:
            raise self._unknown_model(name)
        return _json(self._described(name))

    def _described(self, name: str) -> openai.Model:
        return openai.Model(name, self._began_unix_s, self._settings.context_tokens)

    def _unknown_model(self, name: str) -> Refusal:
        told, served = name[:_NAME_TOLD_MAX], ", ".join(self._models)
        return Refusal(Code.MODEL_NOT_FOUND, f"model: {told!r} is not served; there is {served}", "model")

    async def _health(self, request: web.Request) -> web.Response:
        if self._failure:
            raise Refusal(openai.INTERNAL_ERROR, "the gateway has lost its node and is about to restart")
        return web.json_response({"status": "ok"})

    async def _ready(self, request: web.Request) -> web.Response:
        """Whether the cluster makes a token, as it did or did not a moment ago."""
        self._admit()
        probe = self._probe
        if probe is None or (probe.done() and time.monotonic() - self._probed_s > _PROBE_KEPT_S):
            probe = self._probe = asyncio.create_task(self._make_a_token())
        # Who asks may go away without ending the probe, for which others wait too.
        refusal = await asyncio.shield(probe)
        if refusal is not None:
            raise Refusal(Code.NO_WORKERS_AVAILABLE, f"the cluster makes no token: {refusal.code}: {refusal.message}")
        return web.json_response({"status": "ready"})

    async def _make_a_token(self) -> Refusal | None:
        """Why the cluster does not, None when it does. Of the first model; before whatever waits there."""
        model, tokenizer = next(iter(self._models.values()))
        ask = Ask(
            request_id=f"ready-{secrets.token_hex(12)}",
            model=model.name,
            prompt=tokenizer.text("ready?"),
            max_tokens=1,
            intended_s=time.monotonic(),
            timeout_s=_PROBE_TIMEOUT_S,
            priority=1,
        )
        try:
            with self._exchanges.open(ask) as exchange:
                while not exchange.ended:
                    await exchange.take()
                return exchange.refusal
        except Refusal as refusal:
            return refusal
        finally:
            self._probed_s = time.monotonic()

    async def _tell_metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=self.metrics.text(), headers={"Content-Type": _METRICS_TYPE})

    async def _tell_document(self, request: web.Request) -> web.Response:
        return web.Response(body=self._document, content_type="application/json")


def _session_of(request: web.Request) -> str | None:
    session = request.headers.get("X-Session-Id")
    if session is None:
        return None
    if not 1 <= len(session) <= openai.SESSION_ID_MAX:
        message = f"X-Session-Id: expected 1 to {openai.SESSION_ID_MAX} characters"
        raise Refusal(Code.INVALID_REQUEST, message, "X-Session-Id")
    if not openai.is_unicode(session):
        # The client node could not send it, and a node that fails takes all its requests with it.
        raise Refusal(Code.INVALID_REQUEST, "X-Session-Id: is not valid UTF-8", "X-Session-Id")
    return session


def _prompt(tokenizer: ChatTokenizer, wanted: ChatRequest | CompletionRequest) -> tuple[Token, ...]:
    if isinstance(wanted, CompletionRequest):
        return tokenizer.text(wanted.prompt) if isinstance(wanted.prompt, str) else tuple(wanted.prompt)
    try:
        return tokenizer.chat([message.plain() for message in wanted.messages])
    except ValueError as error:
        raise Refusal(Code.INVALID_REQUEST, f"messages: {error}", "messages") from error


def _json(body: msgspec.Struct, request_id: str | None = None) -> web.Response:
    headers = {} if request_id is None else {"X-Request-Id": request_id}
    return web.Response(body=msgspec.json.encode(body), content_type="application/json", headers=headers)


def _error(refusal: Refusal, allow: str | None = None) -> web.Response:
    headers = {}
    if refusal.status in (429, 503):
        headers["Retry-After"] = str(openai.RETRY_AFTER_S)
    if refusal.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if allow is not None:
        headers["Allow"] = allow
    body = msgspec.json.encode(openai.error_body(refusal))
    return web.Response(status=refusal.status, body=body, content_type="application/json", headers=headers)


def _of_http(error: web.HTTPException) -> Refusal:
    """What aiohttp refuses by itself."""
    match error.status:
        case 404:
            return Refusal(openai.NOT_FOUND, "there is no such path; GET /openapi.json lists them")
        case 405:
            return Refusal(openai.METHOD_NOT_ALLOWED, "this path does not take this method")
        case 413:
            return Refusal(openai.REQUEST_TOO_LARGE, "the body is larger than this server takes")
    return Refusal(Code.INVALID_REQUEST, "the request is not one that this server takes")
