"""How much to offer, from what was measured and what was asked for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workloads.capacity import (
    CapacityUnknown,
    Completion,
    HostTooSlow,
    InfeasibleRate,
    ProbePlan,
    estimate_capacity,
    plan_probe,
    resolve_rate,
)
from workloads.spec import WorkloadSpec

PLAN = ProbePlan(in_flight=8, warm_up_s=1.0, measure_s=3.0)


def test_the_probe_saturates_every_batch() -> None:
    plan = plan_probe(workers=3, batch_max=8)
    assert plan.in_flight == 48
    assert plan.duration_s == plan.warm_up_s + plan.measure_s


def test_only_the_measured_window_counts() -> None:
    steady = [Completion(ended_s=(n + 1) / 10, tokens=20) for n in range(60)]
    capacity = estimate_capacity(steady, PLAN)
    assert capacity.completions == 30
    assert capacity.requests_per_s == pytest.approx(10)
    assert capacity.tokens_per_s == pytest.approx(200)


def test_a_probe_that_saw_little_claims_nothing() -> None:
    with pytest.raises(CapacityUnknown, match=r"7 requests completed in 3 s, at least 8"):
        estimate_capacity([Completion(ended_s=2.0, tokens=1)] * 7, PLAN)


def test_a_probe_is_made_longer_twice_and_not_for_ever() -> None:
    plan: ProbePlan | None = plan_probe(workers=2, batch_max=8)
    measured_s: list[float] = []
    while plan is not None:
        assert plan.in_flight == 32
        measured_s.append(plan.measure_s)
        plan = plan.longer()
    assert measured_s == [3.0, 12.0, 48.0]


@pytest.mark.parametrize(
    ("spec", "capacity", "per_s", "said"),
    [
        (WorkloadSpec(rate="35%"), 100, 35, "35.0 requests/s (35%), 35% of the measured capacity of 100.0 requests/s"),
        (WorkloadSpec(rate="35%", rate_min="18/s"), 40, 18, "18.0 requests/s (rate_min 18/s instead of 35%), 45% of"),
        (WorkloadSpec(rate="35%", rate_max="40/s"), 200, 40, "40.0 requests/s (rate_max 40/s instead of 35%), 20% of"),
        (WorkloadSpec(rate="12/s"), 100, 12, "12.0 requests/s (12/s), 12% of"),
        (WorkloadSpec(rate="12/s", rate_max="5%"), 100, 5, "rate_max 5% instead of 12/s"),
        (WorkloadSpec(rate="95/s"), 100, 95, "above 90% queues grow long"),
        (WorkloadSpec(rate="150%"), 100, 150, "this is overload"),
        (WorkloadSpec(rate="30%", ramp=(0.5, 2)), 100, 30, "; from 0.5 to 2 times that, at most 60% of the capacity"),
        (WorkloadSpec(rate="30%", steps=((5, 4), (9, 1))), 100, 30, "in 2 steps of up to 4 times that, at most 120%"),
        (WorkloadSpec(rate="30%", steps=((5, 4),)), 100, 30, "of the capacity, which is overload"),
    ],
)
def test_the_rate_and_where_it_comes_from(spec: WorkloadSpec, capacity: float, per_s: float, said: str) -> None:
    resolved = resolve_rate(spec, capacity)
    assert resolved.per_s == pytest.approx(per_s)
    assert said in resolved.statement


@pytest.mark.parametrize(
    ("spec", "refusal", "complaint"),
    [
        (WorkloadSpec(rate="12/s"), InfeasibleRate, "rate 12/s is 120% of the measured capacity of 10.0 requests/s"),
        (WorkloadSpec(rate="90/s", rate_max="95/s"), InfeasibleRate, "rate 90/s is 900% of"),
        (WorkloadSpec(rate="35%", rate_min="18/s"), HostTooSlow, "rate_min 18/s is 180% of"),
    ],
)
def test_an_offer_above_capacity_is_refused(spec: WorkloadSpec, refusal: type[Exception], complaint: str) -> None:
    with pytest.raises(refusal, match=complaint) as refused:
        resolve_rate(spec, 10)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"rate": "100000/s", "rate_max": "40/s"}, "rate: 100000/s is more than rate_max, 40/s"),
        ({"rate": "4/s", "rate_min": "18/s"}, "rate: 4/s is less than rate_min, 18/s"),
    ],
)
def test_a_rate_outside_its_own_bounds_is_refused(fields: dict[str, str], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        WorkloadSpec(**fields)  # type: ignore[arg-type]


@given(st.floats(0.01, 1000), st.floats(0.01, 1000), st.integers(1, 500), st.floats(0.1, 10_000))
def test_the_rate_lies_within_its_bounds(one: float, other: float, share: int, capacity: float) -> None:
    least, most = sorted((round(one, 2) or 0.01, round(other, 2) or 0.01))
    spec = WorkloadSpec(rate=f"{share}%", rate_min=f"{least:.2f}/s", rate_max=f"{most:.2f}/s")
    try:
        resolved = resolve_rate(spec, capacity)
    except HostTooSlow:
        assert least > capacity or most > capacity
    else:
        assert least - 0.01 <= resolved.per_s <= most + 0.01
