"""What kept caches and a loaded model save until the first token, each as a ratio measured in one go."""

import random
import statistics
import threading
import time

from cluster.engine.bench import Gain
from cluster.engine.mlx import MlxEngine
from cluster.node import EngineDied, EngineReport, Event, Insert, ModelFailed, ModelLoaded
from cluster.protocol import Token

PREFIX_TOKENS = (64, 256, 1024)
REST_TOKENS = 16
_NEW_TOKENS = 4
_FLUSH_S = 0.05


def gains(model: str = "tiny", rounds: int = 5) -> list[Gain]:
    """Cached over uncached prompts of each length, then a loaded model over one that has to be loaded first.

    Both sides of each in turn, `rounds` times after one to warm up. Raises RuntimeError when the model does not load.
    """
    bench = _Bench(model)
    try:
        found = [bench.cached(length, rounds) for length in PREFIX_TOKENS]
        return [*found, bench.warm(rounds)]
    finally:
        bench.close()


class _Bench:
    def __init__(self, model: str) -> None:
        self._model = model
        self._news = threading.Condition()
        self._events: list[Event] = []
        self._number = 0
        self._random = random.Random(1)
        self._engine = MlxEngine(
            self._take, time.perf_counter, batch_max=8, prefill_batch_max=8, prefill_step=512, flush_s=_FLUSH_S
        )
        self._load()

    def cached(self, prefix_tokens: int, rounds: int) -> Gain:
        """A prompt whose beginning is kept, and one of the same length that is new."""
        prefix = self._text(prefix_tokens)
        cache = self._serve(prefix + self._text(1), keep=True)[1]
        times = []
        for _ in range(rounds + 1):
            without_s = self._serve(self._text(prefix_tokens + REST_TOKENS))[0]
            with_s = self._serve(prefix + self._text(REST_TOKENS), cache=cache, cached_tokens=prefix_tokens)[0]
            times.append((without_s, with_s))
        self._engine.drop_cache(cache)
        return _gain(f"TTFT with {prefix_tokens} cached and {REST_TOKENS} new tokens", times[1:])

    def warm(self, rounds: int) -> Gain:
        """A request that finds its model in memory, and one that comes when the model must be loaded first."""
        times = []
        for _ in range(rounds + 1):
            self._engine.unload(self._model)
            began_s = time.perf_counter()
            self._load()
            self._serve(self._text(REST_TOKENS))
            cold_s = self._first_s - began_s
            times.append((cold_s, self._serve(self._text(REST_TOKENS))[0]))
        return _gain("TTFT with the model in memory", times[1:])

    def close(self) -> None:
        self._engine.close(10)

    def _text(self, length: int) -> tuple[Token, ...]:
        return tuple(self._random.randrange(1, 500) for _ in range(length))

    def _load(self) -> None:
        self._events.clear()
        self._engine.load(self._model)
        with self._news:
            self._news.wait_for(lambda: bool(self._events))
        if not isinstance(self._events[0], ModelLoaded):
            raise RuntimeError(f"the engine cannot load {self._model}: {self._events[0]}")

    def _serve(
        self, prompt: tuple[Token, ...], cache: int | None = None, cached_tokens: int = 0, keep: bool = False
    ) -> tuple[float, int]:
        """The time to the first token, and the number of the sequence."""
        self._number += 1
        self._events.clear()
        self._first_s = 0.0
        command = Insert(
            self._number,
            self._model,
            prompt,
            _NEW_TOKENS,
            cache=cache,
            cached_tokens=cached_tokens,
            keep_as=self._number if keep else None,
        )
        began_s = time.perf_counter()
        self._engine.insert(command)
        with self._news:
            self._news.wait_for(self._ended)
        return self._first_s - began_s, self._number

    def _ended(self) -> bool:
        reports = [event for event in self._events if isinstance(event, EngineReport)]
        return any(part.finish is not None for report in reports for part in report.progress)

    def _take(self, event: Event) -> None:
        now = time.perf_counter()
        with self._news:
            if isinstance(event, EngineReport) and not self._first_s:
                self._first_s = now
            if isinstance(event, EngineReport | ModelLoaded | ModelFailed | EngineDied):
                self._events.append(event)
            self._news.notify()


def _gain(what: str, times_s: list[tuple[float, float]]) -> Gain:
    without_s = statistics.median(without for without, _ in times_s)
    with_s = statistics.median(with_ for _, with_ in times_s)
    return Gain(what, without_s, with_s, with_s / without_s)
