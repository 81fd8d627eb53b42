"""The three sides of the baseline comparison, each asked for the same blocks of requests."""

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Protocol, Self

import msgspec

from analysis.schema import RequestRow
from cluster.engine.blas import find_blas, preload_environment
from workloads.http import HttpDriver, HttpTarget
from workloads.load import SegmentLoop
from workloads.plan import ClosedSegment
from workloads.request import ScheduledRequest
from workloads.words import messages

BARE = "BatchGenerator"
CLUSTER = "cluster"
SERVER = "mlx_lm.server"
START_S = 180.0
END_S = 30.0
TIMEOUT_S = 120.0
_LINE_BYTES_MAX = 2**24
_ADDRESS = re.compile(r"^curl (http://\S+)/v1/chat/completions")


class SideFailed(Exception):
    """A side does not come up, or does not answer. The message is one line."""


class Block(msgspec.Struct, frozen=True):
    """elapsed_s: from the first request until the last has ended. first_s: to each first token, in seconds."""

    tokens: int
    elapsed_s: float
    first_s: list[float]


class BareBlock(msgspec.Struct, frozen=True):
    """What the bare side is asked: conversations, and how many tokens each."""

    conversations: list[list[dict[str, str]]]
    max_tokens: list[int]
    in_flight: int


class Side(Protocol):
    """Whoever answers."""

    async def block(self, requests: Sequence[ScheduledRequest]) -> Block:
        """Keep the side's number of requests in flight until all have ended. Raises SideFailed."""


class HttpSide:
    """An OpenAI-compatible server."""

    def __init__(self, url: str, model: str, in_flight: int, name: str) -> None:
        self._target = HttpTarget(url, model)
        self._in_flight = in_flight
        self._name = name

    async def block(self, requests: Sequence[ScheduledRequest]) -> Block:
        """See Side."""
        rows: list[RequestRow] = []
        segment = ClosedSegment("block", 0.0, 3_600.0, self._in_flight, tuple(requests))
        async with HttpDriver(self._target, rows.append) as driver:
            start_s = asyncio.get_running_loop().time()
            await driver.run(SegmentLoop(segment, start_s, self._target.model, TIMEOUT_S))
        bad = [row.code for row in rows if row.outcome != "completed"]
        if bad or len(rows) != len(requests):
            why = next((f"{code}: {text}" for code, text in driver.failures), "some were never asked")
            raise SideFailed(f"{self._name}: {len(bad)} of {len(requests)} requests did not complete: {why}")
        first = [row.first_token_s - row.sent_s for row in rows if row.first_token_s is not None]
        elapsed_s = max(row.ended_s for row in rows) - min(row.sent_s for row in rows)
        return Block(sum(len(row.tokens) for row in rows), elapsed_s, first)


class BareSide:
    """mlx-lm's BatchGenerator in a process of its own, which has the fast BLAS in it; see chaos.bare_engine."""

    def __init__(self, directory: Path, in_flight: int) -> None:
        self._directory = directory
        self._in_flight = in_flight
        self._process: Process | None = None

    async def __aenter__(self) -> Self:
        command = [sys.executable, "-m", "chaos.bare_engine", str(self._directory)]
        environment = os.environ | preload_environment(find_blas())
        self._process = await asyncio.create_subprocess_exec(
            *command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, limit=_LINE_BYTES_MAX
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._process is not None:
            await _end(self._process)

    async def block(self, requests: Sequence[ScheduledRequest]) -> Block:
        """See Side."""
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        conversations = [
            [{"role": each.role, "content": each.content} for each in messages(request.prompt)] for request in requests
        ]
        asked = BareBlock(conversations, [request.max_tokens for request in requests], self._in_flight)
        try:
            process.stdin.write(msgspec.json.encode(asked) + b"\n")
            await process.stdin.drain()
            async with asyncio.timeout(START_S):
                return msgspec.json.decode(await process.stdout.readline(), type=Block)
        except (OSError, msgspec.DecodeError) as error:
            raise SideFailed(f"{BARE}: it does not answer: {error or type(error).__name__}") from error


@contextlib.asynccontextmanager
async def served_cluster(model: str, folder: Path, in_flight: int) -> AsyncIterator[HttpSide]:
    """`cluster.serve` with one worker. Raises SideFailed."""
    policy = folder / "policy.yaml"
    policy.write_text(f"worker: {{batch_max: {in_flight}}}\ntimeout: {{first_token_s: {TIMEOUT_S:g}}}\n")
    command = ["cluster.serve", "--port", "0", "--model", model, "--policy", str(policy)]
    log = folder / "cluster.log"
    async with _running(command, log) as process:
        url = await _announced(process, log)
        yield HttpSide(f"{url}/v1", model, in_flight, CLUSTER)


@contextlib.asynccontextmanager
async def their_server(directory: Path, folder: Path, in_flight: int) -> AsyncIterator[HttpSide]:
    """mlx-lm's own server with the same limits of concurrency. Raises SideFailed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    limit = str(in_flight)
    command = ["mlx_lm", "server", "--model", str(directory), "--port", str(port), "--log-level", "ERROR"]
    command += ["--decode-concurrency", limit, "--prompt-concurrency", limit]
    log = folder / "server.log"
    async with _running(command, log, preload_environment(find_blas())) as process:
        await _listening(process, port, log)
        yield HttpSide(f"http://127.0.0.1:{port}/v1", "default_model", in_flight, SERVER)


@contextlib.asynccontextmanager
async def _running(command: list[str], log: Path, more: dict[str, str] | None = None) -> AsyncIterator[Process]:
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", **(more or {})}
    output = os.open(log, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", *command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment
        )
    finally:
        os.close(output)
    try:
        yield process
    finally:
        await _end(process)


async def _end(process: Process) -> None:
    """Ask it to end, and end it when it does not."""
    if process.stdin is not None:
        process.stdin.close()
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGINT)
    try:
        await asyncio.wait_for(process.wait(), END_S)
    except TimeoutError:
        process.kill()
        await process.wait()


async def _announced(process: Process, log: Path) -> str:
    """The URL that the cluster prints when it is up."""
    async with _patience(process, CLUSTER, log):
        while True:
            for line in _lines(log):
                if found := _ADDRESS.match(line):
                    return found[1]
            await _pause(process, CLUSTER, log)


async def _listening(process: Process, port: int, log: Path) -> None:
    async with _patience(process, SERVER, log):
        while True:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                return
            await _pause(process, SERVER, log)


@contextlib.asynccontextmanager
async def _patience(process: Process, name: str, log: Path) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(START_S):
            yield
    except TimeoutError:
        raise SideFailed(f"{name}: not up within {START_S:g} s: {_last_line(log)}") from None


async def _pause(process: Process, name: str, log: Path) -> None:
    if process.returncode is not None:
        raise SideFailed(f"{name}: it ended with code {process.returncode}: {_last_line(log)}")
    await asyncio.sleep(0.2)


def _lines(log: Path) -> list[str]:
    return log.read_text(errors="replace").splitlines()


def _last_line(log: Path) -> str:
    lines = [line for line in _lines(log) if line.strip()]
    return lines[-1] if lines else "it said nothing"
