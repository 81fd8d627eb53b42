"""When faults strike: fixed, repeated, at random by seed, and on a state."""

import itertools
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chaos.experiment import FaultSpec, Repeat, Trigger
from chaos.timing import check_trigger, latest_end_s, strikes


def spec(duration_s: float = 2.0, start_s: float = 1.0, **fields: Any) -> FaultSpec:
    return FaultSpec(
        kind="kill", phase="fault", targets=("worker-0",), duration_s=duration_s, ttl_s=60, start_s=start_s, **fields
    )


def test_a_plain_fault_strikes_once() -> None:
    assert strikes(spec(), Random(1)) == [1.0]
    assert latest_end_s(spec()) == 3.0


def test_a_repeated_fault_strikes_at_fixed_times() -> None:
    repeated = spec(repeat=Repeat(times=3, every_s=4))
    assert strikes(repeated, Random(1)) == [1.0, 5.0, 9.0]
    assert latest_end_s(repeated) == 11.0


@given(st.integers(1, 20), st.floats(0.1, 10), st.floats(0, 30), st.integers(0, 1_000))
def test_random_strikes_fit_do_not_overlap_and_repeat_themselves_by_seed(
    times: int, duration_s: float, slack_s: float, seed: int
) -> None:
    within_s = times * duration_s + slack_s
    fault = spec(duration_s, repeat=Repeat(times=times, within_s=within_s))
    at_s = strikes(fault, Random(seed))
    assert at_s == strikes(fault, Random(seed))
    assert len(at_s) == times
    assert at_s[0] >= 1.0
    assert at_s[-1] + duration_s <= latest_end_s(fault) + 1e-9
    assert latest_end_s(fault) == 1.0 + within_s
    assert all(later - sooner >= duration_s - 1e-9 for sooner, later in itertools.pairwise(at_s))


def test_random_strikes_differ_by_seed() -> None:
    fault = spec(repeat=Repeat(times=3, within_s=60))
    assert strikes(fault, Random(1)) != strikes(fault, Random(2))


def test_a_state_may_be_late_and_the_fault_with_it() -> None:
    assert latest_end_s(spec(when=Trigger(state="prefill", within_s=5))) == 8.0


@pytest.mark.parametrize(
    ("trigger", "said"),
    [
        (Trigger(state="asleep", within_s=1), "when.state: expected one of stream_token, prefill"),
        (Trigger(state="prefill", within_s=1, node="worker-9"), "when.node: no node named 'worker-9'"),
        (Trigger(state="half_open", within_s=1), "when.node: half_open is a state of a controller, got worker-0"),
    ],
)
def test_a_trigger_that_cannot_come_is_refused(trigger: Trigger, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check_trigger(trigger, ("worker-0",), ["controller", "worker-0"])
