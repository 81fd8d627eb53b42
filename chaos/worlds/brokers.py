"""The broker's process of a live world, a child of the keeper, that can be killed, frozen and replaced."""

import asyncio
import signal
import time
from collections.abc import Callable

import psutil

from chaos.keeper import KeeperError
from chaos.undo import FrozenEntry, UndoError
from chaos.worlds.processes import status
from chaos.worlds.servers import Servers
from chaos.worlds.world import BrokerState, HandleError, Life
from cluster.live.broker import NAME, BrokerUnavailable, ServerFacts

_SIGNAL_S = 2.0
_POLL_S = 0.02
_ANSWER_S = 1.0


class BrokerProcess:
    """See chaos.worlds.world.Broker. A frozen one is in the undo log before it is frozen.

    A killed one is not: with the run everything ends that needs it.
    """

    def __init__(self, servers: Servers) -> None:
        self._servers = servers
        self._frozen: str | None = None
        self._lock = asyncio.Lock()

    async def kill(self) -> None:
        """See Broker."""
        self._servers.ended_by_fault.add(NAME)
        await self._signal(signal.SIGKILL, lambda pid: status(pid) is None)

    async def restart(self) -> None:
        """See Broker."""
        # Shielded: a cancelled caller must not leave a start half made while it goes on to heal.
        await asyncio.shield(self._restart())

    async def _restart(self) -> None:
        async with self._lock:
            try:
                await asyncio.to_thread(self._servers.restart_broker)
            except (BrokerUnavailable, KeeperError) as error:
                raise HandleError(str(error)) from error
        self._undone()

    async def freeze(self, ttl_s: float) -> None:
        """See Broker. When the undo log cannot be written, nothing is frozen."""
        undo, pid = self._servers.undo, self._servers.broker_pid
        assert undo is not None
        try:
            created_s = psutil.Process(pid).create_time()
            entry = FrozenEntry(pid=pid, created_s=created_s, name=NAME, expires_unix_s=time.time() + ttl_s)
            self._frozen = undo.add(entry)
        except psutil.NoSuchProcess:
            raise HandleError(f"broker: its process {pid} is gone, SIGSTOP reaches nobody") from None
        except (UndoError, psutil.Error) as error:
            raise HandleError(f"broker: {error}") from error
        await self._signal(signal.SIGSTOP, lambda pid: status(pid) == psutil.STATUS_STOPPED)

    async def thaw(self) -> None:
        """See Broker."""
        await self._signal(signal.SIGCONT, lambda pid: status(pid) != psutil.STATUS_STOPPED)
        self._undone()

    async def lame_duck(self) -> None:
        """See Broker."""
        self._servers.ended_by_fault.add(NAME)
        await self._signal(signal.SIGUSR2, lambda pid: True)

    async def inspect(self) -> BrokerState:
        """See Broker."""
        pid, broker = self._servers.broker_pid, self._servers.broker
        said = status(pid)
        life = Life.IS_GONE if said is None else Life.STANDS_STILL if said == psutil.STATUS_STOPPED else Life.RUNS
        found, greets = await asyncio.gather(
            asyncio.to_thread(broker.facts, _ANSWER_S), asyncio.to_thread(broker.greets), return_exceptions=True
        )
        facts = found if isinstance(found, ServerFacts) else None
        return BrokerState(
            life=life,
            pid=pid,
            identity="" if facts is None else facts.server_id,
            greets=greets is True,
            connections=None if facts is None else facts.connections,
            slow_consumers=None if facts is None else facts.slow_consumers,
        )

    async def _signal(self, number: signal.Signals, reached: Callable[[int], bool]) -> None:
        """Send it, and wait until `reached` says of the pid that it has acted."""
        pid = self._servers.broker_pid
        try:
            psutil.Process(pid).send_signal(number)
        except psutil.NoSuchProcess:
            raise HandleError(f"broker: its process {pid} is gone, {number.name} reaches nobody") from None
        except psutil.Error as error:
            raise HandleError(f"broker: {number.name}: {error}") from error
        end_s = time.monotonic() + _SIGNAL_S
        while not reached(pid):
            if time.monotonic() > end_s:
                raise HandleError(f"broker: its process {pid} has not acted on {number.name} within {_SIGNAL_S:g} s")
            await asyncio.sleep(_POLL_S)

    def _undone(self) -> None:
        if self._frozen is None:
            return
        assert self._servers.undo is not None
        try:
            self._servers.undo.done(self._frozen)
        except UndoError as error:
            raise HandleError(f"broker: {error}") from error
        self._frozen = None
