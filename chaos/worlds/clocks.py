"""The clocks of a live world's nodes. A node gets another clock only with another process."""

import time
from collections.abc import Callable

from chaos.worlds.processes import ActorProcess, Processes


class LiveClock:
    """See chaos.worlds.world.NodeClock."""

    def __init__(
        self, node: str, processes: Processes, process: ActorProcess, host_ahead_s: Callable[[str], float]
    ) -> None:
        """host_ahead_s: how far the clock of a node's host is ahead of ours."""
        self._host_ahead_s = host_ahead_s
        self._node = node
        self._processes = processes
        self._process = process
        self.ahead_s = 0.0
        """Of its next process."""

    async def set_ahead(self, ahead_s: float) -> None:
        """See NodeClock."""
        self.ahead_s = ahead_s
        await self._process.restart()

    async def ahead(self) -> float:
        """See NodeClock. A host has one clock for all processes; the way of the question blurs it a little."""
        asked_s = time.monotonic()
        told_s: float = await self._processes.call(self._node, "clock")
        return told_s - (asked_s + time.monotonic()) / 2 - self._host_ahead_s(self._node)
