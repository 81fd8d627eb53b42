"""The witnesses at a real NATS server: what it says to a stranger, and of its clients."""

import asyncio
import contextlib
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nats
import pytest

from chaos.staging.identity import Brokers
from chaos.staging.nats import NatsMonitor
from chaos.staging.witness import GREETING_BYTES, Held, greeted_by, look
from cluster.live.broker import server_path

LIMIT_S = 5.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def nats_server(folder: Path, login: str, name: str = "real") -> Iterator[tuple[tuple[str, int], NatsMonitor]]:
    ports = free_port(), free_port()
    path = folder / f"{name}.conf"
    path.write_text(f'listen: "127.0.0.1:{ports[0]}"\nhttp: "127.0.0.1:{ports[1]}"\nserver_name: "{name}"\n{login}')
    process = subprocess.Popen([str(server_path()), "-c", str(path)], stderr=subprocess.DEVNULL)
    try:
        ends_s = time.monotonic() + 10
        while time.monotonic() < ends_s:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", ports[1]), 1):
                break
            time.sleep(0.02)
        yield ("127.0.0.1", ports[0]), NatsMonitor(f"http://127.0.0.1:{ports[1]}")
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("login", ["", 'authorization { user: "u", password: "p" }'], ids=["open", "login"])
def test_a_real_server_answers_strangers(tmp_path: Path, login: str) -> None:
    with nats_server(tmp_path, login) as (address, monitor):
        for padded in (False, True):
            reading = look(address, LIMIT_S, padded)
            assert reading.both_s is not None, "with a login the answer is a refusal, and an answer all the same"
            assert reading.both_s < LIMIT_S
        with socket.create_connection(address) as plain:
            assert len(plain.recv(65_536)) > GREETING_BYTES
        assert (monitor.server().server_name, len(monitor.server().server_id)) == ("real", 56)
        held = Held.open(address, LIMIT_S)
        assert held is not None
        assert not held.was_cut()
        held.close()


@pytest.mark.parametrize("login", ["", 'authorization { user: "u", password: "p" }'], ids=["open", "login"])
def test_who_is_behind_a_proxy_is_told_before_anything_is_sent(tmp_path: Path, login: str) -> None:
    with nats_server(tmp_path, login) as (address, monitor):
        seen = greeted_by(address, LIMIT_S)
        assert seen is not None
        assert (seen.server_id, seen.server_name, seen.cluster) == (monitor.server().server_id, "real", "")
        assert monitor.routed() == frozenset()
        assert greeted_by(("127.0.0.1", free_port()), LIMIT_S) is None
        assert greeted_by(("127.0.0.1", int(monitor.url.rpartition(":")[2])), 0.2) is None, "that speaks HTTP"


def test_the_servers_of_a_cluster_are_one_target_and_no_other(tmp_path: Path) -> None:
    place = f"127.0.0.1:{free_port()}"
    first = f'cluster {{ name: "rack", listen: "{place}" }}'
    second = f'cluster {{ name: "rack", listen: "127.0.0.1:{free_port()}", routes: ["nats://{place}"] }}'
    with (
        nats_server(tmp_path, first, "a") as (_, asked),
        nats_server(tmp_path, second, "b") as (routed, _),
        nats_server(tmp_path, 'cluster { name: "production", listen: "127.0.0.1:-1" }', "c") as (stranger, _),
    ):
        ends_s = time.monotonic() + 10
        while not asked.routed() and time.monotonic() < ends_s:
            time.sleep(0.02)
        ids = Brokers(ids=asked.routed() | {asked.server().server_id})
        named = Brokers(cluster="rack")
        peer, other = greeted_by(routed, LIMIT_S), greeted_by(stranger, LIMIT_S)
        assert peer is not None
        assert other is not None
        assert (peer.cluster, other.cluster) == ("rack", "production")
        for brokers in (ids, named):
            assert peer in brokers
            assert other not in brokers


def test_what_the_broker_hears_of_a_client(tmp_path: Path) -> None:
    async def talk(address: tuple[str, int], monitor: NatsMonitor) -> None:
        client = await nats.connect(f"nats://{address[0]}:{address[1]}", name="worker-7")
        for count in (3, 5):
            while sum((await asyncio.to_thread(monitor.heard, "worker-7")).values()) < count:
                await client.publish("x", b"")
                await client.flush()
        assert monitor.names() == ["worker-7"]
        assert monitor.heard("worker-8") == {}
        await client.close()

    with nats_server(tmp_path, "") as (address, monitor):
        asyncio.run(talk(address, monitor))
        assert monitor.heard("worker-7") == {}


def test_who_does_not_greet_as_nats_does() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = ("127.0.0.1", mute.getsockname()[1])
        reading = look(address, 0.1)
        assert (reading.greeting_s, reading.both_s, reading.why) == (None, None, "")
        assert Held.open(address, 0.1) is None
        assert greeted_by(address, 0.1) is None
    assert look(address, 0.5).why.startswith("no connection")
