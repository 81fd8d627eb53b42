"""ImpairedEngine: a timed engine that can be hurt from outside, and measured, as the real one can."""

from collections.abc import Callable
from typing import Protocol

from cluster.engine.impairment import Impairment, Spoiler
from cluster.engine.meter import EngineMeter, EngineState
from cluster.engine.timed import TimedEngine
from cluster.node import Event, Insert
from cluster.worker.worker import WorkerNode

_HEALTHY = Impairment()


class Alarms(Protocol):
    """A clock that can be asked to call; cluster.simulation.kernel.Kernel is one."""

    @property
    def now(self) -> float:
        """Seconds."""

    def at(self, time_s: float, callback: Callable[[], None]) -> None:
        """Call at a time."""


class ImpairedEngine:
    """See TimedEngine. One that has died stays dead, as long as its process lives."""

    def __init__(self, kernel: Alarms, engine: TimedEngine) -> None:
        self._kernel = kernel
        self._engine = engine
        self._meter = EngineMeter()
        self._impairment = _HEALTHY
        self._spoiler = Spoiler(_HEALTHY)
        self._until_s = 0.0
        self._last_words: list[Event] = []
        self._said_s = 0.0
        self._alive = True

    def impair(self, impairment: Impairment, ttl_s: float) -> None:
        """Hurt it in this way, instead of any other, for `ttl_s` seconds."""
        self._impairment = impairment
        self._spoiler = Spoiler(impairment)
        self._until_s = until_s = self._kernel.now + ttl_s
        self._engine.slowdown = impairment.slowdown
        if impairment.dies is not None:
            died = self._engine.die("EngineKilled: its thread was ended by a fault")
            if impairment.dies == "loud":
                # A thread that is stuck is still there.
                self._alive = False
                self._last_words.append(died)
        self._kernel.at(until_s, lambda: self._expire(until_s))

    def restore(self) -> None:
        """Hurt it no longer."""
        self._impairment = _HEALTHY
        self._spoiler = Spoiler(_HEALTHY)
        self._engine.slowdown = 1.0

    def succeed(self, former: "ImpairedEngine") -> None:
        """Be hurt as the engine of an earlier process of this node is."""
        if former._impairment is not _HEALTHY:
            self.impair(former._impairment, former._until_s - self._kernel.now)

    def state(self, worker: WorkerNode, now: float) -> EngineState:
        """How it stands, and its worker; now: the worker's clock."""
        return self._meter.state(worker, now, alive=self._alive)

    def insert(self, command: Insert, now: float) -> None:
        """See TimedEngine."""
        self._meter.inserted += 1
        failure = self._spoiler.failure(command) if self._impairment.fail_share else None
        if failure is None:
            self._engine.insert(command, now)
        else:
            self._last_words.append(failure)
            self._said_s = now

    def remove(self, sequence: int, now: float) -> None:
        """See TimedEngine."""
        self._engine.remove(sequence, now)

    def drop_cache(self, cache: int, now: float) -> None:
        """See TimedEngine."""
        self._engine.drop_cache(cache, now)

    def load(self, model: str, now: float) -> None:
        """See TimedEngine."""
        self._engine.broken.pop(model, None)
        if self._impairment.loads_fail:
            self._engine.broken[model] = "LoadFailed: loads were made to fail by a fault"
        self._engine.load(model, now)

    def unload(self, model: str, now: float) -> None:
        """See TimedEngine."""
        self._engine.unload(model, now)

    def probe(self, now: float) -> None:
        """See TimedEngine."""
        self._engine.probe(now)

    @property
    def computes(self) -> bool:
        """See TimedEngine."""
        return self._engine.computes

    def repace(self, now: float) -> None:
        """See TimedEngine."""
        self._engine.repace(now)

    def next_time(self) -> float | None:
        """See TimedEngine."""
        due_s = self._engine.next_time()
        if not self._last_words:
            return due_s
        return self._said_s if due_s is None else min(due_s, self._said_s)

    def advance(self, now: float) -> list[Event]:
        """See TimedEngine."""
        said, self._last_words = self._last_words, []
        events, due_s = [], self._engine.next_time()
        for made in [*said, *(self._engine.advance(now) if due_s is not None and due_s <= now else [])]:
            told = self._spoiler.spoil(made)
            self._meter.passed(made, told)
            events.append(told)
        return events

    def _expire(self, until_s: float) -> None:
        if until_s == self._until_s:
            self.restore()
