"""EngineMeter: what an engine makes and what its node is told of it, measured on the way between the two."""

from collections import deque
from operator import sub

import msgspec

from cluster.node import EngineReport, Event, ModelFailed
from cluster.worker.worker import WorkerNode

_GAPS_MAX = 64


class EngineState(msgspec.Struct, frozen=True):
    """How a worker's engine stands, as others than the engine can tell.

    alive: its thread. silent_s: for how long it has owed its worker an answer. reported: decode steps it has told of.
    tokens: that its worker was told, of which `tokens_changed` are not those that the engine had made. gaps: how many
    times a stream got its next token; gaps_s: the last of these waits, seconds. inserted: sequences given to it, of
    which `insertions_failed` ended with an error. loads_failed: how many loads have failed.
    models: state by name. memory_*: of the worker's ledger, bytes; None: no limit. weights_bytes: of them, its models.
    pressure: see Heartbeat.
    """

    alive: bool
    silent_s: float
    reported: int
    tokens: int
    tokens_changed: int
    gaps: int
    gaps_s: tuple[float, ...]
    inserted: int
    insertions_failed: int
    loads_failed: int
    models: dict[str, str]
    weights_bytes: int
    memory_bytes: int
    memory_bytes_max: int | None
    pressure: int


class EngineMeter:
    """Counts. None of the counters ever falls."""

    def __init__(self) -> None:
        self.reported = 0
        self.tokens = 0
        self.tokens_changed = 0
        self.gaps = 0
        self.gaps_s: deque[float] = deque(maxlen=_GAPS_MAX)
        self.inserted = 0
        self.insertions_failed = 0
        self.loads_failed = 0
        # Only of the streams in the last report: whoever runs is in every one.
        self._last_s: dict[int, float] = {}

    def passed(self, made: Event, told: Event) -> None:
        """The engine has said `made`, and its worker hears `told`."""
        if isinstance(told, ModelFailed):
            self.loads_failed += 1
        if not isinstance(made, EngineReport) or not isinstance(told, EngineReport):
            return
        self.reported += told.steps
        self.insertions_failed += sum(part.finish == "error" for part in told.progress)
        last_s: dict[int, float] = {}
        for before, after in zip(made.progress, told.progress, strict=True):
            self.tokens += len(after.tokens)
            if after.tokens != before.tokens:
                self.tokens_changed += sum(
                    token != other for token, other in zip(before.tokens, after.tokens, strict=True)
                )
            time_s = self._last_s.get(after.sequence)
            times_s = after.times_s if time_s is None else (time_s, *after.times_s)
            self.gaps += max(0, len(times_s) - 1)
            self.gaps_s.extend(map(sub, times_s[1:], times_s))
            if times_s and after.finish is None:
                last_s[after.sequence] = times_s[-1]
        self._last_s = last_s

    def state(self, worker: WorkerNode, now: float, *, alive: bool) -> EngineState:
        """How the engine stands, and its worker; now: the worker's clock."""
        gauges, (weights_bytes, pressure) = worker.gauges(), worker.memory()
        return EngineState(
            alive=alive,
            silent_s=worker.engine_silent_s(now),
            reported=self.reported,
            tokens=self.tokens,
            tokens_changed=self.tokens_changed,
            gaps=self.gaps,
            gaps_s=tuple(self.gaps_s),
            inserted=self.inserted,
            insertions_failed=self.insertions_failed,
            loads_failed=self.loads_failed,
            models=worker.models(),
            weights_bytes=weights_bytes,
            memory_bytes=gauges.memory_bytes,
            memory_bytes_max=None if gauges.memory_bytes_max < 0 else gauges.memory_bytes_max,
            pressure=pressure,
        )
