"""The breaker opens after failures in a row, lets one probe through at a time, and closes when a probe completes."""

from hypothesis import given
from hypothesis import strategies as st

from cluster.controller.breaker import BreakerState, CircuitBreaker
from cluster.policy import BreakerPolicy
from cluster.protocol import AttemptId
from tests.cluster import QUICK

POLICY = BreakerPolicy(failures_to_open=3, open_s=1.0, open_max_s=4.0)


def attempt(number: int) -> AttemptId:
    return AttemptId(f"r{number}", 1, 1)


def opened(now: float = 0.0) -> CircuitBreaker:
    breaker = CircuitBreaker(POLICY)
    for number in range(3):
        breaker.failed(attempt(number), now)
    assert breaker.state is BreakerState.OPEN
    return breaker


def test_it_opens_after_failures_in_a_row_and_a_success_between_them_starts_the_count_anew() -> None:
    breaker = CircuitBreaker(POLICY)
    for number in range(8):
        assert breaker.failed(attempt(number), 0.0) is None
        assert breaker.failed(attempt(number), 0.0) is None
        breaker.succeeded(attempt(number))
    assert breaker.allows()
    assert [breaker.failed(attempt(number), 0.0) for number in range(3)] == [None, None, BreakerState.OPEN]
    assert not breaker.allows()
    assert breaker.trips == 1


def test_it_stays_open_until_its_time_is_over() -> None:
    breaker = opened()
    assert breaker.ripen(0.999) is None
    assert not breaker.allows()
    assert breaker.ripen(1.0) is BreakerState.HALF_OPEN
    assert breaker.ripen(1.5) is None


def test_only_one_probe_passes_and_its_success_closes() -> None:
    breaker = opened()
    breaker.ripen(1.0)
    assert breaker.allows()
    breaker.dispatched(attempt(7))
    assert not breaker.allows()
    assert breaker.succeeded(attempt(1)) is None, "a stream from before the trip says nothing about now"
    assert breaker.failed(attempt(1), 1.1) is None
    assert breaker.succeeded(attempt(7)) is BreakerState.CLOSED
    assert breaker.allows()


def test_failed_probes_double_the_open_time_up_to_its_limit_and_closing_resets_it() -> None:
    breaker, now = opened(), 0.0
    for open_s in (1.0, 2.0, 4.0, 4.0):
        assert breaker.ripen(now + open_s - 0.01) is None
        now += open_s
        assert breaker.ripen(now) is BreakerState.HALF_OPEN
        breaker.dispatched(attempt(9))
        assert breaker.failed(attempt(9), now) is BreakerState.OPEN
    now += 4.0
    breaker.ripen(now)
    breaker.dispatched(attempt(9))
    assert breaker.succeeded(attempt(9)) is BreakerState.CLOSED
    for number in range(3):
        breaker.failed(attempt(number), now)
    assert breaker.ripen(now + 1.0) is BreakerState.HALF_OPEN


def test_a_withdrawn_probe_makes_room_for_another_and_a_withdrawn_bystander_does_not() -> None:
    breaker = opened()
    breaker.ripen(1.0)
    breaker.dispatched(attempt(7))
    breaker.withdrawn(attempt(1))
    assert not breaker.allows()
    breaker.withdrawn(attempt(7))
    assert breaker.allows()


def test_a_pardon_forgets_failures_and_closes() -> None:
    breaker = CircuitBreaker(POLICY)
    breaker.failed(attempt(1), 0.0)
    breaker.failed(attempt(2), 0.0)
    assert breaker.pardon() is None
    assert breaker.failed(attempt(3), 0.0) is None
    assert opened().pardon() is BreakerState.CLOSED


def test_a_disabled_breaker_never_opens() -> None:
    breaker = CircuitBreaker(BreakerPolicy(enabled=False))
    for number in range(50):
        assert breaker.failed(attempt(number), float(number)) is None
    assert breaker.allows()


ACTS = st.tuples(st.sampled_from(["ask", "succeed", "fail", "withdraw", "wait"]), st.integers(0, 5))


@QUICK
@given(st.lists(ACTS, max_size=80))
def test_a_half_open_breaker_has_at_most_one_probe_under_way_whatever_happens(acts: list[tuple[str, int]]) -> None:
    breaker, now, number = CircuitBreaker(POLICY), 0.0, 0
    under_way: list[AttemptId] = []
    probes: set[AttemptId] = set()
    for what, which in acts:
        if what == "wait":
            now += which * 0.5
            if breaker.ripen(now) is BreakerState.HALF_OPEN:
                probes.clear()
        elif what == "ask" and breaker.allows():
            number += 1
            under_way.append(attempt(number))
            breaker.dispatched(attempt(number))
            if breaker.state is BreakerState.HALF_OPEN:
                probes.add(attempt(number))
        elif what != "ask" and under_way:
            ended = under_way.pop(which % len(under_way))
            probes.discard(ended)
            if what == "succeed":
                breaker.succeeded(ended)
            elif what == "fail":
                breaker.failed(ended, now)
            else:
                breaker.withdrawn(ended)
        assert breaker.state is not BreakerState.HALF_OPEN or len(probes) <= 1
