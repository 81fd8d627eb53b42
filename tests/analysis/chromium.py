"""A real browser for tests: headless Chromium, driven over its DevTools protocol."""

import asyncio
import contextlib
import itertools
import shutil
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

_LOAD_S_MAX = 30.0
_LOOK_S = 0.05
_LOOKS_MAX = 600


def find() -> str | None:
    """The program, None where there is none."""
    return next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
    )


class Tab:
    """One page. What `evaluate` runs is ours: a page's own policy does not hold for it."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)

    async def open(self, url: str, width: int) -> None:
        """Load a page in a window that wide, in CSS pixels."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        await self._call("Emulation.setDeviceMetricsOverride", size)
        await self._call("Page.navigate", {"url": url})
        await self.await_value("document.readyState + location.href", f"complete{url}")

    async def await_value(self, expression: str, value: object) -> None:
        """Wait until a JavaScript expression has a value. Raises TimeoutError."""
        for _ in range(_LOOKS_MAX):
            if await self.evaluate(expression) == value:
                return
            await asyncio.sleep(_LOOK_S)
        raise TimeoutError(f"{expression} is not {value}")

    async def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        answer = await self._call("Runtime.evaluate", {"expression": expression, "returnByValue": True})
        return answer["result"].get("value")

    async def _call(self, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
        number = next(self._numbers)
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        async with asyncio.timeout(_LOAD_S_MAX):
            while True:
                told: dict[str, Any] = await self._socket.receive_json()
                if told.get("id") == number:
                    assert "error" not in told, told
                    result: dict[str, Any] = told["result"]
                    return result


def _port(told: Path) -> int:
    """Where the browser listens, as it writes down when it does. Raises TimeoutError."""
    for _ in range(_LOOKS_MAX):
        lines = told.read_text().splitlines() if told.exists() else []
        if len(lines) >= 2:
            return int(lines[0])
        time.sleep(_LOOK_S)
    raise TimeoutError("Chromium does not listen")


@contextlib.asynccontextmanager
async def tab(program: str) -> AsyncIterator[Tab]:
    """A browser with one empty page; it ends with the block."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        flags = (
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--remote-debugging-port=0",
            f"--user-data-dir={profile}",
        )
        quiet = asyncio.subprocess.DEVNULL
        process = await asyncio.create_subprocess_exec(program, *flags, "about:blank", stdout=quiet, stderr=quiet)
        try:
            port = await asyncio.to_thread(_port, Path(profile, "DevToolsActivePort"))
            async with aiohttp.ClientSession() as session:
                async with session.get(f"http://127.0.0.1:{port}/json/list") as listed:
                    pages = [each for each in await listed.json() if each["type"] == "page"]
                async with session.ws_connect(pages[0]["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                    yield Tab(socket)
        finally:
            process.kill()
            await process.wait()
