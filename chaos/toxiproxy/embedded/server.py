"""The embedded server: its HTTP API and its proxies, from start to close."""

import json
import os
import secrets
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
from aiohttp import web

from chaos.toxiproxy.embedded.api import Api
from chaos.toxiproxy.embedded.collection import Collection, PopulateError
from chaos.toxiproxy.embedded.metrics import Metrics

_SHUTDOWN_S = 1.0


class ServerError(Exception):
    """The server cannot be started. The message is one line."""


class Settings(msgspec.Struct, frozen=True):
    """How to start. port: 0 for a free one. config: a JSON file with a list of proxies. seed: None for a random one."""

    host: str = "127.0.0.1"
    port: int = 8474
    config: Path | None = None
    seed: int | None = None
    proxy_metrics: bool = False
    runtime_metrics: bool = False


class EmbeddedServer:
    """A Toxiproxy-compatible server on the running loop; `async with` starts and closes it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.seed = secrets.randbits(63) if settings.seed is None else settings.seed
        self.port = settings.port
        self.proxies = Collection(self.seed)
        self._runner: web.ServerRunner | None = None

    @property
    def url(self) -> str:
        """Of the API."""
        host = self.settings.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def start(self) -> None:
        """Make the proxies of the configuration and listen. Raises ServerError; then nothing is left open."""
        settings = self.settings
        metrics = None
        if settings.proxy_metrics or settings.runtime_metrics:
            metrics = Metrics(self.proxies.traffic if settings.proxy_metrics else None, settings.runtime_metrics)
        try:
            if settings.config is not None:
                await self._populate(settings.config, _proxies_in(settings.config))
            await self._listen(Api(self.proxies, metrics))
        except ServerError:
            await self.close()
            raise

    async def close(self) -> None:
        """No task, timer or socket of it stays."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        await self.proxies.close()

    async def _listen(self, api: Api) -> None:
        self._runner = web.ServerRunner(
            web.Server(api.handle, access_log=None, keepalive_timeout=60), shutdown_timeout=_SHUTDOWN_S
        )
        await self._runner.setup()
        settings = self.settings
        try:
            await web.TCPSite(self._runner, settings.host, settings.port).start()
        except (OSError, OverflowError) as error:
            reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
            raise ServerError(f"cannot listen on {settings.host}:{settings.port}: {reason}") from None
        self.port = self._runner.addresses[0][1]

    async def _populate(self, config: Path, value: object) -> None:
        try:
            await self.proxies.populate(value)
        except PopulateError as failure:
            raise ServerError(f"config {config}: {failure}") from None


def _proxies_in(config: Path) -> object:
    try:
        return json.loads(config.read_bytes())
    except OSError as error:
        raise ServerError(f"config {config}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ServerError(f"config {config}: expected a JSON list of proxies: {error}") from None
