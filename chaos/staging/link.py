"""A node's link through a proxy that somebody else runs: our toxics come and go, everything else stays as it was."""

import asyncio
import ipaddress
import time
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import urlsplit

import msgspec

from chaos.healing import give_back, settling
from chaos.staging.addresses import demand_private_host
from chaos.staging.ask import ASK_S, AskError
from chaos.staging.budget import BudgetSpent, DayBudget
from chaos.staging.identity import Brokers
from chaos.staging.nats import NatsMonitor
from chaos.staging.witness import Held, Reading, greeted_by, look
from chaos.target import LinkSpec, TargetError
from chaos.toxiproxy.adapter import (
    Toxic,
    Toxiproxy,
    ToxiproxyError,
    ToxiproxyUnsafe,
    ToxiproxyUnverified,
    check_toxic,
)
from chaos.undo import DisabledEntry, ToxicEntry, UndoError, UndoLog
from chaos.worlds.proxied import shape_toxics, toxics
from chaos.worlds.world import Cut, HandleError, LinkState, Shape

PREFIX = "mlx-chaos-"
"""Of every toxic of ours."""
_ANYWHERE = ("", "0.0.0.0", "::")
_CHANGING = ("remaining_ms", "counts")
"""What the embedded server says of a toxic that is another at each look."""

T = TypeVar("T")


def embedded(version: str) -> bool:
    """Whether a Toxiproxy is this project's own server, which takes a time limit for each toxic."""
    return version.endswith("+embedded")


def refusal(cut: Cut, version: str) -> str:
    """Why a cut must not be made at a Toxiproxy of others; empty when it may."""
    if embedded(version) or not any(toxic.type == "timeout" for toxic in toxics(cut)):
        return ""
    return (
        f"{cut.value} needs the toxic `timeout`, after whose removal Toxiproxy's own server can crash when the next "
        "one is added; expected refuse, reset or stall (or python -m chaos.toxiproxy.embedded at the target)"
    )


class StagingLink:
    """Every change is in the undo log and in the day's budget before it is made. Nothing of others is ever changed."""

    def __init__(
        self,
        node: str,
        spec: LinkSpec,
        api: Toxiproxy,
        *,
        monitor: NatsMonitor | None = None,
        undo: UndoLog | None = None,
        budget: DayBudget | None = None,
        mark: str = "",
        demand: Callable[[], Brokers] = Brokers,
        allow_public: tuple[str, ...] = (),
    ) -> None:
        """undo and budget: None for a link that is only looked at. mark: of the run, part of our toxics' names.

        demand: called before every injection; whom the proxy may lead to. Raises TargetError or AskError when no
        injection must be made. allow_public: hosts that it may lead to and listen on although they are public.
        """
        self._allow_public = allow_public
        self._demand = demand
        self.node = node
        self.spec = spec
        self._api = api
        self._monitor = monitor if spec.client_name else None
        self._undo = undo
        self._budget = budget
        self._mark = f"{PREFIX}{mark}"
        self._lock = asyncio.Lock()
        self._open: list[str] = []
        self._began_s: float | None = None
        self._before: dict[str, Any] = {}
        self._version = ""
        self._certain = False
        self.address: tuple[str, int] = ("", 0)
        """Where connections to the proxy go."""

    @property
    def version(self) -> str:
        """Of its Toxiproxy."""
        return self._version

    @property
    def url(self) -> str:
        """Of its Toxiproxy's API."""
        return self._api.url

    @property
    def monitored(self) -> bool:
        """Whether the broker can be asked of the node's own connections."""
        return self._monitor is not None

    @property
    def foreign(self) -> list[str]:
        """Toxics of others that were there when it was first looked at."""
        return [str(toxic["name"]) for toxic in self._before.get("toxics", ())]

    def toxic_name(self, toxic: Toxic) -> str:
        """Under which a toxic of ours is there."""
        return f"{self._mark}-{toxic.name}" if self._mark != PREFIX else f"{PREFIX}<run>-{toxic.name}"

    def examine(self) -> None:
        """Look at the proxy for the first time and keep what it is like. Blocks. Raises TargetError, ToxiproxyError."""
        field = f"links.{self.node}.proxy"
        self._version = self._api.version()
        shown = self._api.show_proxy(self.spec.proxy)
        if shown is None:
            there = ", ".join(sorted(self._api.proxies())[:12]) or "none"
            raise TargetError(f"{field}: no proxy {self.spec.proxy!r} at {self._api.url}; there is {there}")
        if not shown.get("enabled"):
            hint = "if an earlier run was cut off in a fault: python -m chaos.heal"
            raise TargetError(f"{field}: {self.spec.proxy} is disabled already, so the link is cut without us; {hint}")
        ours = [toxic["name"] for toxic in shown.get("toxics", ()) if str(toxic["name"]).startswith(PREFIX)]
        if ours:
            what = f"has {', '.join(ours)} from an earlier run; python -m chaos.heal, or remove it"
            raise TargetError(f"{field}: {self.spec.proxy} {what}")
        self._before = _lasting(shown)
        self.address, self._certain = _reached(str(shown["listen"]), urlsplit(self._api.url).hostname or "")
        self._demand_broker(shown)

    async def cut(self, cut: Cut, ttl_s: float) -> None:
        """See chaos.worlds.world.Link."""
        why = refusal(cut, self._version)
        if why:
            raise HandleError(f"{self.node}: {why}")
        await asyncio.shield(self._locked(lambda: self._cut(cut, ttl_s)))

    async def shape(self, shape: Shape, ttl_s: float) -> None:
        """See chaos.worlds.world.Link, but that there must be no earlier shape."""
        try:
            wanted = shape_toxics(shape)
            for toxic in wanted:
                check_toxic(toxic)
        except (ValueError, ToxiproxyError) as error:
            raise HandleError(f"{self.node}: {error}") from error
        await asyncio.shield(self._locked(lambda: self._add(wanted, ttl_s)))

    async def restore(self) -> None:
        """See chaos.worlds.world.Link."""
        await asyncio.shield(self._locked(self._restore))

    def wrong(self) -> list[str]:
        """How the proxy differs from what it was at first, a line each: ours that is left, and what others changed.

        Blocks. Raises ToxiproxyError.
        """
        shown = self._api.show_proxy(self.spec.proxy)
        if shown is None:
            return [f"{self.spec.proxy}: is not there any more"]
        return differences(self.spec.proxy, self._before, _lasting(shown))

    async def inspect(self, cid: int | None = None) -> LinkState:
        """See chaos.worlds.world.Link: nobody here is on both ends."""
        raise HandleError(f"{self.node}: the node itself cannot be asked about its link")

    async def echo(self, payload_bytes: int = 0) -> float | None:
        """See chaos.worlds.world.Link."""
        raise HandleError(f"{self.node}: the node itself cannot be asked to send anything")

    async def differences(self) -> list[str]:
        """See `wrong`. Raises HandleError."""
        return await self._threaded(self.wrong)

    async def heard(self) -> dict[int, int] | None:
        """Messages that the broker has from the node, by connection; None where it cannot be asked."""
        monitor = self._monitor
        return None if monitor is None else await self._threaded(lambda: monitor.heard(self.spec.client_name))

    async def read(self, limit_s: float, *, padded: bool = False) -> Reading:
        """What a connection of ours through the proxy sees."""
        return await asyncio.to_thread(look, self.address, limit_s, padded)

    async def hold(self, limit_s: float) -> Held | None:
        """A connection of ours through the proxy that stays."""
        return await asyncio.to_thread(Held.open, self.address, limit_s)

    async def _locked(self, change: Callable[[], None]) -> None:
        async with self._lock:
            await self._threaded(change)

    async def _threaded(self, work: Callable[[], T]) -> T:
        try:
            return await asyncio.to_thread(work)
        except (ToxiproxyError, UndoError, AskError, BudgetSpent, TargetError, OSError) as error:
            raise HandleError(f"{self.node}: {error}") from error

    def _demand_broker(self, shown: dict[str, Any]) -> None:
        """That the target is who it should be and the proxy leads to its broker. Raises TargetError, AskError.

        One connection, on which nothing is sent. Where it tells nothing, the owner has to have said where it leads.
        """
        brokers, proxy = self._demand(), self.spec.proxy
        for name, does in (("upstream", "leads to"), ("listen", "listens on")):
            field, said, there = f"links.{self.node}.{name}", getattr(self.spec, name), str(shown.get(name))
            if said and said != there:
                raise TargetError(f"{field}: {proxy} {does} {there}, the file says {said}")
            if there != self._before.get(name):
                raise TargetError(f"{field}: {proxy} {does} {there}, at first it was {self._before.get(name)}")
            host = _host(there)
            if host not in _ANYWHERE:
                demand_private_host(field, host, self._allow_public)
        seen = greeted_by(self.address, ASK_S)
        if seen is not None and brokers and seen not in brokers:
            who = f"{proxy} leads to the NATS server {seen.server_id} ({seen.server_name or 'without a name'})"
            raise TargetError(f"links.{self.node}.proxy: {who}, which is none of the target's; see fingerprint")
        if self.spec.upstream or (seen is not None and brokers and self._certain):
            return
        if seen is None:
            why = "nobody greets as NATS does at {}:{}".format(*self.address)
        elif not brokers:
            why = "without nats_monitoring there is no broker to compare with"
        else:
            why = f"{shown['listen']} may be another place there than from here"
        leads = f"Toxiproxy says {shown.get('upstream')}"
        raise TargetError(f"links.{self.node}.upstream: expected where {proxy} must lead to ({leads}), for {why}")

    def _begin(self, ttl_s: float) -> UndoLog:
        assert self._undo is not None, "this link is only looked at"
        assert self._budget is not None
        demand_enabled(self._api, self.spec.proxy)
        self._demand_broker(self._api.show_proxy(self.spec.proxy) or {})
        self._budget.begin(f"{self._mark}-{self.node}", ttl_s)
        self._began_s = self._began_s or time.monotonic()
        return self._undo

    def _cut(self, cut: Cut, ttl_s: float) -> None:
        if cut not in (Cut.REFUSE, Cut.RESET):
            return self._add(toxics(cut), ttl_s)
        undo, expires_s = self._begin(ttl_s), time.time() + ttl_s
        demand_enabled(self._api, self.spec.proxy)
        entry = DisabledEntry(api_url=self._api.url, proxy=self.spec.proxy, borrowed=True, expires_unix_s=expires_s)
        self._open.append(undo.add(entry))
        with settling(undo, self._open[-1]):
            self._api.set_enabled(self.spec.proxy, False)
        demand_in_time(self._api, self.spec.proxy, expires_s)
        return self._restore() if cut is Cut.RESET else None

    def _add(self, wanted: tuple[Toxic, ...], ttl_s: float) -> None:
        undo, expires_s = self._begin(ttl_s), time.time() + ttl_s
        ttl_ms = max(1, round(ttl_s * 1_000)) if embedded(self._version) else 0
        for plain in wanted:
            toxic = msgspec.structs.replace(plain, name=self.toxic_name(plain))
            entry = ToxicEntry(
                api_url=self._api.url,
                proxy=self.spec.proxy,
                toxic=toxic.name,
                borrowed=True,
                expires_unix_s=expires_s,
            )
            self._open.append(undo.add(entry))
            with settling(undo, self._open[-1]):
                self._api.add_toxic(self.spec.proxy, toxic, ttl_ms)

    def _restore(self) -> None:
        late: list[str] = []
        for entry_id in list(self._open):
            assert self._undo is not None
            try:
                give_back(self._api, self._undo, entry_id)
            except ToxiproxyUnverified as error:
                late.append(str(error))
            else:
                self._open.remove(entry_id)
        if late:
            raise ToxiproxyUnverified(f"proxy {self.spec.proxy} at {self._api.url}: {late[0]}")
        if self._began_s is not None and self._budget is not None:
            self._budget.end(f"{self._mark}-{self.node}", time.monotonic() - self._began_s)
            self._began_s = None


def demand_enabled(api: Toxiproxy, proxy: str) -> None:
    """Before a proxy of somebody else's is disabled. Raises ToxiproxyUnsafe where we would have to enable it again.

    A proxy does not tell who has disabled it: whoever does so while we do is taken for us.
    """
    state = api.proxy(proxy)
    if state is None or not state.enabled:
        why = "no such proxy there" if state is None else "disabled already: left as it is"
        raise ToxiproxyUnsafe(f"proxy {proxy} at {api.url}: {why}")


def demand_in_time(api: Toxiproxy, proxy: str, expires_unix_s: float) -> None:
    """After one was disabled: enable it again where we were suspended meanwhile, for so long that nobody else would."""
    if time.time() >= expires_unix_s:
        api.set_enabled(proxy, True)
        raise ToxiproxyUnsafe(f"proxy {proxy} at {api.url}: disabled after its time limit, so it was enabled again")


def differences(proxy: str, before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Of two views of a proxy, a line each."""
    lines = [
        f"{proxy}: {name} was {before.get(name)!r} and is {after.get(name)!r}"
        for name in ("listen", "upstream", "enabled")
        if before.get(name) != after.get(name)
    ]
    was = {toxic["name"]: toxic for toxic in before.get("toxics", ())}
    now = {toxic["name"]: toxic for toxic in after.get("toxics", ())}
    lines += [f"{proxy}: the toxic {name} is gone" for name in was if name not in now]
    lines += [f"{proxy}: the toxic {name} is new" for name in now if name not in was]
    lines += [f"{proxy}: the toxic {name} is another one" for name in was if name in now and was[name] != now[name]]
    kept = [name for name in was if name in now]
    if not lines and kept != list(now):
        lines.append(f"{proxy}: its toxics come in another order")
    return lines


def _host(place: str) -> str:
    return place.rpartition(":")[0].strip("[]")


def _reached(listen: str, api_host: str) -> tuple[tuple[str, int], bool]:
    """Where to connect to for a proxy that listens so, and whether that must be this proxy. Raises TargetError.

    A proxy that listens on every address, or on the loopback of another host, may be behind another port for us.
    """
    host, port = _host(listen), listen.rpartition(":")[2]
    if not port.isdecimal():
        raise TargetError(f"a proxy that listens on {listen[:80]!r} cannot be connected to; expected HOST:PORT")
    elsewhere = host in _ANYWHERE or (_loopback(host) and not _loopback(api_host))
    return (api_host if elsewhere else host, int(port)), not elsewhere


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _lasting(shown: dict[str, Any]) -> dict[str, Any]:
    toxics_ = [
        {key: value for key, value in toxic.items() if key not in _CHANGING} for toxic in shown.get("toxics", ())
    ]
    return {**shown, "toxics": toxics_}
