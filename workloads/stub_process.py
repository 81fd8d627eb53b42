"""The stub server as a child process."""

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator

import aiohttp
import msgspec

from workloads.stub_server import Stats

_START_S = 20.0
_END_S = 5.0


class StubFailed(Exception):
    """The stub server does not come up or does not answer. The message is one line."""


class StubProcess:
    """A stub that runs. url: its base, with `/v1`."""

    def __init__(self, url: str) -> None:
        self.url = url

    async def stats(self) -> Stats:
        """What it counted since it was asked last. Raises StubFailed."""
        try:
            async with (
                aiohttp.ClientSession() as session,
                session.get(f"{self.url.removesuffix('/v1')}/stats?reset=1") as told,
            ):
                return msgspec.json.decode(await told.read(), type=Stats)
        except (aiohttp.ClientError, OSError, msgspec.DecodeError) as error:
            raise StubFailed(f"the stub server does not tell its counts: {error}") from error


@contextlib.asynccontextmanager
async def running_stub(ttft_s: float, gap_s: float) -> AsyncIterator[StubProcess]:
    """One on a free port of loopback. It ends with its standard input, so when we are killed too. Raises StubFailed."""
    command = [sys.executable, "-m", "workloads.stub_server", "--ends-with-stdin"]
    command += ["--ttft", str(ttft_s), "--gap", str(gap_s)]
    process = await asyncio.create_subprocess_exec(
        *command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        try:
            url = (await asyncio.wait_for(process.stdout.readline(), _START_S)).decode().strip()
        except TimeoutError:
            url = ""
        if not url:
            raise StubFailed(f"the stub server does not come up within {_START_S:g} s")
        yield StubProcess(url)
    finally:
        process.stdin.close()
        try:
            await asyncio.wait_for(process.communicate(), _END_S)
        except TimeoutError:
            process.kill()
            await process.communicate()
