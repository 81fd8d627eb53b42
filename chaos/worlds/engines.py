"""The engines of a live world's workers, hurt inside their processes.

Nothing of this is in the undo log, because nothing outlives its process: an impairment ends by itself after its TTL, on
the worker's own clock, and the keeper ends the workers with the run.
"""

import time
from typing import Any

from chaos.worlds.processes import CALL_S, Processes
from cluster.engine.impairment import Impairment
from cluster.engine.meter import EngineState


class LiveEngine:
    """See chaos.worlds.world.Engine."""

    def __init__(self, node: str, processes: Processes) -> None:
        self._node = node
        self._processes = processes
        self._impairment: Impairment | None = None
        self._until_s = 0.0

    async def impair(self, impairment: Impairment, ttl_s: float) -> None:
        """See Engine."""
        await self._processes.call(self._node, "impair", impairment, ttl_s)
        self._impairment, self._until_s = impairment, time.monotonic() + ttl_s

    async def restore(self) -> None:
        """See Engine."""
        # First of all: a worker that does not answer must not hand it on to its next incarnation.
        self._impairment = None
        await self._processes.call(self._node, "restore")

    async def limit_memory(self, bytes_max: int | None, ttl_s: float) -> None:
        """See Engine."""
        await self._processes.call(self._node, "limit_memory", bytes_max, ttl_s)

    async def evict(self, model: str, limit_s: float) -> bool:
        """See Engine."""
        gone: bool = await self._processes.call(self._node, "evict", model, limit_s, limit_s=limit_s + CALL_S)
        return gone

    async def prewarm(self, model: str, limit_s: float) -> bool:
        """See Engine."""
        warm: bool = await self._processes.call(self._node, "prewarm", model, limit_s, limit_s=limit_s + CALL_S)
        return warm

    async def inspect(self) -> EngineState:
        """See Engine."""
        state: EngineState = await self._processes.call(self._node, "engine_state")
        return state

    def born(self, actor: Any) -> None:
        """A new process takes this one's place, and is hurt before its engine begins."""
        left_s = self._until_s - time.monotonic()
        if self._impairment is not None and left_s > 0:
            actor.impair.remote(self._impairment, left_s)
