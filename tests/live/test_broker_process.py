"""The live broker's handle: the system and the broker see what it does, and only a fault's doing is excused."""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from chaos.undo import FrozenEntry
from chaos.worlds.brokers import BrokerProcess
from chaos.worlds.servers import Servers
from chaos.worlds.world import HandleError, InfrastructureError, Life
from cluster.policy import LinkPolicy

pytestmark = [pytest.mark.live, pytest.mark.verify]


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Servers]:
    started = Servers(f"broker-{os.getpid()}", tmp_path / "logs", ["controller"], ["controller"], LinkPolicy(), 0)
    started.start(None, 0)
    yield started
    assert started.stop() == []


def run(part: Coroutine[Any, Any, None]) -> None:
    asyncio.run(part)


async def until(seen: Callable[[], Coroutine[Any, Any, bool]], limit_s: float = 20.0) -> None:
    end_s = time.monotonic() + limit_s
    while not await seen():
        assert time.monotonic() < end_s, f"not within {limit_s:g} s"
        await asyncio.sleep(0.05)


def test_a_killed_broker_is_away_and_comes_back_at_its_address_as_another(servers: Servers) -> None:
    async def life() -> None:
        broker = BrokerProcess(servers)
        before, address = await broker.inspect(), servers.broker.address
        assert (before.life, before.greets) == (Life.RUNS, True)
        await broker.kill()
        gone = await broker.inspect()
        assert (gone.life, gone.greets, gone.identity) == (Life.IS_GONE, False, "")
        servers.check_alive()
        with pytest.raises(HandleError, match="gone"):
            await broker.freeze(5.0)
        await broker.restart()
        after = await broker.inspect()
        assert (after.life, after.greets, servers.broker.address) == (Life.RUNS, True, address)
        assert after.identity not in ("", before.identity)
        servers.check_alive()

    run(life())


def test_a_broker_that_ends_by_itself_is_a_failure_of_ours_also_after_a_fault(servers: Servers) -> None:
    async def life() -> None:
        await BrokerProcess(servers).restart()
        os.kill(servers.broker_pid, signal.SIGKILL)

        async def noticed() -> bool:
            try:
                servers.check_alive()
            except InfrastructureError:
                return True
            return False

        await until(noticed)

    run(life())


def test_a_frozen_broker_is_written_down_first_and_thawed(servers: Servers) -> None:
    async def life() -> None:
        broker = BrokerProcess(servers)
        before = await broker.inspect()
        await broker.freeze(60.0)
        assert servers.undo is not None
        (entry,) = [each for each in servers.undo.open_entries() if isinstance(each, FrozenEntry)]
        assert entry.pid == servers.broker_pid
        frozen = await broker.inspect()
        assert (frozen.life, frozen.greets, frozen.identity) == (Life.STANDS_STILL, False, "")
        servers.check_alive()
        await broker.thaw()
        assert not [each for each in servers.undo.open_entries() if isinstance(each, FrozenEntry)]
        assert (await broker.inspect()).identity == before.identity

    run(life())


def test_the_keeper_thaws_a_broker_whose_time_limit_has_passed(servers: Servers) -> None:
    async def life() -> None:
        broker = BrokerProcess(servers)
        await broker.freeze(0.5)

        async def goes_on() -> bool:
            return (await broker.inspect()).life is Life.RUNS

        await until(goes_on)

    run(life())


def test_a_lame_duck_takes_nobody_new_and_ends_by_itself(servers: Servers) -> None:
    async def life() -> None:
        broker = BrokerProcess(servers)
        await broker.lame_duck()

        async def refuses() -> bool:
            return not (await broker.inspect()).greets

        async def gone() -> bool:
            return (await broker.inspect()).life is Life.IS_GONE

        await until(refuses, 3.0)
        await until(gone)
        servers.check_alive()
        await broker.restart()
        assert (await broker.inspect()).greets

    run(life())
