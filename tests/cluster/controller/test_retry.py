"""Retries: only for codes that allow them, with full jitter, within the deadline, and paid from a budget."""

from fractions import Fraction
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from cluster.controller.retry import RetryHandler
from cluster.errors import TRAITS, Code
from cluster.policy import RetryPolicy
from tests.cluster import QUICK, WALK

LATE = 1e9


def handler(seed: int = 0, **fields: float) -> RetryHandler:
    return RetryHandler(RetryPolicy(**fields), Random(seed))  # type: ignore[arg-type]


@pytest.mark.parametrize("code", list(Code))
def test_a_code_is_retried_exactly_if_its_traits_say_so(code: Code) -> None:
    planned = handler().plan(code, 1, 0.0, LATE)
    assert (planned is not None) == TRAITS[code].retryable


@QUICK
@given(st.integers(0, 1_000), st.integers(1, 5), st.floats(0, 100))
def test_the_wait_has_full_jitter_below_a_doubling_and_limited_ceiling(seed: int, made: int, now: float) -> None:
    retries = handler(seed, max_attempts=6, backoff_s=0.1, backoff_max_s=0.5)
    planned = retries.plan(Code.STREAM_STALLED, made, now, LATE)
    assert planned is not None
    assert now <= planned <= now + min(0.5, 0.1 * 2 ** (made - 1)) + 1e-9


def test_waits_are_spread_over_the_whole_range() -> None:
    retries = handler(max_attempts=2, backoff_s=0.8, budget_burst=1_000)
    waits = [retries.plan(Code.STREAM_STALLED, 1, 0.0, LATE) or 0.0 for _ in range(400)]
    assert min(waits) < 0.05
    assert max(waits) > 0.75
    assert sum(waits) / len(waits) == pytest.approx(0.4, abs=0.05)


@QUICK
@given(st.integers(1, 7), st.floats(0, 100))
def test_without_jitter_a_retry_waits_the_whole_ceiling(made: int, now: float) -> None:
    retries = handler(max_attempts=9, backoff_s=0.1, backoff_max_s=0.5, jitter=False)
    planned = retries.plan(Code.STREAM_STALLED, made, now, LATE)
    assert planned == now + [0.1, 0.2, 0.4, 0.5, 0.5, 0.5, 0.5][made - 1]


def test_the_attempts_are_limited() -> None:
    retries = handler(max_attempts=3)
    assert retries.plan(Code.WORKER_LOST, 2, 0.0, LATE) is not None
    assert retries.plan(Code.WORKER_LOST, 3, 0.0, LATE) is None


def test_no_retry_is_planned_at_or_past_the_deadline_and_a_refused_one_costs_nothing() -> None:
    retries = handler(budget_burst=1, budget_share=0.0)
    for _ in range(100):
        assert retries.plan(Code.WORKER_LOST, 1, 5.0, 5.0) is None
    assert retries.plan(Code.WORKER_LOST, 1, 0.0, 5.0) is not None
    assert retries.plan(Code.WORKER_LOST, 1, 0.0, 5.0) is None


class BudgetWalk(RuleBasedStateMachine):
    """Against a ledger in exact fractions: every new request pays a share in, every granted retry takes one out."""

    @initialize(burst=st.integers(1, 6), share=st.sampled_from([0.0, 0.125, 0.5, 1.0]), jitter=st.booleans())
    def start(self, burst: int, share: float, jitter: bool) -> None:
        self.retries = handler(max_attempts=3, budget_burst=burst, budget_share=share, jitter=jitter)
        self.burst, self.share = burst, Fraction(share)
        self.purse = Fraction(burst)
        self.requests = self.granted = 0

    @rule(count=st.integers(1, 20))
    def requests_arrive(self, count: int) -> None:
        for _ in range(count):
            self.retries.request_arrived()
            self.purse = min(Fraction(self.burst), self.purse + self.share)
        self.requests += count

    @rule(code=st.sampled_from([Code.WORKER_LOST, Code.QUEUE_FULL]), made=st.integers(1, 2))
    def an_attempt_fails(self, code: Code, made: int) -> None:
        planned = self.retries.plan(code, made, 5.0, LATE)
        assert (planned is not None) == (self.purse >= 1)
        if planned is not None:
            self.purse -= 1
            self.granted += 1

    @rule(
        asked=st.sampled_from(
            [
                (Code.CANCELLED, 1, LATE),
                (Code.MODEL_NOT_FOUND, 1, LATE),
                (Code.WORKER_LOST, 3, LATE),
                (Code.WORKER_LOST, 1, 5.0),
            ]
        )
    )
    def a_retry_is_refused_for_another_reason(self, asked: tuple[Code, int, float]) -> None:
        code, made, deadline_s = asked
        assert self.retries.plan(code, made, 5.0, deadline_s) is None

    @invariant()
    def retries_stay_within_what_was_paid(self) -> None:
        assert self.retries.retries == self.granted
        assert self.granted <= self.burst + self.share * self.requests


TestBudgetWalk = BudgetWalk.TestCase
TestBudgetWalk.settings = WALK


def test_the_budget_does_not_grow_beyond_its_burst_in_quiet_times() -> None:
    retries = handler(budget_burst=3, budget_share=1.0)
    for _ in range(1_000):
        retries.request_arrived()
    granted = [retries.plan(Code.WORKER_LOST, 1, 0.0, LATE) is not None for _ in range(10)]
    assert granted == [True] * 3 + [False] * 7
