"""Toxiproxy's HTTP API. Routed by hand, because its answers to wrong paths and methods are part of what it is."""

import json
import posixpath
import re
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple
from urllib.parse import unquote

from aiohttp import web

from chaos.toxiproxy.embedded.body import BODY_BYTES_MAX, first_value
from chaos.toxiproxy.embedded.collection import Collection, PopulateError
from chaos.toxiproxy.embedded.errors import ApiError, BadBody
from chaos.toxiproxy.embedded.metrics import CONTENT_TYPE, Metrics
from chaos.toxiproxy.launcher import VERSION

API_VERSION = f"{VERSION}+embedded"
"""Toxiproxy's version whose behaviour this is, and that it is not Toxiproxy's own server."""
_JSON = "application/json"
_TEXT = "text/plain; charset=utf-8"
_REQUEST_ID = "X-Toxiproxy-Request-Id"
_UNSAFE = re.compile("[<>&\u2028\u2029]")

Names = Sequence[str]
Handler = Callable[[Names, bytes], Awaitable[web.Response]]


class _Route(NamedTuple):
    """path: its segments, None where there is a name. methods: empty for any."""

    path: tuple[str | None, ...]
    methods: tuple[str, ...]
    handler: Handler


class Api:
    """Answers requests about a collection of proxies. metrics: None where `/metrics` is not to be there."""

    def __init__(self, collection: Collection, metrics: Metrics | None) -> None:
        self._proxies = collection
        self._metrics = metrics
        change = ("POST", "PATCH")
        one, toxics = ("proxies", None), ("proxies", None, "toxics")
        self._routes = [
            _Route(("reset",), ("POST",), self._reset),
            _Route(("proxies",), ("GET",), self._proxy_index),
            _Route(("proxies",), ("POST",), self._proxy_create),
            _Route(("populate",), ("POST",), self._populate),
            _Route(one, ("GET",), self._proxy_show),
            _Route(one, change, self._proxy_update),
            _Route(one, ("DELETE",), self._proxy_delete),
            _Route((*one, "connections"), ("GET",), self._connection_index),
            _Route(toxics, ("GET",), self._toxic_index),
            _Route(toxics, ("POST",), self._toxic_create),
            _Route((*toxics, None), ("GET",), self._toxic_show),
            _Route((*toxics, None), change, self._toxic_update),
            _Route((*toxics, None), ("DELETE",), self._toxic_delete),
            _Route(("version",), ("GET",), self._version),
        ]
        if metrics is not None:
            self._routes.append(_Route(("metrics",), (), self._metrics_show))

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        raw_path, question, query = request.raw_path.partition("?")
        clean = _clean(raw_path)
        if clean != raw_path:
            return web.Response(status=301, headers={"Location": clean + question + query})
        segments = raw_path.split("/")[1:]
        fitting = [route for route in self._routes if _fits(route, segments)]
        if not fitting:
            return _plain(b"404 page not found\n", 404)
        for route in fitting:
            if not route.methods or request.method in route.methods:
                response = await self._answer(route, segments, request)
                response.headers[_REQUEST_ID] = secrets.token_hex(10)
                return response
        return web.Response(status=405)

    async def _answer(self, route: _Route, segments: Sequence[str], request: web.BaseRequest) -> web.Response:
        if request.headers.get("User-Agent", "").startswith("Mozilla/"):
            return _plain(b"User agent not allowed\n", 403)
        names = [unquote(segment) for segment, part in zip(segments, route.path, strict=True) if part is None]
        try:
            return await route.handler(names, await _read(request))
        except ApiError as error:
            return _plain(_encode({"error": error.message, "status": error.status}) + b"\n", error.status)

    async def _version(self, names: Names, body: bytes) -> web.Response:
        text = f'{{"version": "{API_VERSION}"}}\n'
        return web.Response(body=text.encode(), headers={"Content-Type": "application/json;charset=utf-8"})

    async def _proxy_index(self, names: Names, body: bytes) -> web.Response:
        return _json({proxy.name: proxy.to_json() for proxy in self._proxies.all()})

    async def _proxy_create(self, names: Names, body: bytes) -> web.Response:
        return _json((await self._proxies.create(first_value(body))).to_json(), 201)

    async def _proxy_show(self, names: Names, body: bytes) -> web.Response:
        return _json(self._proxies.get(names[0]).to_json())

    async def _proxy_update(self, names: Names, body: bytes) -> web.Response:
        self._proxies.get(names[0])
        return _json((await self._proxies.update(names[0], first_value(body))).to_json())

    async def _proxy_delete(self, names: Names, body: bytes) -> web.Response:
        await self._proxies.remove(names[0])
        return web.Response(status=204)

    async def _connection_index(self, names: Names, body: bytes) -> web.Response:
        return _json(self._proxies.get(names[0]).connections())

    async def _toxic_index(self, names: Names, body: bytes) -> web.Response:
        proxy = self._proxies.get(names[0])
        return _json([proxy.toxic_json(toxic) for toxic in proxy.toxics()])

    async def _toxic_create(self, names: Names, body: bytes) -> web.Response:
        proxy = self._proxies.get(names[0])
        return _json(proxy.toxic_json(proxy.add_toxic(first_value(body))))

    async def _toxic_show(self, names: Names, body: bytes) -> web.Response:
        proxy = self._proxies.get(names[0])
        return _json(proxy.toxic_json(proxy.toxic(names[1])))

    async def _toxic_update(self, names: Names, body: bytes) -> web.Response:
        proxy = self._proxies.get(names[0])
        proxy.toxic(names[1])
        return _json(proxy.toxic_json(proxy.update_toxic(names[1], first_value(body))))

    async def _toxic_delete(self, names: Names, body: bytes) -> web.Response:
        self._proxies.get(names[0]).remove_toxic(names[1])
        return web.Response(status=204)

    async def _populate(self, names: Names, body: bytes) -> web.Response:
        try:
            proxies = await self._proxies.populate(_value_to_populate(body))
        except PopulateError as failure:
            error = failure.error
            shown = None if failure.done is None else [proxy.to_json() for proxy in failure.done] or None
            return _json({"error": error.message, "status": error.status, "proxies": shown}, error.status)
        # An empty list is shown as null, as it always was.
        return _json({"proxies": [proxy.to_json() for proxy in proxies] or None}, 201)

    async def _reset(self, names: Names, body: bytes) -> web.Response:
        await self._proxies.reset()
        return web.Response(status=204)

    async def _metrics_show(self, names: Names, body: bytes) -> web.Response:
        assert self._metrics is not None, "routed only with metrics"
        return web.Response(body=self._metrics.text(), headers={"Content-Type": CONTENT_TYPE})


def _value_to_populate(body: bytes) -> object:
    try:
        return first_value(body)
    except ApiError as error:
        raise PopulateError(error, None) from None


async def _read(request: web.BaseRequest) -> bytes:
    parts: list[bytes] = []
    size = 0
    async for part in request.content.iter_any():
        size += len(part)
        if size > BODY_BYTES_MAX:
            raise BadBody(f"more than {BODY_BYTES_MAX} bytes")
        parts.append(part)
    return b"".join(parts)


def _fits(route: _Route, segments: Sequence[str]) -> bool:
    if len(route.path) != len(segments):
        return False
    return all(
        bool(segment) if part is None else segment == part for segment, part in zip(segments, route.path, strict=True)
    )


def _clean(path: str) -> str:
    """Without doubled slashes and dots; a slash at the end stays. What is quoted is part of a name and stays too."""
    cleaned = posixpath.normpath("/" + path.lstrip("/"))
    return cleaned + "/" if path.endswith("/") and cleaned != "/" else cleaned


def _json(value: Mapping[str, object] | Sequence[object], status: int = 200) -> web.Response:
    return web.Response(body=_encode(value), status=status, headers={"Content-Type": _JSON})


def _plain(text: bytes, status: int) -> web.Response:
    headers = {"Content-Type": _TEXT, "X-Content-Type-Options": "nosniff"}
    return web.Response(body=text, status=status, headers=headers)


def _encode(value: object) -> bytes:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text).encode("utf-8", "replace")
