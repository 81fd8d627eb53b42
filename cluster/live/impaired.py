"""ImpairedEngine: a worker's real engine that can be hurt from outside, and measured.

It stands where the engine's own seams are: between its steps and its loads on its thread, and on the way of its events
to the worker. The engine itself knows nothing of it.
"""

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from cluster.engine.impairment import Impairment, Spoiler
from cluster.engine.meter import EngineMeter, EngineState
from cluster.live.host import mlx_engine
from cluster.node import Event, Insert
from cluster.policy import Policy
from cluster.worker.worker import WorkerNode

if TYPE_CHECKING:
    from cluster.engine.batch import Batch, Limits

_HEALTHY = Impairment()


class EngineKilled(Exception):
    """The end of an engine's thread that was asked for."""


class LoadFailed(Exception):
    """A load that was to fail."""


class ImpairedEngine:
    """See cluster.live.node.Engine. An impairment ends by itself, but a thread that has died loudly stays dead."""

    def __init__(self, policy: Policy, emit: Callable[[Event], None], clock: Callable[[], float]) -> None:
        """Start the engine. emit, clock: see MlxEngine."""
        self._emit = emit
        self._meter = EngineMeter()
        self._impairment = _HEALTHY
        self._spoiler = Spoiler(_HEALTHY)
        self._until_s = 0.0
        self._relief = threading.Event()
        self._closing = threading.Event()
        self._engine = mlx_engine(
            policy, self._pass_on, clock, between_steps=self._between_steps, load_batch=self._load_batch
        )

    def impair(self, impairment: Impairment, ttl_s: float) -> None:
        """Hurt it in this way, instead of any other, for `ttl_s` seconds."""
        relief, self._relief = self._relief, threading.Event()
        self._spoiler = Spoiler(impairment)
        self._until_s = time.monotonic() + ttl_s
        self._impairment = impairment
        relief.set()
        # A thread that waits for work must wake to die.
        self._engine.probe()

    def restore(self) -> None:
        """Hurt it no longer. One that has died stays dead: only another process of its node brings it back."""
        if self._present().dies is None:
            self._impairment = _HEALTHY
        self._relief.set()

    def state(self, worker: WorkerNode, now: float) -> EngineState:
        """How it stands, and its worker; now: the worker's clock."""
        return self._meter.state(worker, now, alive=self._engine.alive)

    def load(self, model: str) -> None:
        """See Engine."""
        self._engine.load(model)

    def unload(self, model: str) -> None:
        """See Engine."""
        self._engine.unload(model)

    def insert(self, command: Insert) -> None:
        """See Engine."""
        self._meter.inserted += 1
        failure = self._spoiler.failure(command) if self._present().fail_share else None
        if failure is None:
            self._engine.insert(command)
        else:
            self._meter.passed(failure, failure)
            self._emit(failure)

    def remove(self, sequence: int) -> None:
        """See Engine."""
        self._engine.remove(sequence)

    def drop_cache(self, cache: int) -> None:
        """See Engine."""
        self._engine.drop_cache(cache)

    def probe(self) -> None:
        """See Engine."""
        self._engine.probe()

    def memory(self) -> dict[str, int]:
        """See Engine."""
        return self._engine.memory()

    def close(self, timeout_s: float) -> bool:
        """See Engine."""
        self._closing.set()
        self._relief.set()
        return self._engine.close(timeout_s)

    def _present(self) -> Impairment:
        return self._impairment if time.monotonic() < self._until_s else _HEALTHY

    def _between_steps(self, step_s: float) -> None:
        """On the engine's thread."""
        while (present := self._present()).dies == "silent" and not self._closing.is_set():
            self._closing.wait(max(0.0, self._until_s - time.monotonic()))
        if present.dies == "loud":
            raise EngineKilled("its thread was ended by a fault")
        self._rest(present, step_s)

    def _load_batch(
        self, name: str, limits: "Limits", clock: Callable[[], float], wanted: Callable[[], bool]
    ) -> "Batch":
        """On the engine's thread, in place of cluster.engine.batch.load."""
        from cluster.engine import batch

        if self._present().loads_fail:
            raise LoadFailed("loads were made to fail by a fault")
        began_s = time.monotonic()
        loaded = batch.load(name, limits, clock, wanted)
        self._rest(self._present(), time.monotonic() - began_s)
        return loaded

    def _rest(self, present: Impairment, took_s: float) -> None:
        if present.slowdown > 1 and took_s > 0:
            self._relief.wait((present.slowdown - 1) * took_s)

    def _pass_on(self, event: Event) -> None:
        """On the engine's thread."""
        told = self._spoiler.spoil(event) if self._present().wrong_token_share else event
        self._meter.passed(event, told)
        self._emit(told)
