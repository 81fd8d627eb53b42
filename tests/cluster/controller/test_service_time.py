"""Whom it is too late to begin with, by how long attempts take at the moment."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.controller.ledger import Attempt, Entry
from cluster.controller.service_time import ServiceTimes
from cluster.protocol import AttemptId, Submit


def entry(deadline_s: float, delivered: tuple[int, ...] = (), model: str = "m") -> Entry:
    return Entry(Submit("c", 1, "r", 1, model, (1,), delivered, 10, deadline_s), 0.0)


def attempt(begun_s: float) -> Attempt:
    return Attempt(AttemptId("r", 1, 1), "w", 1, 0, begun_s)


def steady(took_s: float, count: int = 50) -> ServiceTimes:
    times = ServiceTimes()
    for number in range(count):
        times.completed("m", attempt(float(number)), number + took_s)
    return times


def test_nobody_is_given_up_before_anything_is_known() -> None:
    assert not ServiceTimes().is_hopeless(entry(0.001), 0.0)
    assert not steady(1.0).is_hopeless(entry(0.1, model="another"), 0.0)


def test_who_has_less_time_left_than_an_attempt_takes_is_given_up() -> None:
    times = steady(1.0)
    assert times.is_hopeless(entry(10.0), 9.1)
    assert not times.is_hopeless(entry(10.0), 8.9)


def test_a_stream_that_has_begun_is_not() -> None:
    assert not steady(1.0).is_hopeless(entry(10.0, delivered=(5, 6)), 9.9)


@given(st.lists(st.floats(0.01, 5.0), min_size=1, max_size=60))
def test_the_time_allowed_for_is_never_less_than_the_shortest_and_follows_what_is_seen(took: list[float]) -> None:
    times = ServiceTimes()
    for one_s in took:
        times.completed("m", attempt(0.0), one_s)
    assert times.is_hopeless(entry(100.0), 100.0 - min(took) * 0.99)
    assert not times.is_hopeless(entry(100.0), 100.0 - max(took) - 4 * max(took) - 0.01)


def test_attempts_that_meet_their_deadline_show_that_it_takes_longer() -> None:
    times = steady(0.1)
    late = entry(10.0)
    assert not times.is_hopeless(late, 9.5)
    for _ in range(20):
        times.expired("m", attempt(0.0), 2.0)
    assert times.is_hopeless(late, 9.5)
    settled = steady(0.1)
    settled.expired("m", attempt(0.0), 0.05)
    assert settled.is_hopeless(late, 9.95)
    assert not settled.is_hopeless(late, 9.8), "one that had no time says nothing"


@pytest.mark.parametrize("took_s", [0.05, 3.0])
def test_what_expires_before_anything_has_completed_is_no_news(took_s: float) -> None:
    times = ServiceTimes()
    times.expired("m", attempt(0.0), took_s)
    assert not times.is_hopeless(entry(10.0), 9.99)
