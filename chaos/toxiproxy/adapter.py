"""The one adapter around toxiproxy-python: deadlines, checked statuses, and every change read back."""

import re
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

import msgspec

from chaos.toxiproxy.consumer import client_classes, decode, make_consumer
from chaos.toxiproxy.errors import (
    ToxiproxyError,
    ToxiproxyGone,
    ToxiproxyMalformed,
    ToxiproxyRefused,
    ToxiproxyTimeout,
    ToxiproxyUnreachable,
    ToxiproxyUnsafe,
    ToxiproxyUnverified,
    explained,
)

__all__ = [
    "ProxyState",
    "Removal",
    "Toxic",
    "Toxiproxy",
    "ToxiproxyError",
    "ToxiproxyGone",
    "ToxiproxyMalformed",
    "ToxiproxyRefused",
    "ToxiproxyTimeout",
    "ToxiproxyUnreachable",
    "ToxiproxyUnsafe",
    "ToxiproxyUnverified",
    "check_toxic",
]

DEADLINE_S = 2.0
REMOVAL_S = 3.0
"""How long the removal of a toxic may take before the proxy is replaced instead (see `Toxiproxy.remove_toxic`)."""
REPLACEMENT_S = 8.0
"""How long a replacement of a proxy may take: of all calls only this one must not be given up half done."""
WITHDRAWAL_S = 30.0
"""How long the removal of a toxic may take where the proxy must not be replaced: the server gives up after 25 s."""
_CALLS_MAX = 16
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_INTEGER_MAX = 2**31 - 1

_ATTRIBUTES: dict[str, dict[str, tuple[int, int]]] = {
    "latency": {"latency": (0, _INTEGER_MAX), "jitter": (0, _INTEGER_MAX)},
    "bandwidth": {"rate": (0, _INTEGER_MAX)},
    "slow_close": {"delay": (0, _INTEGER_MAX)},
    "timeout": {"timeout": (0, _INTEGER_MAX)},
    # The server cannot interrupt this wait: it also is the time that the toxic's removal blocks.
    "reset_peer": {"timeout": (0, 5_000)},
    "slicer": {"average_size": (1, _INTEGER_MAX), "size_variation": (0, _INTEGER_MAX), "delay": (0, _INTEGER_MAX)},
    "limit_data": {"bytes": (0, _INTEGER_MAX)},
    "noop": {},
}

_HARMLESS = {"latency": {"latency": 0, "jitter": 0}, "bandwidth": {"rate": 1_000_000}, "slicer": {"delay": 0}}

T = TypeVar("T")

Removal = Literal["removed", "missing", "replaced"]
"""How a toxic went: removed, not there any more, or with its whole proxy, which was made again without it."""


class Toxic(msgspec.Struct, frozen=True):
    """One toxic. Attributes are integers in Toxiproxy's own units (ms, KB/s, bytes; `slicer.delay` in microseconds).

    Those that the embedded server has on messages (see messages.py) have texts among them.
    """

    name: str
    type: str
    stream: Literal["upstream", "downstream"] = "downstream"
    attributes: Mapping[str, int | str] = {}
    toxicity: float = 1.0


class ProxyState(msgspec.Struct, frozen=True):
    """A proxy as the server reports it. listen, upstream: `host:port`."""

    name: str
    listen: str
    upstream: str
    enabled: bool
    toxics: tuple[Toxic, ...] = ()


class Toxiproxy:
    """A Toxiproxy server's control API at `url` (`http://host:port`). Safe to use from several threads.

    Every method raises a ToxiproxyError, at the latest `deadline_s` seconds after it was called (a removal of a toxic
    after `removal_s` plus `REPLACEMENT_S`; changes of one proxy wait for each other).
    """

    def __init__(self, url: str, deadline_s: float = DEADLINE_S, removal_s: float = REMOVAL_S) -> None:
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError:
            port = None
        if parts.scheme != "http" or not parts.hostname or port is None or parts.path not in ("", "/"):
            raise ToxiproxyUnsafe(f"Toxiproxy API address {url!r}: expected http://host:port")
        self.url = f"http://{parts.netloc}"
        self._deadline_s = deadline_s
        self._removal_s = removal_s
        self._locks: dict[str, threading.Lock] = {}
        self._slots = threading.BoundedSemaphore(_CALLS_MAX)
        self._consumer = make_consumer(parts.netloc.rpartition(":")[0], port)
        self._proxy_class, server_class = client_classes(self._consumer)
        self._server = server_class()

    def version(self) -> str:
        """The server's version, in its own words (`git` when made by `go install`)."""

        def ask() -> str:
            return decode(self._consumer.get("/version").content, dict[str, str])["version"]

        return self._call("version", "", ask)

    def proxies(self) -> dict[str, ProxyState]:
        """All proxies by name. Hangs up to the deadline while a removal is stuck on any proxy; `proxy` does not."""
        return self._call(
            "list proxies", "", lambda: decode(self._consumer.get("/proxies").content, dict[str, ProxyState])
        )

    def proxy(self, name: str) -> ProxyState | None:
        """One proxy, or None if the server has none of that name."""
        _check_name("proxy", name)
        return self._call("read proxy", name, lambda: self._read(name))

    def create_proxy(self, name: str, listen: str, upstream: str) -> ProxyState:
        """Create an enabled proxy. listen: `host:port`, port 0 for a free one; the state returned has the real port."""
        _check_name("proxy", name)
        wanted_port = _check_address("listen", listen)
        _check_address("upstream", upstream)

        def create() -> ProxyState:
            self._server.create(upstream=upstream, name=name, listen=listen)
            state = self._read(name)
            if state is None or not state.enabled or state.upstream != upstream:
                raise ToxiproxyUnverified(f"server agreed, yet reads back {_brief(state)}")
            port = int(state.listen.rpartition(":")[2])
            if port == 0 or wanted_port not in (0, port):
                raise ToxiproxyUnverified(f"asked for {listen}, yet it listens on {state.listen}")
            return state

        return self._call("create proxy", name, create)

    def delete_proxy(self, name: str) -> None:
        """Delete a proxy and drop its connections. One that is missing already is no error."""
        _check_name("proxy", name)

        def delete() -> None:
            _ignoring_missing(self._handle(name).destroy)
            if self._read(name) is not None:
                raise ToxiproxyUnverified("server agreed, yet the proxy is still there")

        with self._changes(name, "delete proxy"):
            self._call("delete proxy", name, delete)

    def set_enabled(self, name: str, enabled: bool) -> ProxyState:
        """Enable a proxy, or disable it: its connections end and new ones are refused."""
        _check_name("proxy", name)
        handle = self._handle(name)

        def switch() -> ProxyState:
            if enabled:
                handle.enable()
            else:
                handle.disable()
            state = self._read(name)
            if state is None or state.enabled != enabled:
                raise ToxiproxyUnverified(f"server agreed, yet reads back {_brief(state)}")
            return state

        call = "enable proxy" if enabled else "disable proxy"
        with self._changes(name, call):
            return self._call(call, name, switch)

    def add_toxic(self, proxy: str, toxic: Toxic, ttl_ms: int = 0) -> Toxic:
        """Add a toxic to existing and new connections; returns it as read back. An equal name is refused (409).

        ttl_ms: after which the embedded server removes it by itself; others do not know it and leave it.
        """
        _check_name("proxy", proxy)
        check_toxic(toxic)

        def add() -> Toxic:
            if ttl_ms:
                self._consumer.post(f"/proxies/{proxy}/toxics", json={**msgspec.to_builtins(toxic), "ttl_ms": ttl_ms})
            else:
                self._handle(proxy).add_toxic(**msgspec.structs.asdict(toxic))
            found = _toxic_of(self._read(proxy), toxic.name)
            if found is None or not _same(toxic, found):
                raise ToxiproxyUnverified(f"toxic {toxic.name!r}: server agreed, yet reads back {_brief(found)}")
            return found

        call = f"add toxic {toxic.name!r}"
        with self._changes(proxy, call):
            return self._call(call, proxy, add)

    def remove_toxic(self, proxy: str, name: str, together: Collection[str] = ()) -> Removal:
        """Remove a toxic and say how. One that is missing already, or whose proxy is, is no error: it is healed.

        The server flushes held bytes first, up to 5 s for every connection whose other end has gone, one after the
        other, and answers nothing about the proxy meanwhile. After `removal_s` the proxy is therefore deleted and
        made again with its other toxics, which takes milliseconds but drops its connections. A `timeout` goes like
        this at once (see `replace_proxy`). together: toxics that then go as well.
        """
        _check_name("proxy", proxy)
        _check_name("toxic", name)
        call = f"remove toxic {name!r}"
        seen: list[bytes | None] = []

        def remove() -> Removal | None:
            seen.append(self._shown(proxy))
            found = _toxic_of(_state(seen[0]), name)
            if seen[0] is None or found is None:
                return "missing"
            if found.type == "timeout":
                return None
            _ignoring_missing(lambda: self._handle(proxy).destroy_toxic(name))
            if _toxic_of(self._read(proxy), name) is not None:
                raise ToxiproxyUnverified(f"toxic {name!r}: server agreed, yet it is still there")
            return "removed"

        with self._changes(proxy, call):
            try:
                how = self._call(call, proxy, remove, self._removal_s)
            except ToxiproxyTimeout:
                how = None
                if not seen:
                    raise
            before = seen[0]
            if how is not None or before is None:
                return how or "missing"
            return self._call(call, proxy, lambda: self._replace(before, (name, *together)), REPLACEMENT_S)

    def withdraw_toxic(self, proxy: str, name: str) -> Removal:
        """Remove a toxic from a proxy that is somebody else's and is never replaced.

        It is made harmless first: then what it holds for ends that have gone flows off, which a removal of the toxic
        as it is would wait for, 5 s for each connection. With 2.12 ten seconds and more become milliseconds.
        One that is missing already, or whose proxy is, is no error. Not for a `timeout` on Toxiproxy's own server,
        see `replace_proxy`.
        """
        _check_name("proxy", proxy)
        _check_name("toxic", name)

        def remove() -> Removal:
            found = _toxic_of(self._read(proxy), name)
            if found is None:
                return "missing"
            if harmless := _HARMLESS.get(found.type):
                change = {"attributes": harmless}
                _ignoring_missing(lambda: self._consumer.post(f"/proxies/{proxy}/toxics/{name}", json=change))
            _ignoring_missing(lambda: self._handle(proxy).destroy_toxic(name))
            if _toxic_of(self._read(proxy), name) is not None:
                raise ToxiproxyUnverified(f"toxic {name!r}: server agreed, yet it is still there")
            return "removed"

        call = f"remove toxic {name!r}"
        with self._changes(proxy, call):
            return self._call(call, proxy, remove, WITHDRAWAL_S)

    def show_proxy(self, name: str) -> dict[str, Any] | None:
        """One proxy as the server shows it, with whatever else it says of it; None if there is none of that name."""
        _check_name("proxy", name)

        def show() -> dict[str, Any] | None:
            shown = self._shown(name)
            return None if shown is None else decode(shown, dict[str, Any])

        return self._call("read proxy", name, show)

    def replace_proxy(self, proxy: str, without: Collection[str]) -> None:
        """Delete a proxy and make it again at the same address, without some of its toxics. A missing one stays so.

        The one way to remove a toxic that holds bytes for an end that has gone: an ordinary removal flushes them
        first, up to 5 s for each chunk, and once begun it cannot be overtaken. Drops the proxy's connections. Also
        the one way to remove a `timeout`, which ends every connection anyhow: of links whose end has gone meanwhile
        the server keeps something that makes it crash when the next toxic is added (2.12: index out of range).
        """
        _check_name("proxy", proxy)
        call = f"replace without {', '.join(without)}"

        def replace() -> None:
            before = self._shown(proxy)
            if before is not None:
                self._replace(before, without)

        with self._changes(proxy, call):
            self._call(call, proxy, replace, REPLACEMENT_S)

    def _replace(self, shown: bytes, removed: Collection[str]) -> Removal:
        """shown: the proxy as the server has shown it."""
        before = decode(shown, ProxyState)
        # As it is shown and not as a Toxic: the embedded server's have a time limit and the names of clients.
        kept = [toxic for toxic in decode(shown, dict[str, Any]).get("toxics", ()) if toxic["name"] not in removed]
        _ignoring_missing(self._handle(before.name).destroy)
        wanted = msgspec.structs.replace(before, toxics=())
        # Not with the package, which lists all proxies first: that hangs while another one is stuck.
        self._consumer.post("/proxies", json=msgspec.to_builtins(wanted))
        for toxic in kept:
            left_ms = {"ttl_ms": max(1, toxic["remaining_ms"])} if "remaining_ms" in toxic else {}
            self._consumer.post(f"/proxies/{before.name}/toxics", json={**toxic, **left_ms})
        after = self._read(before.name)
        if (
            after is None
            or msgspec.structs.replace(after, toxics=()) != wanted
            or {toxic.name for toxic in after.toxics} != {toxic["name"] for toxic in kept}
        ):
            raise ToxiproxyUnverified(f"replaced the proxy, yet reads back {_brief(after)}")
        return "replaced"

    @contextmanager
    def _changes(self, proxy: str, call: str) -> Iterator[None]:
        """One change of a proxy at a time: a replacement must not bring back a toxic that another call removed."""
        lock = self._locks.setdefault(proxy, threading.Lock())
        if not lock.acquire(timeout=self._removal_s + REPLACEMENT_S):
            raise ToxiproxyTimeout(f"toxiproxy {self.url}: {call} on proxy {proxy!r}: an earlier change still hangs")
        try:
            yield
        finally:
            lock.release()

    def _handle(self, name: str) -> Any:
        # Not looked up: the package's look-up lists all proxies, which hangs while any one of them is stuck.
        return self._proxy_class(name=name, upstream="", enabled=True, listen="")

    def _read(self, name: str) -> ProxyState | None:
        return _state(self._shown(name))

    def _shown(self, name: str) -> bytes | None:
        try:
            content: bytes = self._consumer.get(f"/proxies/{name}").content
            return content
        except ToxiproxyRefused as refusal:
            if refusal.status == 404:
                return None
            raise

    def _call(self, call: str, proxy: str, work: Callable[[], T], deadline_s: float | None = None) -> T:
        """Run `work` in a thread that is given up at the deadline: time-outs of sockets restart with every byte."""
        limit_s = self._deadline_s if deadline_s is None else deadline_s
        where = f"toxiproxy {self.url}: {call}" + (f" on proxy {proxy!r}" if proxy else "")
        ends_s = time.monotonic() + limit_s
        if not self._slots.acquire(timeout=limit_s):
            raise ToxiproxyTimeout(f"{where}: {_CALLS_MAX} earlier calls still hang")
        result: list[T] = []
        failure: list[BaseException] = []

        def run() -> None:
            self._consumer.local.ends_s = ends_s
            try:
                result.append(work())
            except BaseException as error:  # handed to the caller below
                failure.append(error)
            finally:
                self._slots.release()

        thread = threading.Thread(target=run, name="toxiproxy-call", daemon=True)
        thread.start()
        thread.join(max(0.0, ends_s - time.monotonic()))
        if result:
            return result[0]
        if failure:
            raise explained(where, failure[0], limit_s) from failure[0]
        raise ToxiproxyTimeout(f"{where}: no answer within {limit_s:g} s")


def check_toxic(toxic: Toxic) -> None:
    """Raises ToxiproxyUnsafe for what would crash the server, or what it would silently drop or misread."""
    _check_name("toxic", toxic.name)
    where = f"toxic {toxic.name!r}"
    allowed = _ATTRIBUTES.get(toxic.type)
    if allowed is None:
        raise ToxiproxyUnsafe(f"{where}: unknown type {toxic.type!r}, expected one of {', '.join(_ATTRIBUTES)}")
    if toxic.stream not in ("upstream", "downstream"):
        raise ToxiproxyUnsafe(f"{where}: stream {toxic.stream!r} is neither upstream nor downstream")
    if not 0 <= toxic.toxicity <= 1:
        raise ToxiproxyUnsafe(f"{where}: toxicity {toxic.toxicity} is outside 0..1")
    for key, value in toxic.attributes.items():
        if key not in allowed:
            raise ToxiproxyUnsafe(
                f"{where}: {toxic.type} has no attribute {key!r}, only {', '.join(allowed) or 'none'}"
            )
        low, high = allowed[key]
        # bool is a subclass of int, but the server reads it as a wrong type.
        if type(value) is not int or not low <= value <= high:
            raise ToxiproxyUnsafe(f"{where}: {key} = {value!r} is not an integer in {low}..{high}")
    if toxic.type == "slicer":
        average, variation = (int(toxic.attributes.get(key, 0)) for key in ("average_size", "size_variation"))
        if average < 1 or variation > average:
            raise ToxiproxyUnsafe(f"{where}: slicer needs average_size >= 1 and size_variation <= average_size")


def _ignoring_missing(call: Callable[[], object]) -> None:
    try:
        call()
    except ToxiproxyRefused as refusal:
        if refusal.status != 404:
            raise


def _state(shown: bytes | None) -> ProxyState | None:
    return None if shown is None else decode(shown, ProxyState)


def _toxic_of(state: ProxyState | None, name: str) -> Toxic | None:
    return next((toxic for toxic in state.toxics if toxic.name == name), None) if state else None


def _same(asked: Toxic, found: Toxic) -> bool:
    # The server keeps toxicity in 32 bits, and reports every attribute of the type, 0 where none was given.
    return (
        (asked.type, asked.stream) == (found.type, found.stream)
        and abs(asked.toxicity - found.toxicity) < 1e-6
        and all(found.attributes.get(key) == value for key, value in asked.attributes.items())
        and all(value == 0 for key, value in found.attributes.items() if key not in asked.attributes)
    )


def _brief(found: ProxyState | Toxic | None) -> str:
    return "nothing" if found is None else repr(found)[:300]


def _check_name(what: str, name: str) -> None:
    # A name with a slash is accepted by the server and can never be addressed or deleted again.
    if not _NAME.fullmatch(name) or name in (".", ".."):
        raise ToxiproxyUnsafe(f"{what} name {name!r}: only letters, digits and _ . - are safe, 1 to 128 of them")


def _check_address(what: str, address: str) -> int:
    """The port. An address without a host would bind every interface of the machine."""
    host, _, port = address.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ToxiproxyUnsafe(f"{what} address {address!r}: expected host:port")
    return int(port)
