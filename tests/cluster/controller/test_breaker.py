"""The breaker opens after failures in a row, lets one probe through at a time, and closes when enough completed."""

from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from cluster.controller.breaker import BreakerState, CircuitBreaker
from cluster.errors import TRAITS, Code
from cluster.policy import BreakerPolicy
from cluster.protocol import AttemptId
from tests.cluster import WALK

POLICY = BreakerPolicy(failures_to_open=3, open_s=1.0, open_max_s=4.0)
PATIENT = BreakerPolicy(failures_to_open=3, successes_to_close=2, open_s=1.0, open_max_s=4.0)
BY_DISPATCH = BreakerPolicy(judged_by="dispatch", failures_to_open=3, successes_to_close=2, open_s=1.0, open_max_s=4.0)


def attempt(number: int) -> AttemptId:
    return AttemptId(f"r{number}", 1, 1)


def opened(policy: BreakerPolicy = POLICY) -> CircuitBreaker:
    breaker = CircuitBreaker(policy)
    for number in range(3):
        breaker.failed(attempt(number), Code.WORKER_UNREACHABLE, 0.0)
    assert breaker.state is BreakerState.OPEN
    return breaker


def test_it_opens_after_failures_in_a_row_and_a_success_between_them_starts_the_count_anew() -> None:
    breaker = CircuitBreaker(POLICY)
    for number in range(8):
        assert breaker.failed(attempt(number), Code.STREAM_STALLED, 0.0) is None
        assert breaker.failed(attempt(number), Code.STREAM_STALLED, 0.0) is None
        breaker.succeeded(attempt(number))
    assert breaker.allows()
    assert [breaker.failed(attempt(number), Code.STREAM_STALLED, 0.0) for number in range(3)] == [
        None,
        None,
        BreakerState.OPEN,
    ]
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
    assert breaker.failed(attempt(1), Code.STREAM_STALLED, 1.1) is None
    assert breaker.succeeded(attempt(7)) is BreakerState.CLOSED
    assert breaker.allows()


def test_failed_probes_double_the_open_time_up_to_its_limit_and_closing_resets_it() -> None:
    breaker, now = opened(), 0.0
    for open_s in (1.0, 2.0, 4.0, 4.0):
        assert breaker.ripen(now + open_s - 0.01) is None
        now += open_s
        assert breaker.ripen(now) is BreakerState.HALF_OPEN
        breaker.dispatched(attempt(9))
        assert breaker.failed(attempt(9), Code.STREAM_STALLED, now) is BreakerState.OPEN
    now += 4.0
    breaker.ripen(now)
    breaker.dispatched(attempt(9))
    assert breaker.succeeded(attempt(9)) is BreakerState.CLOSED
    for number in range(3):
        breaker.failed(attempt(number), Code.STREAM_STALLED, now)
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
    breaker.failed(attempt(1), Code.STREAM_STALLED, 0.0)
    breaker.failed(attempt(2), Code.STREAM_STALLED, 0.0)
    assert breaker.pardon() is None
    assert breaker.failed(attempt(3), Code.STREAM_STALLED, 0.0) is None
    assert opened().pardon() is BreakerState.CLOSED


def test_a_disabled_breaker_never_opens() -> None:
    breaker = CircuitBreaker(BreakerPolicy(enabled=False))
    for number in range(50):
        assert breaker.failed(attempt(number), Code.STREAM_STALLED, float(number)) is None
    assert breaker.allows()


def test_with_two_successes_to_close_the_second_probe_in_a_row_closes_and_each_goes_alone() -> None:
    breaker = opened(PATIENT)
    breaker.ripen(1.0)
    breaker.dispatched(attempt(7))
    assert not breaker.allows()
    assert breaker.succeeded(attempt(7)) is None
    assert breaker.allows()
    breaker.dispatched(attempt(8))
    assert not breaker.allows()
    assert breaker.succeeded(attempt(7)) is None, "it has counted already"
    assert breaker.succeeded(attempt(8)) is BreakerState.CLOSED


def test_a_failed_probe_opens_again_and_the_successes_before_it_are_forgotten() -> None:
    breaker = opened(PATIENT)
    breaker.ripen(1.0)
    breaker.dispatched(attempt(7))
    breaker.succeeded(attempt(7))
    breaker.dispatched(attempt(8))
    assert breaker.failed(attempt(8), Code.STREAM_STALLED, 1.0) is BreakerState.OPEN
    assert breaker.ripen(3.0) is BreakerState.HALF_OPEN
    breaker.dispatched(attempt(9))
    assert breaker.succeeded(attempt(9)) is None


BLAMED = [code for code, traits in TRAITS.items() if traits.blames_worker and code is not Code.WORKER_UNREACHABLE]


@pytest.mark.parametrize("code", BLAMED)
def test_judged_by_dispatch_a_worker_that_receives_and_answers_nothing_keeps_its_breaker_closed(code: Code) -> None:
    breaker = CircuitBreaker(BY_DISPATCH)
    for number in range(50):
        assert breaker.dispatched(attempt(number)) is None
        assert breaker.failed(attempt(number), code, float(number)) is None
    assert breaker.allows()
    assert breaker.trips == 0


def test_judged_by_dispatch_it_opens_when_nobody_receives_in_a_row() -> None:
    breaker = CircuitBreaker(BY_DISPATCH)
    for number in range(8):
        assert breaker.failed(attempt(number), Code.WORKER_UNREACHABLE, 0.0) is None
        assert breaker.failed(attempt(number), Code.WORKER_UNREACHABLE, 0.0) is None
        assert breaker.failed(attempt(number), Code.FIRST_TOKEN_TIMEOUT, 0.0) is None, "somebody did receive it"
    assert opened(BY_DISPATCH).trips == 1


def test_judged_by_dispatch_probes_that_are_sent_close_it_although_none_has_ended() -> None:
    breaker = opened(BY_DISPATCH)
    breaker.ripen(1.0)
    assert breaker.dispatched(attempt(7)) is None
    assert breaker.allows()
    assert breaker.succeeded(attempt(7)) is None, "it has counted already"
    assert breaker.dispatched(attempt(8)) is BreakerState.CLOSED


def test_judged_by_dispatch_a_probe_that_nobody_received_opens_it_again_and_a_late_timeout_does_not() -> None:
    breaker = opened(BY_DISPATCH)
    breaker.ripen(1.0)
    breaker.dispatched(attempt(7))
    assert breaker.failed(attempt(1), Code.STREAM_STALLED, 1.0) is None
    assert breaker.failed(attempt(7), Code.WORKER_UNREACHABLE, 1.0) is BreakerState.OPEN
    assert breaker.ripen(2.99) is None
    assert breaker.ripen(3.0) is BreakerState.HALF_OPEN


class BreakerWalk(RuleBasedStateMachine):
    """Requests are asked for, sent, and end in any order, some long after the breaker has changed.

    What the breaker may do is told from the history of outcomes alone: `run` of failures while closed, and the
    present half-open time's probes.
    """

    attempts: Bundle[AttemptId] = Bundle("attempts")

    @initialize(opening=st.integers(1, 3), closing=st.integers(1, 3), by_dispatch=st.booleans())
    def start(self, opening: int, closing: int, by_dispatch: bool) -> None:
        self.policy = BreakerPolicy(
            judged_by="dispatch" if by_dispatch else "stream",
            failures_to_open=opening,
            successes_to_close=closing,
            open_s=1.0,
            open_max_s=4.0,
        )
        self.breaker = CircuitBreaker(self.policy)
        self.by_dispatch = by_dispatch
        self.state = BreakerState.CLOSED
        self.now = self.opened_s = 0.0
        self.sent = self.run = self.completed = self.trips = 0
        self.open_s = 1.0
        self.probe: AttemptId | None = None

    def saw(self, changed: BreakerState | None, expected: BreakerState | None) -> None:
        assert changed is expected, (changed, expected)
        if expected is None:
            return
        self.state, self.probe, self.run, self.completed = expected, None, 0, 0
        if expected is BreakerState.OPEN:
            self.trips += 1
            self.opened_s = self.now
        elif expected is BreakerState.CLOSED:
            self.open_s = 1.0

    def probe_completed(self) -> BreakerState | None:
        self.probe = None
        self.completed += 1
        return BreakerState.CLOSED if self.completed == self.policy.successes_to_close else None

    @rule(target=attempts)
    def send(self) -> Any:
        if not self.breaker.allows():
            return multiple()
        self.sent += 1
        expected = None
        if self.state is BreakerState.HALF_OPEN:
            assert self.probe is None, "a second probe"
            if self.by_dispatch:
                expected = self.probe_completed()
            else:
                self.probe = attempt(self.sent)
        self.saw(self.breaker.dispatched(attempt(self.sent)), expected)
        return attempt(self.sent)

    @rule(ended=consumes(attempts))
    def succeed(self, ended: AttemptId) -> None:
        expected = self.good(ended)
        self.saw(self.breaker.succeeded(ended), expected)

    @rule(ended=consumes(attempts), code=st.sampled_from([Code.WORKER_UNREACHABLE, Code.STREAM_STALLED]))
    def fail(self, ended: AttemptId, code: Code) -> None:
        bad = code is Code.WORKER_UNREACHABLE or not self.by_dispatch
        expected = self.bad(ended) if bad else self.good(ended)
        self.saw(self.breaker.failed(ended, code, self.now), expected)

    @rule(ended=consumes(attempts))
    def withdraw(self, ended: AttemptId) -> None:
        self.breaker.withdrawn(ended)
        if self.probe == ended:
            self.probe = None

    @rule()
    def pardon(self) -> None:
        self.run = 0
        self.saw(self.breaker.pardon(), None if self.state is BreakerState.CLOSED else BreakerState.CLOSED)

    @rule(seconds=st.sampled_from([0.25, 1.0, 4.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        over = self.state is BreakerState.OPEN and self.now >= self.opened_s + self.open_s
        self.saw(self.breaker.ripen(self.now), BreakerState.HALF_OPEN if over else None)

    def good(self, ended: AttemptId) -> BreakerState | None:
        if self.state is BreakerState.CLOSED:
            self.run = 0
        return self.probe_completed() if ended == self.probe else None

    def bad(self, ended: AttemptId) -> BreakerState | None:
        if self.state is BreakerState.CLOSED:
            self.run += 1
            return BreakerState.OPEN if self.run == self.policy.failures_to_open else None
        if self.state is BreakerState.HALF_OPEN and (self.by_dispatch or ended == self.probe):
            self.open_s = min(2 * self.open_s, 4.0)
            return BreakerState.OPEN
        return None

    @invariant()
    def it_is_where_the_history_says(self) -> None:
        assert self.breaker.state is self.state
        assert self.breaker.trips == self.trips
        half_open = self.state is BreakerState.HALF_OPEN and self.probe is None
        assert self.breaker.allows() == (self.state is BreakerState.CLOSED or half_open)


TestBreakerWalk = BreakerWalk.TestCase
TestBreakerWalk.settings = WALK
