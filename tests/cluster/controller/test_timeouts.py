"""The three timeouts of a request, and which comes first."""

from cluster.controller.ledger import Attempt, Entry
from cluster.controller.timeouts import TimeoutHandler
from cluster.errors import Code
from cluster.policy import TimeoutPolicy
from cluster.protocol import AttemptId, Submit

POLICY = TimeoutPolicy(first_token_s=2.0, between_tokens_s=1.5)


def entry(deadline_s: float = 10.0, *, attempt: bool = True, now: float = 0.0) -> Entry:
    made = Entry(Submit("c", 1, "r", 1, "m", (1,), (), 10, deadline_s), 0.0)
    if attempt:
        made.attempt = Attempt(AttemptId("r", 1, 1), "w", 1, 0, now)
    return made


def test_a_first_token_may_take_longer_than_the_next_ones() -> None:
    timeouts, request = TimeoutHandler(POLICY), entry()
    assert request.attempt is not None
    timeouts.arm(request)
    assert timeouts.next() == 2.0
    assert timeouts.expired(request, 1.99) is None
    assert timeouts.expired(request, 2.0) is Code.FIRST_TOKEN_TIMEOUT
    request.attempt.first_token_s = request.attempt.news_s = 1.9
    timeouts.arm(request)
    assert timeouts.next() == 1.9 + 1.5
    assert timeouts.expired(request, 3.39) is None
    assert timeouts.expired(request, 3.4) is Code.STREAM_STALLED


def test_the_deadline_comes_before_every_other_timeout() -> None:
    timeouts, request = TimeoutHandler(POLICY), entry(deadline_s=2.0)
    timeouts.arm(request)
    assert timeouts.next() == 2.0
    assert timeouts.expired(request, 2.0) is Code.DEADLINE_EXCEEDED


def test_a_waiting_request_wakes_for_its_retry_or_its_deadline() -> None:
    timeouts, request = TimeoutHandler(POLICY), entry(attempt=False)
    request.retry_s = 4.0
    timeouts.arm(request)
    assert timeouts.due(3.9) == []
    assert timeouts.due(4.0) == ["r"]
    assert timeouts.expired(request, 4.0) is None
    request.retry_s = None
    timeouts.arm(request)
    assert timeouts.next() == 10.0


def test_an_ended_request_wakes_nobody() -> None:
    timeouts, request = TimeoutHandler(POLICY), entry()
    timeouts.arm(request)
    timeouts.disarm(request)
    assert timeouts.next() is None
    assert timeouts.due(1e9) == []


def test_who_waits_in_line_is_told_so_in_time_and_again() -> None:
    timeouts, request = TimeoutHandler(POLICY, word_s=2.5), entry(attempt=False)
    timeouts.arm(request)
    assert timeouts.due(2.5) == ["r"]
    assert timeouts.expired(request, 2.5) is None
    request.told_s = 2.5
    timeouts.arm(request)
    assert timeouts.next() == 5.0
    request.told_s = 9.0
    timeouts.arm(request)
    assert timeouts.next() == 10.0, "the deadline comes first"
