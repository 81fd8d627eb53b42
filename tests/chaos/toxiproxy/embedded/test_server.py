"""The embedded server as a process and as an object: flags, its end, and that nothing stays behind."""

import asyncio
import gc
import os
import signal
import socket
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from chaos.toxiproxy.embedded.__main__ import main
from chaos.toxiproxy.embedded.api import API_VERSION
from chaos.toxiproxy.embedded.server import EmbeddedServer, ServerError, Settings
from chaos.toxiproxy.launcher import VERSION, _version_of
from tests.chaos.toxiproxy.conformance.rig import HOST, ServerUnderTest, await_answer, command, free_port, running

TOXICS: tuple[dict[str, Any], ...] = (
    {"type": "latency", "attributes": {"latency": 600_000}},
    {"type": "bandwidth", "attributes": {"rate": 0}},
    {"type": "slow_close", "attributes": {"delay": 600_000}},
    {"type": "timeout", "attributes": {"timeout": 600_000}},
    {"type": "slicer", "attributes": {"average_size": 1, "delay": 600_000_000}},
    {"type": "nats_delay", "attributes": {"delay": 600_000}},
    {"type": "noop", "ttl_ms": 600_000},
)


@pytest.mark.parametrize("flag", ["-version", "--version", "-version=true"])
def test_version(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([flag]) == 0
    assert capsys.readouterr().out == f"toxiproxy-server version {API_VERSION}\n"


def test_the_launcher_can_ask_for_its_version(tmp_path: Path) -> None:
    program = tmp_path / "toxiproxy-server"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m chaos.toxiproxy.embedded "$@"\n')
    program.chmod(0o755)
    assert _version_of(program) == API_VERSION
    assert VERSION in API_VERSION


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["-port", "70000"], "argument -port: expected 0 to 65535, got '70000'"),
        (["-port", "x"], "argument -port: expected 0 to 65535, got 'x'"),
        (["-seed", "x"], "argument -seed: invalid int value: 'x'"),
        (["-proxy-metrics=maybe"], "argument -proxy-metrics: expected true or false, got 'maybe'"),
        (["-nonsense"], "unrecognized arguments: -nonsense"),
        (["extra"], "unrecognized arguments: extra"),
    ],
)
def test_flags_that_are_wrong(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(flags)
    assert caught.value.code == 2
    assert capsys.readouterr().err == f"toxiproxy-embedded: {message}\n"


def test_flags_as_go_takes_them() -> None:
    port = free_port()
    argv = [sys.executable, "-m", "chaos.toxiproxy.embedded", f"--port={port}", "--proxy-metrics=true", "-seed=5"]
    with subprocess.Popen(argv, stderr=subprocess.DEVNULL) as process:
        server = ServerUnderTest("embedded", port, process)
        try:
            await_answer(server)
            assert server.call("GET", "/metrics").status == 200
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_in_order(number: signal.Signals) -> None:
    with running("embedded") as server:
        proxy = server.proxy(f"{HOST}:{free_port()}")
        client = proxy.dial()
        server.process.send_signal(number)
        assert server.process.wait(10) == 0
        client.close()


def test_tethered_it_ends_with_whoever_started_it() -> None:
    port = free_port()
    argv = command("embedded", port, "-tethered")
    parent = (
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen({argv!r}, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE) as starter:
        assert starter.stdout is not None
        child = psutil.Process(int(starter.stdout.readline()))
        await_answer(ServerUnderTest("embedded", port, starter))
        os.kill(starter.pid, signal.SIGKILL)
    ends_s = time.monotonic() + 10
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < ends_s, "it outlives its parent"
        time.sleep(0.02)


def test_untethered_it_does_not_look_at_its_input() -> None:
    with running("embedded") as server:
        time.sleep(0.2)
        assert server.process.poll() is None


async def _crowd(server: EmbeddedServer, upstream: tuple[str, int]) -> list[socket.socket]:
    """Connections under every toxic, with bytes held everywhere."""
    loop = asyncio.get_running_loop()
    clients = []
    async with aiohttp.ClientSession(server.url) as session:
        for number, toxic in enumerate(TOXICS):
            proxy = {"name": f"p{number}", "upstream": "{}:{}".format(*upstream)}
            async with session.post("/proxies", json=proxy) as answer:
                listen = (await answer.json())["listen"]
            for stream in ("upstream", "downstream"):
                async with session.post(f"/proxies/p{number}/toxics", json=toxic | {"stream": stream}) as answer:
                    assert answer.status == 200
            client = socket.socket()
            client.setblocking(False)
            await loop.sock_connect(client, (HOST, int(listen.rpartition(":")[2])))
            await loop.sock_sendall(client, b"CONNECT {}\r\nPUB a 1\r\nx\r\n" + b"PING\r\n" * 10)
            clients.append(client)
        await asyncio.sleep(0.3)
        async with session.get("/proxies/p0/connections") as answer:
            assert len(await answer.json()) == 1
    return clients


def test_closing_leaves_no_task_and_no_socket() -> None:
    process = psutil.Process()

    async def run() -> None:
        echo = await asyncio.start_server(_echo, HOST, 0)
        async with EmbeddedServer(Settings(port=0, seed=1)) as server:
            clients = await _crowd(server, echo.sockets[0].getsockname())
        timers = [handle for handle in asyncio.get_running_loop()._scheduled if not handle.cancelled()]  # type: ignore[attr-defined]
        assert not [handle for handle in timers if "embedded" in repr(handle)]
        for client in clients:
            # Everything was closed at the other end.
            with pytest.raises((BlockingIOError, OSError, AssertionError)):
                assert client.recv(100_000) == b"never"
            client.close()
        echo.close()
        await echo.wait_closed()
        await asyncio.sleep(0.1)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    before = process.num_fds()
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        asyncio.run(run())
        gc.collect()
    assert process.num_fds() <= before


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65_536):
            writer.write(data)
    except ConnectionError:
        pass
    finally:
        writer.close()


def test_a_start_that_fails_leaves_nothing_open(tmp_path: Path) -> None:
    config = tmp_path / "proxies.json"
    port = free_port()
    config.write_text(f'[{{"name": "a", "listen": "{HOST}:{port}", "upstream": "x:1"}}]')

    async def run() -> None:
        with socket.create_server((HOST, 0)) as taken:
            settings = Settings(port=taken.getsockname()[1], config=config)
            with pytest.raises(ServerError, match="Address already in use"):
                await EmbeddedServer(settings).start()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(run())
    socket.create_server((HOST, port)).close()
