"""Engines that end with their test."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.engine.harness import WAIT_S, Bench, Start, StepClock


@pytest.fixture
def start() -> Iterator[Start]:
    benches: list[Bench] = []

    def make(*, step_s: float = 0.001, **options: Any) -> Bench:
        benches.append(Bench(clock=options.pop("clock", StepClock(step_s)), **options))
        return benches[-1]

    yield make
    for bench in benches:
        bench.release()
        assert bench.engine.close(WAIT_S)
