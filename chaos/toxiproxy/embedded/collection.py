"""All proxies of a server, by name."""

import asyncio
from collections.abc import Mapping

from chaos.toxiproxy.embedded.body import Fields
from chaos.toxiproxy.embedded.errors import ApiError, BadBody, ListenError, MissingField, proxy_not_found
from chaos.toxiproxy.embedded.proxy import Proxy
from chaos.toxiproxy.embedded.traffic import Traffic, TrafficBook, TrafficKey


class PopulateError(Exception):
    """A populate that went wrong. done: the proxies that are in place, None if the input was refused as a whole."""

    def __init__(self, error: ApiError, done: list[Proxy] | None) -> None:
        super().__init__(error.message)
        self.error = error
        self.done = done


class Collection:
    """The proxies. Whatever starts or stops one waits its turn; looking and toxics never wait."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._proxies: dict[str, Proxy] = {}
        self._book = TrafficBook()
        self._turn = asyncio.Lock()

    def get(self, name: str) -> Proxy:
        """Raises ApiError 404."""
        proxy = self._proxies.get(name)
        if proxy is None:
            raise proxy_not_found()
        return proxy

    def all(self) -> list[Proxy]:
        """All of them by name."""
        return [self._proxies[name] for name in sorted(self._proxies)]

    def traffic(self) -> Mapping[TrafficKey, Traffic]:
        """Bytes moved so far."""
        return self._book.totals(entry for proxy in self._proxies.values() for entry in proxy.traffic())

    async def create(self, value: object) -> Proxy:
        """A new proxy from a body. Raises ApiError."""
        fields = Fields(value, "proxy")
        name, listen, upstream = fields.text("name", ""), fields.text("listen", ""), fields.text("upstream", "")
        enabled = fields.flag("enabled", True)
        if not name:
            raise MissingField("name")
        if not upstream:
            raise MissingField("upstream")
        async with self._turn:
            if name in self._proxies:
                raise ApiError("proxy already exists", 409)
            proxy = self._make(name, listen, upstream)
            if enabled:
                await proxy.start()
            self._proxies[name] = proxy
        return proxy

    async def update(self, name: str, value: object) -> Proxy:
        """Change some of listen, upstream and enabled. Raises ApiError."""
        fields = Fields(value, "proxy")
        async with self._turn:
            proxy = self.get(name)
            # The name is not changed, yet has to be one.
            fields.text("name", name)
            listen, upstream = fields.text("listen", proxy.listen), fields.text("upstream", proxy.upstream)
            await proxy.update(listen, upstream, fields.flag("enabled", proxy.enabled))
        return proxy

    async def remove(self, name: str) -> None:
        """Raises ApiError 404."""
        async with self._turn:
            proxy = self.get(name)
            await proxy.close()
            del self._proxies[name]

    async def populate(self, value: object) -> list[Proxy]:
        """Create or replace each of a list; one that is there with the same addresses is left alone.

        Raises PopulateError. All are checked before the first is touched.
        """
        try:
            wanted = _wanted(value)
        except ApiError as error:
            raise PopulateError(error, None) from None
        done: list[Proxy] = []
        async with self._turn:
            for name, listen, upstream, enabled in wanted:
                try:
                    done.append(await self._put(name, listen, upstream, enabled))
                except ListenError as error:
                    raise PopulateError(error, done) from None
        return done

    async def reset(self) -> None:
        """Enable every proxy and remove every toxic. Raises ListenError naming those that cannot listen, afterwards."""
        failed: list[str] = []
        async with self._turn:
            for proxy in self.all():
                proxy.remove_toxics()
                try:
                    await proxy.start()
                except ListenError as error:
                    failed.append(f"proxy {proxy.name}: {error.message}")
        if failed:
            raise ListenError("; ".join(failed))

    async def close(self) -> None:
        """Every proxy is closed and forgotten."""
        async with self._turn:
            for proxy in self.all():
                await proxy.close()
            self._proxies.clear()

    async def _put(self, name: str, listen: str, upstream: str, enabled: bool) -> Proxy:
        existing = self._proxies.get(name)
        if existing is not None:
            if not await existing.differs(listen, upstream):
                return existing
            await existing.stop()
        proxy = self._make(name, listen, upstream)
        if enabled:
            await proxy.start()
        if existing is not None:
            await existing.close()
        self._proxies[name] = proxy
        return proxy

    def _make(self, name: str, listen: str, upstream: str) -> Proxy:
        return Proxy(name, listen, upstream, self._seed, self._book)


def _wanted(value: object) -> list[tuple[str, str, str, bool]]:
    if value is not None and not isinstance(value, list):
        raise BadBody("proxies: expected a list")
    wanted = []
    for item in value or []:
        fields = Fields(item, "proxy")
        texts = fields.text("name", ""), fields.text("listen", ""), fields.text("upstream", "")
        wanted.append((*texts, fields.flag("enabled", True)))
    for index, (name, _, upstream, _) in enumerate(wanted, 1):
        if not name:
            raise MissingField(f"name at proxy {index}")
        if not upstream:
            raise MissingField(f"upstream at proxy {index}")
    return wanted
