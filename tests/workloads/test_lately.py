"""The window on a load: what ended lately, and what is in flight."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.node import Ask
from workloads.lately import Lately, LoadWindow, together


def ask(number: int, intended_s: float, timeout_s: float = 10.0) -> Ask:
    return Ask(str(number), "m", (1,), 1, intended_s, timeout_s)


@given(st.lists(st.tuples(st.floats(0, 20), st.floats(0.01, 12), st.sampled_from(["completed", "failed", "refused"]))))
def test_the_window_counts_what_a_plain_look_at_all_requests_counts(
    requests: list[tuple[float, float, str]],
) -> None:
    window, now = LoadWindow(5.0), 25.0
    for number, (asked_s, _, _) in enumerate(requests):
        window.asked(ask(number, asked_s))
    over = sorted((asked_s + took_s, number) for number, (asked_s, took_s, _) in enumerate(requests))
    for ended_s, number in over:
        if ended_s <= now:
            window.ended(str(number), requests[number][2], ended_s)
    found = window.seen(now)
    since_s = max((asked_s for asked_s, _, _ in requests), default=0.0) - 5.0
    ended = [(a, t, how) for a, t, how in requests if a + t <= now and a + t >= since_s]
    flying = [a for a, t, _ in requests if a + t > now]
    assert (found.ended, found.bad) == (len(ended), sum(how != "completed" for _, _, how in ended))
    assert found.overdue == sum(a + 10.0 < now for a in flying)
    waits = [a + t - a for a, t, how in ended if how != "refused"] + [now - a for a in flying]
    assert sorted(found.waited_s) == pytest.approx(sorted(waits))


def test_latencies_are_of_what_completed_in_the_last_seconds_whatever_is_asked_since() -> None:
    window = LoadWindow(5.0)
    for number, outcome in enumerate(("completed", "failed", "refused", "cancelled")):
        window.asked(ask(number, 1.0))
        window.ended(str(number), outcome, 2.0)
    assert window.latencies_s(6.9) == (1.0,)
    assert window.latencies_s(7.1) == ()
    assert window.seen(60.0) == Lately(ended=3, bad=2, overdue=0, waited_s=(1.0, 1.0)), "it stands still with the load"


def test_several_clients_are_judged_as_one() -> None:
    parts = [Lately(ended=2, bad=1, overdue=1, waited_s=(1.0, 2.0)), Lately(), Lately(ended=1, waited_s=(3.0,))]
    assert together(parts) == Lately(ended=3, bad=1, overdue=1, waited_s=(1.0, 2.0, 3.0))
