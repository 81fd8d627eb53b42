"""The timed engine in real time: the modelled tokens, never before their time, and none made while it stood still."""

import asyncio
import time
from collections.abc import Callable
from itertools import pairwise

from cluster.engine.impairment import Impairment
from cluster.engine.timed import StepCosts, completion
from cluster.live.paced import PacedEngine
from cluster.node import EngineAnswered, EngineDied, EngineReport, Event, Insert, ModelLoaded, SequenceProgress
from cluster.policy import Policy

COSTS = StepCosts(load_s=0.02, step_s=0.004, decode_each_s=0.001, prefill_each_s=0.0001)
PROMPT = (1, 2, 3, 4)
WAIT_S = 30.0


class Told:
    """A loaded engine, and what its worker hears with the time of each."""

    def __init__(self) -> None:
        self.events: list[tuple[float, Event]] = []
        self._news = asyncio.Event()
        self.engine = PacedEngine(COSTS, Policy(), self._hear, time.monotonic)

    def _hear(self, event: Event) -> None:
        self.events.append((time.monotonic(), event))
        self._news.set()

    async def wait(self, kind: type[Event]) -> None:
        await self._until(lambda: any(isinstance(event, kind) for _, event in self.events))

    async def finished(self) -> None:
        await self._until(lambda: any(part.finish for _, part in self.parts()))

    async def _until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(WAIT_S):
            while not condition():
                self._news.clear()
                await self._news.wait()

    def parts(self) -> list[tuple[float, SequenceProgress]]:
        return [(heard_s, part) for heard_s, event in self.events if isinstance(event, EngineReport)
                for part in event.progress]  # fmt: skip

    def times_s(self) -> list[float]:
        return [time_s for _, part in self.parts() for time_s in part.times_s]


def stand_still(seconds: float) -> None:
    """The whole process, its loop with it."""
    time.sleep(seconds)


def test_tokens_are_those_of_the_model_and_never_early() -> None:
    async def run() -> None:
        told = Told()
        began_s = time.monotonic()
        told.engine.load("m")
        await told.wait(ModelLoaded)
        assert time.monotonic() - began_s >= COSTS.load_s
        inserted_s = time.monotonic()
        told.engine.insert(Insert(1, "m", PROMPT, 20))
        await told.finished()
        tokens = [token for _, part in told.parts() for token in part.tokens]
        assert tokens == completion(PROMPT, 20, COSTS.vocabulary)
        assert all(time_s <= heard_s for heard_s, part in told.parts() for time_s in part.times_s)
        assert told.times_s()[-1] - inserted_s >= 20 * (COSTS.step_s + COSTS.decode_each_s)
        assert told.engine.memory() == {}
        told.engine.close(1.0)

    asyncio.run(run())


def test_nothing_is_made_while_the_process_stands_still() -> None:
    async def run() -> None:
        told = Told()
        told.engine.load("m")
        await told.wait(ModelLoaded)
        told.engine.insert(Insert(1, "m", PROMPT, 60))
        await told.wait(EngineReport)
        stand_still(1.0)
        await told.finished()
        gaps_s = [after_s - before_s for before_s, after_s in pairwise(told.times_s())]
        assert len(gaps_s) == 59
        assert min(gaps_s) > 0
        # What was on its way to the next report, a tenth of a second, is done; then it stood still.
        assert max(gaps_s) > 0.5
        told.engine.close(1.0)

    asyncio.run(run())


def test_it_answers_a_probe_and_can_be_killed() -> None:
    async def run() -> None:
        told = Told()
        told.engine.probe()
        await told.wait(EngineAnswered)
        told.engine.impair(Impairment(dies="loud"), 5.0)
        await told.wait(EngineDied)
        told.engine.close(1.0)
        told.engine.probe()
        await asyncio.sleep(0.05)
        assert sum(isinstance(event, EngineAnswered) for _, event in told.events) == 1

    asyncio.run(run())
