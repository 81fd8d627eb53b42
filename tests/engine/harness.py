"""A real engine under test: what it is told, and all that it has emitted."""

import itertools
import random
import threading
from collections.abc import Callable
from typing import Any

from cluster.node import EngineReport, Event, Insert, ModelLoaded, SequenceProgress
from cluster.protocol import Token

WAIT_S = 180.0
"""A real model on a busy machine, without the BLAS that workers have, takes its time."""
MODEL = "tiny"


def prompts(count: int, seed: int = 11) -> list[list[Token]]:
    source = random.Random(seed)
    return [[source.randrange(507) for _ in range(source.randrange(1, 48))] for _ in range(count)]


class Bench:
    """An engine with MODEL loaded, and all that it has emitted."""

    def __init__(
        self,
        *,
        batch_max: int = 8,
        prefill_step: int = 2048,
        flush_s: float = 0.02,
        clock: Callable[[], float],
        model: str = MODEL,
    ) -> None:
        from cluster.engine.mlx import MlxEngine

        self.events: list[Event] = []
        self._news = threading.Condition()
        self._open = threading.Event()
        self._open.set()
        self._numbers = itertools.count(1)
        self.engine = MlxEngine(
            self._take, clock, batch_max=batch_max, prefill_batch_max=8, prefill_step=prefill_step, flush_s=flush_s
        )
        self.engine.load(model)
        self.wait(lambda: len(self.events) == 1)

    def _take(self, event: Event) -> None:
        with self._news:
            self.events.append(event)
            self._news.notify_all()
        self._open.wait(WAIT_S)

    def wait(self, condition: Callable[[], bool]) -> None:
        with self._news:
            assert self._news.wait_for(condition, WAIT_S), self.events[-3:]

    def hold(self) -> None:
        """Stop the engine's thread between two steps, so that what is inserted now is applied together."""
        self._open.clear()
        before = len(self.events)
        self.engine.load(MODEL)
        self.wait(lambda: len(self.events) > before and isinstance(self.events[-1], ModelLoaded))

    def release(self) -> None:
        self._open.set()

    def insert(self, prompt: list[Token], max_tokens: int, model: str = MODEL, **more: Any) -> int:
        number = next(self._numbers)
        self.engine.insert(Insert(number, model, tuple(prompt), max_tokens, **more))
        return number

    def reports(self) -> list[EngineReport]:
        return [event for event in self.events if isinstance(event, EngineReport)]

    def progress(self, number: int) -> list[SequenceProgress]:
        return [each for report in self.reports() for each in report.progress if each.sequence == number]

    def finish(self, *numbers: int) -> None:
        self.wait(lambda: all(any(each.finish for each in self.progress(number)) for number in numbers))

    def tokens(self, number: int) -> list[Token]:
        return [token for each in self.progress(number) for token in each.tokens]

    def complete(self, *jobs: tuple[list[Token], int], model: str = MODEL) -> list[list[Token]]:
        numbers = [self.insert(prompt, max_tokens, model) for prompt, max_tokens in jobs]
        self.finish(*numbers)
        return [self.tokens(number) for number in numbers]


Start = Callable[..., Bench]


class StepClock:
    """Goes on by `step_s` with each reading."""

    def __init__(self, step_s: float) -> None:
        self.step_s = step_s
        self.readings = 0

    def __call__(self) -> float:
        self.readings += 1
        return self.readings * self.step_s
