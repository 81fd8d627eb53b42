"""The time to the first token is divided without rest, and of a wait on a worker a load has what it really took."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.first_token import FIRST_TOKEN_PARTS, first_token_times
from tests.analysis.histories import Run
from tests.analysis.timed_run import PARTS_S, timed_run

BEFORE_S = PARTS_S["send"] + PARTS_S["to_controller"] + PARTS_S["to_worker"]
"""When the first request of a timed run comes to its worker, and begins to wait there."""


def loaded(run: Run, end_s: float, weights_s: float, kernels_s: float, worker: str = "worker-0") -> None:
    told = {"model": "tiny", "load_s": weights_s + kernels_s, "weights_s": weights_s, "first_token_s": kernels_s}
    run.event(worker, end_s, "model_timing", worker, detail=json.dumps(told))


def parts_of(run: Run) -> dict[str, float]:
    line = first_token_times(run.history()).iloc[0]
    return {part: float(line[part]) for part in [*FIRST_TOKEN_PARTS, "total_s"]}


def test_a_load_within_the_wait_is_told_apart_from_waiting_for_others() -> None:
    run = timed_run(requests=1, queue=0.5)
    loaded(run, BEFORE_S + 0.45, weights_s=0.3, kernels_s=0.1)
    run.event("worker-0", 0.1, "model_timing", "worker-0", detail=json.dumps({"process_s": 1.0, "imports_s": 2.0}))
    found = parts_of(run)
    assert found["weights"] == pytest.approx(0.3)
    assert found["kernels"] == pytest.approx(0.1)
    assert found["queue"] == pytest.approx(0.1)
    assert found["prefill"] == pytest.approx(PARTS_S["prefill"])


def test_what_was_loaded_before_it_came_or_elsewhere_is_none_of_its_time() -> None:
    run = timed_run(requests=1, queue=0.5)
    loaded(run, BEFORE_S - 0.001, weights_s=0.3, kernels_s=0.1)
    loaded(run, BEFORE_S + 0.4, weights_s=0.3, kernels_s=0.1, worker="worker-1")
    found = parts_of(run)
    assert (found["weights"], found["kernels"]) == (0.0, 0.0)
    assert found["queue"] == pytest.approx(0.5)


def test_only_the_part_of_a_load_that_it_waited_for_counts() -> None:
    run = timed_run(requests=1, queue=0.5)
    loaded(run, BEFORE_S + 0.2, weights_s=1.0, kernels_s=0.05)
    found = parts_of(run)
    assert found["weights"] == pytest.approx(0.15)
    assert found["kernels"] == pytest.approx(0.05)
    assert found["queue"] == pytest.approx(0.3)


@settings(max_examples=40, deadline=None)
@given(
    st.fixed_dictionaries({part: st.floats(0, 2) for part in PARTS_S}),
    st.lists(st.tuples(st.floats(-1, 9), st.floats(0, 3), st.floats(0, 3)), max_size=3),
)
def test_whatever_is_loaded_the_parts_add_up_and_none_is_negative(
    spent: dict[str, Any], loads: list[tuple[float, float, float]]
) -> None:
    run = timed_run(requests=1, **spent)
    for end_s, weights_s, kernels_s in loads:
        loaded(run, end_s, weights_s, kernels_s)
    found = parts_of(run)
    total_s = found.pop("total_s")
    assert min(found.values()) >= 0
    assert sum(found.values()) == pytest.approx(total_s, abs=1e-9)
    until_first = sum(spent[part] for part in PARTS_S if part not in ("decode", "back"))
    assert total_s == pytest.approx(until_first, abs=1e-9)


def test_a_request_without_a_first_token_has_no_line() -> None:
    run = timed_run(requests=2)
    (row, _) = run.find("requests")
    run.change(row, first_token_s=None)
    assert list(first_token_times(run.history())["request_id"]) == ["r1"]
