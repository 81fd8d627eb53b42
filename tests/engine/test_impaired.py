"""The real engine hurt from outside: each impairment does what it says, and ends when it should."""

import threading
import time
from collections.abc import Callable, Iterator
from statistics import median

import pytest

from cluster.engine.impairment import Impairment
from cluster.engine.meter import EngineState
from cluster.live.impaired import ImpairedEngine
from cluster.node import EngineAnswered, EngineDied, EngineReport, Event, Insert, ModelFailed, ModelLoaded
from cluster.policy import Policy
from cluster.worker.worker import WorkerNode

WAIT_S = 60.0


class Patient:
    """An engine with a model, and what its worker has been told."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._news = threading.Condition()
        self.engine = ImpairedEngine(Policy(), self._take, time.monotonic)
        self._worker = WorkerNode("w", 1, Policy(), ())
        self._sequence = 0

    def _take(self, event: Event) -> None:
        with self._news:
            self.events.append(event)
            self._news.notify_all()

    def wait(self, condition: Callable[[], bool], limit_s: float = WAIT_S) -> bool:
        with self._news:
            return self._news.wait_for(condition, limit_s)

    def count(self, kind: type[Event]) -> int:
        return sum(isinstance(event, kind) for event in self.events)

    def heard(self, kind: type[Event], count: int = 1) -> None:
        assert self.wait(lambda: self.count(kind) >= count), self.events[-3:]

    def begin(self, tokens: int) -> int:
        self._sequence += 1
        self.engine.insert(Insert(self._sequence, "tiny", (1, 2, 3), tokens))
        return self._sequence

    def ended(self, sequence: int) -> list[int]:
        """All of its tokens, once it has ended."""

        def parts() -> list[tuple[tuple[int, ...], str | None]]:
            reports = [event for event in self.events if isinstance(event, EngineReport)]
            return [
                (part.tokens, part.finish) for event in reports for part in event.progress if part.sequence == sequence
            ]

        assert self.wait(lambda: any(finish for _, finish in parts()))
        return [token for tokens, _ in parts() for token in tokens]

    def state(self) -> EngineState:
        return self.engine.state(self._worker, time.monotonic())


@pytest.fixture
def patient() -> Iterator[Patient]:
    made = Patient()
    made.engine.load("tiny")
    made.heard(ModelLoaded)
    yield made
    assert made.engine.close(WAIT_S)


def test_a_slow_one_makes_the_same_tokens_later_and_is_quick_again_when_restored(patient: Patient) -> None:
    usual = patient.ended(patient.begin(40))
    before = median(patient.state().gaps_s)
    patient.engine.impair(Impairment(slowdown=8), WAIT_S)
    assert patient.ended(patient.begin(40)) == usual
    slow = median(patient.state().gaps_s[-30:])
    patient.engine.restore()
    assert patient.ended(patient.begin(40)) == usual
    after = median(patient.state().gaps_s[-30:])
    # Ratios of one run, with room for a busy host.
    assert slow > 3 * before
    assert after < slow / 2


def test_one_that_dies_silently_says_nothing_although_its_thread_is_there_until_its_time_is_up(
    patient: Patient,
) -> None:
    patient.engine.impair(Impairment(dies="silent"), 1.5)
    answers, reports = patient.count(EngineAnswered), patient.count(EngineReport)
    sequence = patient.begin(5)
    patient.engine.restore()
    assert not patient.wait(lambda: patient.count(EngineReport) > reports, 0.7), "no restoring brings it back"
    assert patient.count(EngineAnswered) == answers
    assert patient.state().alive
    assert len(patient.ended(sequence)) == 5


def test_one_that_dies_silently_can_be_closed(patient: Patient) -> None:
    patient.engine.impair(Impairment(dies="silent"), WAIT_S)
    assert patient.engine.close(WAIT_S)


def test_one_that_dies_loudly_says_so_even_when_it_was_idle(patient: Patient) -> None:
    patient.engine.impair(Impairment(dies="loud"), WAIT_S)
    patient.heard(EngineDied)
    end_s = time.monotonic() + WAIT_S
    while patient.state().alive and time.monotonic() < end_s:
        time.sleep(0.01)
    assert not patient.state().alive


def test_loads_fail_with_the_engines_own_word_and_succeed_when_restored(patient: Patient) -> None:
    patient.engine.unload("tiny")
    patient.engine.impair(Impairment(loads_fail=True), WAIT_S)
    patient.engine.load("tiny")
    patient.heard(ModelFailed)
    assert patient.state().loads_failed == 1
    patient.engine.restore()
    patient.engine.load("tiny")
    patient.heard(ModelLoaded, 2)


def test_wrong_tokens_are_counted_by_comparison_and_end_with_their_time(patient: Patient) -> None:
    usual = patient.ended(patient.begin(60))
    patient.engine.impair(Impairment(wrong_token_share=0.5, seed=1), WAIT_S)
    spoiled = patient.ended(patient.begin(60))
    wrong = sum(one != other for one, other in zip(spoiled, usual, strict=True))
    assert 10 < wrong < 50
    assert patient.state().tokens_changed == wrong
    patient.engine.impair(Impairment(wrong_token_share=0.5), 0.0)
    assert patient.ended(patient.begin(60)) == usual
