"""A real nats-server of its own for every test: cheap, under a second each."""

import asyncio
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import nats
import pytest
from nats.aio.client import Client

from cluster.live.broker import Broker, BrokerSettings, BrokerUnavailable, _seconds, _unix_s

Processes = list[subprocess.Popen[bytes]]


@pytest.fixture
def started() -> Iterator[Processes]:
    processes: Processes = []
    yield processes
    for process in processes:
        process.kill()
        process.wait()


def _spawner(processes: Processes) -> Callable[[str, Sequence[str]], int]:
    def spawn(name: str, argv: Sequence[str]) -> int:
        processes.append(subprocess.Popen(argv, stdin=subprocess.DEVNULL))
        return processes[-1].pid

    return spawn


async def _connect(url: str, name: str, errors: list[str] | None = None) -> Client:
    async def note(error: Exception) -> None:
        if errors is not None:
            errors.append(str(error))

    return await nats.connect(url, name=name, allow_reconnect=False, error_cb=note)


@pytest.mark.live
def test_each_node_hears_its_own_inbox_only_and_is_seen_by_name(tmp_path: Path, started: Processes) -> None:
    broker = Broker(tmp_path, ["controller", "worker-0"], BrokerSettings(ping_interval_s=0.2))
    broker.start(_spawner(started))

    async def talk() -> None:
        errors: list[str] = []
        controller = await _connect(broker.url("controller"), "controller", errors)
        worker = await _connect(broker.url("worker-0"), "worker-0")
        inbox = await worker.subscribe("mlxc.worker-0.>")
        # nats-py writes a ping before what waits to be written: only the second one comes after the subscription.
        await worker.flush()
        await worker.flush()
        await controller.subscribe("mlxc.worker-0.in")
        await controller.publish("mlxc.worker-0.in", b"12345")
        assert (await inbox.next_msg(timeout=2)).data == b"12345"
        await asyncio.sleep(0.6)
        assert any("permissions violation" in error.lower() for error in errors)
        seen = await asyncio.to_thread(broker.connections)
        assert set(seen) == {"controller", "worker-0"}
        assert (seen["controller"].in_msgs, seen["controller"].in_bytes) == (1, 5)
        assert (seen["worker-0"].out_msgs, seen["worker-0"].user) == (1, "worker-0")
        assert seen["worker-0"].subscriptions == ("mlxc.worker-0.>",)
        assert seen["worker-0"].rtt_s is not None
        assert 0 < seen["worker-0"].rtt_s < 0.5
        assert 0.3 < seen["worker-0"].idle_s < 3
        assert abs(seen["worker-0"].last_activity_unix_s - time.time()) < 5
        again = await _connect(broker.url("worker-0"), "worker-0")
        assert len(await asyncio.to_thread(broker.all_connections)) == 3
        newest = await asyncio.to_thread(broker.connection, "worker-0")
        assert newest is not None
        assert newest.cid > seen["worker-0"].cid
        for client in (controller, worker, again):
            await client.close()

    asyncio.run(talk())
    # Passwords do not stay on disk once the server has read them, and no payload is logged.
    assert not (tmp_path / "nats-server.conf").exists()
    assert "12345" not in (tmp_path / "nats-server.log").read_text()


def test_only_the_owner_can_read_the_configuration(tmp_path: Path) -> None:
    Broker(tmp_path, ["a"]).argv()
    assert (tmp_path / "nats-server.conf").stat().st_mode & 0o077 == 0


@pytest.mark.live
def test_a_wrong_password_is_refused_and_a_restart_keeps_the_ports(tmp_path: Path, started: Processes) -> None:
    broker = Broker(tmp_path, ["a"])
    spawn = _spawner(started)
    broker.start(spawn)
    url = broker.url("a")
    with pytest.raises(nats.errors.Error, match="Authorization"):
        asyncio.run(_connect(f"nats://a:wrong@{broker.address}", "a"))
    started[0].kill()
    started[0].wait()
    with pytest.raises(BrokerUnavailable):
        broker.connections(0.5)
    broker.start(spawn)
    assert broker.url("a") == url
    assert broker.connections() == {}
    assert broker.url("a", "127.0.0.1:9").endswith("@127.0.0.1:9")


@pytest.mark.live
def test_a_bad_setting_is_told_with_the_servers_own_words(tmp_path: Path, started: Processes) -> None:
    broker = Broker(tmp_path, ["a"], BrokerSettings(max_payload_bytes=2**40))
    began = time.monotonic()
    with pytest.raises(BrokerUnavailable, match="ended at its start"):
        broker.start(_spawner(started))
    assert time.monotonic() - began < 5


def test_an_occupied_port_is_one_clear_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as occupant:
        port = occupant.getsockname()[1]
        with pytest.raises(BrokerUnavailable, match=f"port {port}"):
            Broker(tmp_path, ["a"], port=port).argv()


def test_a_user_is_one_token_of_a_subject(tmp_path: Path) -> None:
    for user in ("a.b", "a b", "*", ""):
        with pytest.raises(ValueError, match="user"):
            Broker(tmp_path, [user])


def test_nobody_has_the_name_of_all_controllers_and_controllers_are_users(tmp_path: Path) -> None:
    for user in ("controllers", "every-controller"):
        with pytest.raises(ValueError, match="address of several controllers"):
            Broker(tmp_path, [user])
    with pytest.raises(ValueError, match="stranger is no user"):
        Broker(tmp_path, ["a"], controllers=["a", "stranger"])


@pytest.mark.live
def test_only_controllers_hear_what_is_for_controllers_and_only_as_their_group(
    tmp_path: Path, started: Processes
) -> None:
    broker = Broker(tmp_path, ["boss", "worker-0"], controllers=["boss"])
    broker.start(_spawner(started))

    async def refused(user: str, subject: str, group: str = "") -> bool:
        errors: list[str] = []
        client = await _connect(broker.url(user), user, errors)
        await client.subscribe(subject, group)
        await client.flush()
        await client.flush()
        await client.close()
        return any("permissions violation" in error.lower() for error in errors)

    async def try_all() -> None:
        assert not await refused("boss", "mlxc.every-controller.in")
        assert not await refused("boss", "mlxc.controllers.in", "controllers")
        assert await refused("boss", "mlxc.controllers.in"), "it would hear what others serve"
        assert await refused("boss", "mlxc.controllers.in", "thieves")
        assert await refused("boss", "mlxc.worker-0.in")
        assert await refused("worker-0", "mlxc.every-controller.in")
        assert await refused("worker-0", "mlxc.controllers.in", "controllers")

    asyncio.run(try_all())


def test_a_server_that_says_nothing_is_noticed_at_the_deadline(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(BrokerUnavailable, match=r"not ready within 0\.2 s"):
        Broker(tmp_path, ["a"]).wait_ready(0.2)
    assert time.monotonic() - began < 1


def test_durations_and_stamps_of_the_server() -> None:
    assert _seconds("574µs") == pytest.approx(574e-6)
    assert _seconds("1m2.5s") == pytest.approx(62.5)
    assert _seconds("2.3ms") == pytest.approx(0.0023)
    with pytest.raises(ValueError, match="duration"):
        _seconds("soon")
    assert _unix_s("1970-01-01T00:00:01.123456789Z") == pytest.approx(1.123456789)
    assert _unix_s("1970-01-01T00:00:02Z") == 2.0
