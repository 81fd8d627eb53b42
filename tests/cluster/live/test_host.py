"""What hosts a node: how much memory a worker may have, when a drain is over, and how a host's node stands."""

import asyncio
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from msgspec import structs

from analysis.schema import Gauges
from cluster.live.broker import Broker
from cluster.live.host import NodeHost, NodeSpec, with_memory
from cluster.node import MemoryLimit, Received
from cluster.policy import LinkPolicy, MemoryPolicy, Policy
from cluster.protocol import Drain, Evict, Prewarm
from cluster.record import Record, records
from cluster.replay import replay
from cluster.worker.prewarm import ModelOffer

POLICY = Policy(link=LinkPolicy(ping_s=0.2, reconnect_s=0.05, connect_s=0.5, reconnects_max=2))


def spec(role: str, url: str = "", raw: str = "") -> NodeSpec:
    return NodeSpec(role, f"{role}-0", url, POLICY, raw, (ModelOffer("m"),), 1)


class Shell:
    """In place of a LiveNode: a node that finishes one request each time it is looked at."""

    def __init__(self, left: int) -> None:
        self.left = left
        self.behind = False
        self.fed: list[Any] = []
        self.node = self

    def feed(self, event: Any) -> None:
        self.fed.append(event)

    def gauges(self) -> Gauges:
        self.left -= 1
        return Gauges(open_requests=max(0, self.left))


def test_a_worker_gets_its_share_of_three_quarters_of_the_host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Memory:
        total = 64 * 2**30

    limit = tmp_path / "memory.max"
    monkeypatch.setattr(psutil, "virtual_memory", Memory)
    monkeypatch.setattr("cluster.live.host._CONTAINER_LIMIT", limit)
    assert with_memory(Policy(), 1).memory.bytes_max == 48 * 2**30
    assert with_memory(Policy(), 3).memory.bytes_max == 16 * 2**30
    limit.write_text("max\n")
    assert with_memory(Policy(), 1).memory.bytes_max == 48 * 2**30
    limit.write_text(f"{8 * 2**30}\n")
    assert with_memory(Policy(), 2).memory.bytes_max == 3 * 2**30
    own = Policy(memory=MemoryPolicy(bytes_max=5))
    assert with_memory(own, 2) is own


@pytest.mark.parametrize(("requests", "limit_s", "emptied"), [(0, 5.0, True), (4, 5.0, True), (10**9, 0.2, False)])
def test_a_drain_is_over_when_nothing_is_open(requests: int, limit_s: float, emptied: bool) -> None:
    host = NodeHost(spec("worker"))
    host._made(host._birth())
    shell = Shell(requests)
    host._shell = shell  # type: ignore[assignment]
    assert asyncio.run(host.drain(limit_s)) is emptied
    assert shell.fed == [Received(Drain())]


@pytest.mark.parametrize(("wanted", "state"), [("evict", "cold"), ("prewarm", "warm")])
def test_a_model_is_gone_or_warm_when_the_worker_says_so_and_not_before(wanted: str, state: str) -> None:
    async def stand(states: list[str], limit_s: float) -> tuple[bool, list[Any]]:
        host, shell = NodeHost(spec("worker")), Shell(0)
        host._made(host._birth())
        host._shell = shell  # type: ignore[assignment]
        told = iter([*states, *states[-1:] * 1000])
        host.worker.models = lambda: {"m": next(told)}  # type: ignore[method-assign]
        return await getattr(host, wanted)("m", limit_s), shell.fed

    done, fed = asyncio.run(stand(["loading", "loading", state], 5.0))
    assert done
    assert fed == [Received(Evict("m") if wanted == "evict" else Prewarm("m"))]
    assert asyncio.run(stand(["loading"], 0.05))[0] is False


@pytest.mark.parametrize("ahead_s", [-86_400.0, 0.0, 3_600.0])
def test_an_incarnation_is_above_the_last_one_whatever_the_wall_clock_says(ahead_s: float) -> None:
    last = NodeHost(spec("worker")).incarnation
    again = NodeHost(structs.replace(spec("worker"), clock_ahead_s=ahead_s, incarnation_min=last + 1))
    assert again.incarnation > last
    assert again.incarnation - last < 3_700 * 1e9


def test_a_memory_limit_ends_by_itself() -> None:
    async def stand() -> list[Any]:
        host = NodeHost(structs.replace(spec("worker"), policy=Policy(memory=MemoryPolicy(bytes_max=1_000))))
        host._made(host._birth())
        shell = Shell(0)
        host._shell = shell  # type: ignore[assignment]
        host.limit_memory(10, 30.0)
        host.limit_memory(20, 0.01)
        for _ in range(500):
            if len(shell.fed) == 3:
                break
            await asyncio.sleep(0.01)
        return shell.fed

    assert asyncio.run(stand()) == [MemoryLimit(10), MemoryLimit(20), MemoryLimit(1_000)]


def test_only_workers_are_drained() -> None:
    host = NodeHost(spec("client"))
    host._made(host._birth())
    with pytest.raises(AssertionError, match="client-0 is not a worker"):
        asyncio.run(host.drain(0.1))


class OneBroker(Broker):
    """A broker that can be killed."""

    started: subprocess.Popen[bytes]

    def kill(self) -> None:
        self.started.kill()
        self.started.wait()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[OneBroker]:
    made = OneBroker(tmp_path / "broker", ["controller-0"], controllers=["controller-0"])

    def spawn(name: str, argv: Sequence[str]) -> int:
        made.started = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
        return made.started.pid

    made.start(spawn)
    yield made
    made.kill()


@pytest.mark.live
def test_a_node_off_the_bus_for_good_is_told_from_a_shell_that_failed(broker: OneBroker, tmp_path: Path) -> None:
    async def stand() -> None:
        recorded = structs.replace(spec("controller", broker.url("controller-0"), str(tmp_path)), record_policy=True)
        host = NodeHost(recorded)
        await host.start(5.0)
        look = await host.look()
        assert (look.failure, look.crashed, look.warm, look.workers) == ("", False, {"m": 0}, {})
        assert (await host.link())[0].subscriptions == 3
        broker.kill()
        for _ in range(500):
            look = await host.look()
            if look.failure:
                break
            await asyncio.sleep(0.01)
        assert "off the bus for good after 2 failed reconnects" in look.failure
        assert not look.crashed
        shell = host._running()

        def fail(event: object, now: float) -> None:
            raise RuntimeError("broken")

        shell.node.handle = fail  # type: ignore[method-assign, assignment]
        shell.feed(Received(Drain()))
        for _ in range(500):
            look = await host.look()
            if look.crashed:
                break
            await asyncio.sleep(0.01)
        assert look.failure == "RuntimeError: broken"
        await host.stop()

    asyncio.run(stand())
    (path,) = records(tmp_path)
    replayed = replay(Record(path))
    # What the shell could not go on with is in the record, and a node that was not broken answers otherwise.
    assert replayed.end == ""
    assert replayed.difference is not None
    assert replayed.difference.recorded.raised == "RuntimeError: broken"
    assert replayed.difference.event == Received(Drain())
    assert replayed.difference.number == replayed.events > 2
