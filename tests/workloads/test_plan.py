"""What a phase may say of its load, and how a plan is shared out and written down."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workloads.plan import ClosedSegment, LoadPlan, PhaseLoad, closed_ids, divide, plan_rows, rate_per_s
from workloads.schedule import ScheduledRequest


def request(name: str, intended_s: float = 0.0, session: str = "s0") -> ScheduledRequest:
    return ScheduledRequest(name, intended_s, session, 0, f"p{name}", (1, 2, 3), 4)


def segment(concurrency: int, count: int, name: str = "load") -> ClosedSegment:
    return ClosedSegment(name, 1.0, 5.0, concurrency, tuple(request(f"{name}-{n}", 1.0) for n in range(count)))


@pytest.mark.parametrize(
    ("text", "per_s"), [("10x", 50.0), ("0.5x", 2.5), ("50/s", 50.0), ("120%", 96.0), (" 2 x", 10.0)]
)
def test_a_rate_is_a_multiple_an_absolute_one_or_a_share_of_the_capacity(text: str, per_s: float) -> None:
    assert rate_per_s(text, base_per_s=5.0, capacity_per_s=80.0) == pytest.approx(per_s)
    assert PhaseLoad(rate=text).rate == text


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"rate": "ten"}, "rate: expected a positive rate such as 10x, 50/s or 120%, got 'ten'"),
        ({"rate": "0x"}, "rate: expected at most 1000x and more than 0"),
        ({"rate": "10x", "burst": 5}, "expected one of rate, burst, closed and closed_per_worker, got rate and burst"),
        ({}, "expected one of rate, burst, closed and closed_per_worker, got none of them"),
        ({"closed": 0}, "`int` >= 1"),
        ({"in_flight": 5}, "unknown field `in_flight`"),
    ],
)
def test_a_wrong_load_is_refused_by_field(fields: dict[str, Any], complaint: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=complaint):
        msgspec.convert(fields, PhaseLoad)


@given(st.integers(1, 40), st.integers(0, 60), st.integers(1, 7))
def test_a_segment_is_shared_out_whole_and_evenly(concurrency: int, more: int, generators: int) -> None:
    plan = LoadPlan((), (segment(concurrency, concurrency + more),))
    parts = divide(plan, generators)
    shares = [part.closed[0] for part in parts]
    assert sum(share.concurrency for share in shares) == concurrency
    assert max(share.concurrency for share in shares) - min(share.concurrency for share in shares) <= 1
    dealt = sorted(one.request_id for share in shares for one in share.requests)
    assert len(dealt) == len(set(dealt))
    if concurrency >= generators:
        assert dealt == sorted(closed_ids(plan))
    if more == 0:
        assert all(share.is_burst for share in shares), "a burst stays one"


def test_sessions_of_the_open_loop_stay_with_one_generator() -> None:
    plan = LoadPlan(tuple(request(f"r{n}", n, f"s{n % 3}") for n in range(12)), (segment(2, 6),))
    parts = divide(plan, 2)
    homes = [{one.session_id for one in part.requests} for part in parts]
    assert homes[0] & homes[1] == set()
    assert sum(len(part.requests) for part in parts) == 12


def test_the_table_lists_every_planned_request_with_its_segment() -> None:
    plan = LoadPlan((request("r0", 0.5),), (segment(1, 2), segment(2, 2, "burst")))
    rows = plan_rows(plan).to_pylist()
    assert [(row["request_id"], row["segment"], row["intended_s"]) for row in rows] == [
        ("r0", "", 0.5), ("load-0", "load", 1.0), ("load-1", "load", 1.0), ("burst-0", "burst", 1.0),
        ("burst-1", "burst", 1.0),
    ]  # fmt: skip
    assert len({row["request_id"] for row in rows}) == len(rows)
    assert [one.request_id for one in plan.every_request()] == [row["request_id"] for row in rows]
    assert plan_rows(LoadPlan(())).num_rows == 0
