"""Retries: only for codes that allow them, with full jitter, within the deadline, and paid from a budget."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.controller.retry import RetryHandler
from cluster.errors import TRAITS, Code
from cluster.policy import RetryPolicy
from tests.cluster import QUICK

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


@QUICK
@given(st.lists(st.booleans(), max_size=300), st.integers(1, 10), st.sampled_from([0.0, 0.1, 0.5, 1.0]))
def test_granted_retries_never_exceed_the_budget(arrivals: list[bool], burst: int, share: float) -> None:
    """True: a request arrives. False: an attempt has failed and asks for a retry."""
    retries = handler(max_attempts=9, budget_burst=burst, budget_share=share)
    requests = granted = 0
    for arrived in arrivals:
        if arrived:
            requests += 1
            retries.request_arrived()
        elif retries.plan(Code.FIRST_TOKEN_TIMEOUT, 1, 0.0, LATE) is not None:
            granted += 1
        assert granted <= burst + share * requests + 1e-6


def test_the_budget_does_not_grow_beyond_its_burst_in_quiet_times() -> None:
    retries = handler(budget_burst=3, budget_share=1.0)
    for _ in range(1_000):
        retries.request_arrived()
    granted = [retries.plan(Code.WORKER_LOST, 1, 0.0, LATE) is not None for _ in range(10)]
    assert granted == [True] * 3 + [False] * 7
