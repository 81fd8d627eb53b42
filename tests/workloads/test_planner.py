"""From phases to a load, and to a sentence about each that says what it asks of the cluster."""

import itertools

import pytest

from workloads.capacity import Capacity, InfeasibleRate
from workloads.plan import LoadPlan, PhaseLoad
from workloads.planner import CLOSED_HEADROOM, PlannedPhase, build_plan, segment_requests, statements
from workloads.schedule import build_schedule
from workloads.spec import WorkloadSpec
from workloads.vocabulary import ByteVocabulary

WORDS = ByteVocabulary()
CAPACITY = Capacity(requests_per_s=40.0, tokens_per_s=720.0, completions=120, window_s=3.0)


def plan(phases: list[PlannedPhase], base_per_s: float = 10.0, spec: WorkloadSpec | None = None) -> LoadPlan:
    return build_plan(spec or WorkloadSpec(), phases, base_per_s, CAPACITY, 1, WORDS)


def counts(made: LoadPlan, edges: list[float]) -> list[int]:
    times = [request.intended_s for request in made.requests]
    return [sum(low <= time_s < high for time_s in times) for low, high in itertools.pairwise(edges)]


def test_phases_that_say_nothing_are_the_workload_as_it_is() -> None:
    made = plan([PlannedPhase("warm_up", 3.0), PlannedPhase("baseline", 7.0)])
    assert list(made.requests) == build_schedule(WorkloadSpec(), 10.0, 10.0, 1, WORDS)
    assert made.closed == ()


def test_a_spike_is_ten_times_the_load_and_the_nth_request_stays_the_same() -> None:
    phases = [PlannedPhase("a", 10.0), PlannedPhase("b", 5.0, PhaseLoad(rate="10x")), PlannedPhase("c", 10.0)]
    made = plan(phases, spec=WorkloadSpec(arrivals="constant"))
    assert counts(made, [0, 10, 15, 25]) == [100, 500, 100]
    usual = build_schedule(WorkloadSpec(arrivals="constant"), 10.0, 70.0, 1, WORDS)
    assert [request.prompt for request in made.requests] == [request.prompt for request in usual]


@pytest.mark.parametrize(("load", "per_s"), [(PhaseLoad(rate="25/s"), 25), (PhaseLoad(rate="50%"), 20), ("none", 0)])
def test_a_phase_with_a_load_of_its_own_leaves_the_others_alone(load: PhaseLoad, per_s: float) -> None:
    made = plan([PlannedPhase("a", 4.0, load), PlannedPhase("b", 4.0)], spec=WorkloadSpec(arrivals="constant"))
    assert counts(made, [0, 4, 8]) == [4 * per_s, 40]


def test_a_burst_and_a_closed_load_stand_in_for_the_open_loop_of_their_phase() -> None:
    made = plan([
        PlannedPhase("a", 4.0),
        PlannedPhase("burst", 3.0, PhaseLoad(burst=30)),
        PlannedPhase("closed", 5.0, PhaseLoad(closed=8)),
    ])  # fmt: skip
    assert all(request.intended_s < 4.0 for request in made.requests)
    assert made.requests
    burst, closed = made.closed
    assert (burst.name, burst.start_s, burst.stop_s, burst.concurrency) == ("burst", 4.0, 7.0, 30)
    assert burst.is_burst
    assert (closed.start_s, closed.stop_s, closed.concurrency) == (7.0, 12.0, 8)
    assert len(closed.requests) == 8 + CLOSED_HEADROOM * 40.0 * 5.0
    ids = [request.request_id for request in made.every_request()]
    assert len(set(ids)) == len(ids)
    prompts = [{request.prompt for request in part.requests} for part in made.closed]
    assert not prompts[0] & prompts[1], "no segment finds what another has left in the caches"
    assert not prompts[0] & {request.prompt for request in made.requests}


def test_the_requests_of_a_segment_are_as_many_as_asked_whatever_the_load_is() -> None:
    for spec in (
        WorkloadSpec(),
        WorkloadSpec(arrivals="gamma", burstiness=3.0),
        WorkloadSpec(ramp=(0.0, 2.0)),
        WorkloadSpec(steps=((1.0, 3.0),)),
    ):
        made = segment_requests("x", 2.0, 37, spec, 5, WORDS)
        assert [request.request_id for request in made] == [f"x-{number:06d}" for number in range(37)]
        assert {request.intended_s for request in made} == {2.0}


def test_every_load_is_held_against_the_measured_capacity_before_it_is_offered() -> None:
    phases = [
        PlannedPhase("base", 10.0),
        PlannedPhase("spike", 6.0, PhaseLoad(rate="6x")),
        PlannedPhase("calm", 6.0, PhaseLoad(rate="50%")),
        PlannedPhase("burst", 6.0, PhaseLoad(burst=500)),
        PlannedPhase("held", 6.0, PhaseLoad(closed=100)),
        PlannedPhase("full", 6.0, PhaseLoad(closed=1000)),
        PlannedPhase("still", 6.0, "none"),
    ]
    assert statements(phases, 10.0, CAPACITY, deadline_s=10.0) == {
        "spike": "60.0 requests/s (6x), 150% of the measured capacity of 40.0 requests/s; this is overload: about 120 "
        "requests wait when it ends",
        "calm": "20.0 requests/s (50%), 50% of the measured capacity of 40.0 requests/s",
        "burst": "500 requests at once, 12.5 s of work at the measured capacity of 40.0 requests/s; about 100 of them "
        "cannot be served within client.deadline_s = 10 s",
        "held": "100 in flight (closed loop), each for about 2.5 s at the measured capacity of 40.0 requests/s",
        "full": "1000 in flight (closed loop), each for about 25.0 s at the measured capacity of 40.0 requests/s; that "
        "is longer than client.deadline_s = 10 s, so most will not be served in time",
        "still": "no load",
    }


def test_an_absolute_rate_above_the_capacity_is_refused_with_the_numbers() -> None:
    phases = [PlannedPhase("spike", 6.0, PhaseLoad(rate="100/s"))]
    with pytest.raises(InfeasibleRate) as refused:
        statements(phases, 10.0, CAPACITY, deadline_s=10.0)
    assert str(refused.value) == (
        "phases.spike.load.rate 100/s is 250% of the measured capacity of 40.0 requests/s (1800 of 720 tokens/s): "
        "lower it, add workers, or give a share such as 60%"
    )


def test_more_in_flight_than_the_experiment_s_latency_allows_are_refused_with_how_many_would_do() -> None:
    phases = [PlannedPhase("held", 6.0, PhaseLoad(closed=300))]
    with pytest.raises(InfeasibleRate) as refused:
        statements(phases, 10.0, CAPACITY, deadline_s=10.0, latency_limits_s={"held": 5.0})
    assert str(refused.value) == (
        "phases.held.load.closed: 300 in flight take 7.5 s each at the measured capacity of 40.0 requests/s "
        "(720 tokens/s), and the experiment allows 5 s: keep at most 200 in flight, or add workers"
    )
    assert statements(phases, 10.0, CAPACITY, deadline_s=10.0, latency_limits_s={"other": 5.0})
