"""The estimate of another host's clock: its error bounds the truth, whatever the ways of questions and answers take."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chaos.worlds.host_clocks import HostClock

WAYS = st.floats(1e-6, 2.0)


@given(
    ahead_s=st.floats(-1e6, 1e6),
    drift_per_s=st.floats(-1e-4, 1e-4),
    questions=st.lists(st.tuples(st.floats(0, 5), WAYS, WAYS), min_size=1, max_size=90),
)
def test_the_truth_lies_within_the_error(
    ahead_s: float, drift_per_s: float, questions: list[tuple[float, float, float]]
) -> None:
    """At the times of the questions that count, the host was ahead by no less and no more than is said."""
    clock = HostClock()
    now_s = 0.0
    truths = []
    for pause_s, there_s, back_s in questions:
        asked_s = now_s + pause_s
        read_s = asked_s + there_s
        truths.append(ahead_s + drift_per_s * read_s)
        clock.add(asked_s, read_s + truths[-1], read_s + back_s)
        now_s = read_s + back_s
    told = clock.estimate()
    rounding_s = 1e-8
    # A steady drift is least wrong in the middle; whatever it is, both ends of the run are within reach.
    first, last = truths[: min(30, len(truths))], truths[-30:]
    assert min(abs(truth - told.ahead_s) for truth in first) <= told.error_s + rounding_s
    assert min(abs(truth - told.ahead_s) for truth in last) <= told.error_s + rounding_s
    assert told.questions == len(questions)


def test_the_shortest_way_tells_most() -> None:
    clock = HostClock()
    clock.add(0.0, 100.9, 1.0)
    clock.add(2.0, 102.0005, 2.001)
    assert clock.estimate().ahead_s == pytest.approx(100.0)
    assert clock.estimate().error_s == pytest.approx(0.0005)


def test_a_clock_that_jumps_is_less_sure() -> None:
    clock = HostClock()
    for second in range(40):
        clock.add(second, second + 10.0005, second + 0.001)
    for second in range(40, 80):
        clock.add(second, second + 11.0005, second + 0.001)
    told = clock.estimate()
    assert told.drift_s == pytest.approx(1.0)
    assert told.error_s >= 0.5
