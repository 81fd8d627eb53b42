"""The time of a request is divided without rest: parts add up, none is negative, and what nobody told is unknown."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.time_shares import PARTS, request_times, time_shares
from tests.analysis.histories import clean_run
from tests.analysis.timed_run import PARTS_S, timed_run

LENGTHS = st.fixed_dictionaries({part: st.floats(0, 3) for part in PARTS_S})


def _told(spent: dict[str, float]) -> dict[str, float]:
    """What a made request should be divided into."""
    same = {part: spent[part] for part in PARTS if part in spent}
    return same | {"bus": spent["to_controller"] + spent["to_worker"] + spent["back"], "unknown": 0.0}


@settings(max_examples=40, deadline=None)
@given(LENGTHS)
def test_every_part_is_what_it_was_made(spent: dict[str, Any]) -> None:
    (shares,) = time_shares(timed_run(requests=3, **spent).history())
    assert shares.requests == 3
    assert shares.parts == pytest.approx(_told(spent), abs=1e-9)
    assert sum(shares.parts.values()) == pytest.approx(shares.mean_s)
    assert shares.mean_s == pytest.approx(sum(spent.values()), abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.sampled_from(["sent_s", "accepted", "controller", "worker", "started_s", "first_token_s"]), unique=True
    ),
    st.floats(-0.2, 0.2),
)
def test_whatever_is_missing_or_skewed_the_parts_add_up_and_none_is_negative(missing: list[str], skew_s: float) -> None:
    run = timed_run(requests=2, queue=0.1, prefill=0.2, controller=0.05)
    for row in run.find("attempts", side="worker"):
        moved = {name: getattr(row, name) + skew_s for name in ("begun_s", "started_s", "first_token_s", "ended_s")}
        run.change(row, **(moved | {name: None for name in missing if name in ("started_s", "first_token_s")}))
    for table, name in (("events", "accepted"), ("attempts", "controller"), ("attempts", "worker")):
        of: dict[str, Any] = {"kind": "request_accepted"} if table == "events" else {"side": name}
        for row in run.find(table, **of) if name in missing else ():
            run.drop(row)
    lines = request_times(run.history())
    assert (lines[list(PARTS)] >= 0).all(axis=None)
    assert lines["total_s"].to_numpy() == pytest.approx((lines["ended_s"] - lines["intended_s"]).to_numpy())


def test_without_the_worker_s_rows_its_part_is_unknown() -> None:
    run = timed_run(requests=2, queue=0.1, prefill=0.2)
    for row in run.find("attempts", side="worker"):
        run.drop(row)
    (shares,) = time_shares(run.history())
    assert shares.parts["queue"] == shares.parts["prefill"] == shares.parts["decode"] == 0
    lost = PARTS_S["to_worker"] + 0.1 + 0.2 + PARTS_S["decode"] + PARTS_S["back"]
    assert shares.parts["unknown"] == pytest.approx(lost)


def test_an_attempt_that_failed_is_time_lost_and_not_time_waited() -> None:
    (shares,) = time_shares(timed_run(requests=2, retry=1.0, controller=0.1).history())
    assert shares.parts["retry"] == pytest.approx(1.0)
    assert shares.parts["controller"] == pytest.approx(0.1)


def test_arms_are_told_apart_and_the_requests_of_none_left_out() -> None:
    run = timed_run(requests=12, arms=("cold", "warm", ""))
    for number in range(12):
        if number % 3 == 1:
            (row,) = run.find("attempts", side="worker", request_id=f"r{number}")
            run.change(row, started_s=row.first_token_s)
    shares = {each.arm: each for each in time_shares(run.history())}
    assert set(shares) == {"cold", "warm"}
    assert shares["cold"].parts["prefill"] == pytest.approx(PARTS_S["prefill"])
    assert shares["warm"].parts["prefill"] == pytest.approx(0)


def test_a_run_with_a_fault_loses_time_to_failed_attempts_in_the_phase_of_the_fault_alone() -> None:
    lost = {each.phase: each.parts["retry"] for each in time_shares(clean_run().history())}
    assert list(lost) == ["warm_up", "baseline", "fault", "recovery"]
    assert [phase for phase, retry_s in lost.items() if retry_s > 0] == ["fault"]


def test_nothing_completed_has_no_shares() -> None:
    run = timed_run(requests=2)
    for row in run.find("requests"):
        run.change(row, outcome="failed", code="DEADLINE_EXCEEDED")
    assert time_shares(run.history()) == []
