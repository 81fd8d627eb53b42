"""PacedEngine: the timed engine in real time, for a live worker that is to compute nothing and take its time.

Whatever moves the tokens is real: processes, links, broker, controller, clocks. Only the computing is a model of it, so
a cluster larger than its hosts could compute shows what the rest of it can carry. It is no measurement of MLX.
"""

import asyncio
from collections.abc import Callable
from random import Random

from cluster.engine.impairment import Impairment
from cluster.engine.meter import EngineState
from cluster.engine.timed import StepCosts, TimedEngine
from cluster.node import Event, Insert
from cluster.policy import Policy
from cluster.simulation.impaired import ImpairedEngine
from cluster.simulation.shell import EngineClock
from cluster.worker.worker import WorkerNode

_STOOD_STILL_S = 0.25
"""Who comes so late to a step's end was stopped with its process, and what it computes with was too."""


class _LoopAlarms:
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    @property
    def now(self) -> float:
        return self._loop.time()

    def at(self, time_s: float, callback: Callable[[], None]) -> None:
        self._loop.call_at(time_s, callback)


class PacedEngine:
    """See cluster.live.node.Engine, and cluster.live.impaired.ImpairedEngine for what hurts it.

    Lives on its node's loop: there is nothing to do but to say at the right time what has been planned.
    """

    def __init__(
        self, costs: StepCosts, policy: Policy, emit: Callable[[Event], None], clock: Callable[[], float]
    ) -> None:
        """emit: tells the worker. clock: the node's, seconds. On a running loop only."""
        self._emit = emit
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        # Nothing repeats itself here, so neither does the noise.
        timed = TimedEngine(costs, policy.worker, policy.stream.flush_s, random=Random())
        self._engine = ImpairedEngine(_LoopAlarms(self._loop), timed)
        self._engine_clock = EngineClock()
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    def impair(self, impairment: Impairment, ttl_s: float) -> None:
        """Hurt it in this way, instead of any other, for `ttl_s` seconds."""
        self._engine.impair(impairment, ttl_s)
        self._arrange()

    def restore(self) -> None:
        """Hurt it no longer. One that has died stays dead."""
        self._engine.restore()

    def state(self, worker: WorkerNode, now: float) -> EngineState:
        """How it stands, and its worker; now: the worker's clock."""
        return self._engine.state(worker, now)

    def load(self, model: str) -> None:
        """See Engine."""
        self._engine.load(model, self._now())
        self._arrange()

    def unload(self, model: str) -> None:
        """See Engine."""
        self._engine.unload(model, self._now())
        self._arrange()

    def insert(self, command: Insert) -> None:
        """See Engine."""
        self._engine.insert(command, self._now())
        self._arrange()

    def remove(self, sequence: int) -> None:
        """See Engine."""
        self._engine.remove(sequence, self._now())
        self._arrange()

    def drop_cache(self, cache: int) -> None:
        """See Engine."""
        self._engine.drop_cache(cache, self._now())
        self._arrange()

    def probe(self) -> None:
        """See Engine."""
        self._engine.probe(self._now())
        self._arrange()

    def memory(self) -> dict[str, int]:
        """See Engine. No memory of MLX is held, so nothing is said of it."""
        return {}

    def close(self, timeout_s: float) -> bool:
        """See Engine. May be called from another thread."""
        self._closed = True
        return True

    def _now(self) -> float:
        """The engine's clock: a command that comes when a step's end is overdue comes after that end."""
        return self._engine_clock.engines(self._clock())

    def _arrange(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due_s = self._engine.next_time()
        if due_s is not None and not self._closed:
            self._timer = self._loop.call_later(max(0.0, due_s - self._now()), self._due)

    def _due(self) -> None:
        self._timer = None
        self._stand_still()
        while (due_s := self._engine.next_time()) is not None and due_s <= self._now() and not self._closed:
            # By the engine's own word: what was planned to end then did.
            for event in self._engine.advance(due_s):
                self._emit(self._engine_clock.told(event))
        self._arrange()

    def _stand_still(self) -> None:
        """A process that was stopped did not compute meanwhile: its engine goes on where it was."""
        due_s, now = self._engine.next_time(), self._clock()
        late_s = self._engine_clock.engines(now) - due_s if due_s is not None else 0.0
        if late_s > _STOOD_STILL_S:
            self._engine_clock.stopped(now - late_s, now)
