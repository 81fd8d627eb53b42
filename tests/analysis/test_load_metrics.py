"""Queues, goodput, batches, a phase against the baseline, and drift, each where the truth is known."""

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.criterion import Criterion
from analysis.facts import CannotJudge
from analysis.judge import evaluate
from analysis.load_metrics import DRIFT_BINS, DRIFT_BINS_MIN, DRIFT_S, drift, queue_depth
from analysis.metrics import METRICS, measure
from analysis.schema import RequestRow
from analysis.verdict import Outcome
from tests.analysis.histories import LATENCY_S, PHASES, RUN_END_S, Run, clean_run, sample

NODES = ("controller", "worker-0", "worker-1")


def empty_run() -> Run:
    """The clean run without its samples."""
    run = clean_run()
    run.rows["nodes"] = []
    return run


def queued_run(high_until_s: float, again_s: float | None = None) -> Run:
    """Nine wait at the controller from the fault's beginning, then one as in the baseline, and once more if so told."""
    run = empty_run()
    for time_s in np.arange(0.0, RUN_END_S, 0.5).tolist():
        high = PHASES["fault"][0] <= time_s < high_until_s or (again_s is not None and again_s <= time_s < again_s + 1)
        run.add("controller", sample("controller", time_s, queue_depth=9 if high else 1))
        run.add("worker-0", sample("worker-0", time_s + 0.2, queue_depth=2))
    return run


def test_the_queue_is_what_waits_at_all_nodes_together_between_two_samples_too() -> None:
    depth = queue_depth(queued_run(12.0).history())
    assert depth.loc[10.0] == depth.loc[10.2] == 11
    assert measure(queued_run(12.0).history(), "queue_depth_max", "fault").value == 11
    assert measure(queued_run(12.0).history(), "queue_depth_max", "baseline").value == 3
    assert measure(empty_run().history(), "queue_depth_max", "fault").value is None


@pytest.mark.parametrize(
    ("high_until_s", "again_s", "back_s"),
    [(18.0, None, 1.7), (18.0, 19.0, 3.7), (18.0, 23.0, 1.7), (16.0, None, 0.0), (40.0, None, None)],
)
def test_the_queue_is_back_when_it_is_at_its_base_and_stays(
    high_until_s: float, again_s: float | None, back_s: float | None
) -> None:
    history = queued_run(high_until_s, again_s).history()
    found = measure(history, "queue_return_s", "recovery")
    assert found.value == (None if back_s is None else pytest.approx(back_s, abs=0.31))
    verdict = evaluate(history, "back", Criterion(metric="queue_return_s", phase="recovery", at_most=5.0)).verdict
    assert verdict is (Outcome.FAIL if back_s is None else Outcome.PASS)


def test_goodput_counts_what_was_answered_within_the_steady_state_s_limit() -> None:
    run = clean_run()
    rows = [row for row in run.find("requests") if PHASES["baseline"][0] <= row.intended_s < PHASES["baseline"][1]]
    for row in rows[:10]:
        run.change(row, ended_s=row.intended_s + 1.5)
    found = measure(run.history(), "goodput_rate", "baseline")
    assert found.value == pytest.approx(1 - 10 / len(rows))
    assert found.samples == len(rows)
    assert measure(run.history(), "success_rate", "baseline").value == 1.0
    run.experiment = {**run.experiment, "steady_state": {}}
    with pytest.raises(CannotJudge, match="sets no latency limit"):
        measure(run.history(), "goodput_rate", "baseline")


def test_the_mean_batch_is_the_growth_of_the_workers_counters() -> None:
    run = empty_run()
    for time_s in np.arange(0.0, RUN_END_S, 0.5).tolist():
        # Two tokens a step until the fault, six from then on, at each worker.
        early = min(time_s, PHASES["fault"][0])
        made = 20 * early + 60 * (time_s - early)
        for node in ("worker-0", "worker-1"):
            run.add(node, sample(node, time_s, steps=round(10 * time_s), tokens_made=round(made)))
    history = run.history()
    assert measure(history, "batch_mean", "baseline").value == pytest.approx(2.0)
    assert measure(history, "batch_mean", "fault").value == pytest.approx(6.0)
    assert measure(history, "batch_mean_ratio", "fault").value == pytest.approx(3.0)


def slowed(factor: float, noise: float = 0.05) -> Run:
    """The recovery's latencies are `factor` times the baseline's, with noise on both."""
    run = clean_run()
    random = np.random.default_rng(5)
    for _, _, row in list(run.rows["requests"]):
        assert isinstance(row, RequestRow)
        times = factor if row.intended_s >= PHASES["recovery"][0] else 1.0
        run.change(row, ended_s=row.intended_s + LATENCY_S * times * float(random.lognormal(0, noise)))
    return run


def test_a_phase_is_compared_with_the_baseline_by_a_ratio_with_its_interval() -> None:
    found = measure(slowed(1.5).history(), "latency_p50_ratio", "recovery", 0.95)
    assert found.value == pytest.approx(1.5, rel=0.03)
    assert found.interval is not None
    assert found.interval[0] < 1.5 < found.interval[1]
    assert found.note.startswith("a difference below ")


@pytest.mark.parametrize(
    ("factor", "noise", "verdict"),
    [(1.0, 0.001, Outcome.PASS), (1.5, 0.05, Outcome.FAIL), (1.03, 0.4, Outcome.INCONCLUSIVE)],
)
def test_two_per_cent_that_cannot_be_seen_are_inconclusive_on_either_side(
    factor: float, noise: float, verdict: Outcome
) -> None:
    criterion = Criterion(metric="latency_p50_ratio", phase="recovery", at_most=1.02)
    result = evaluate(slowed(factor, noise).history(), "after", criterion)
    assert result.verdict is verdict, result.explanation
    assert "cannot be told from none here" in result.explanation


@settings(max_examples=40, deadline=None)
@given(st.floats(-0.5, 0.5), st.floats(0.1, 1000.0), st.floats(30.0, 3000.0))
def test_drift_is_the_slope_as_a_share_of_the_mean_per_ten_minutes(share: float, mean: float, length_s: float) -> None:
    times = np.linspace(0.0, length_s, DRIFT_BINS)
    slope = share * mean / DRIFT_S
    values = mean + slope * (times - times.mean())
    if values.min() <= 0:
        return
    found = drift(times, values, 0.95)
    assert found.value == pytest.approx(share, abs=1e-6)
    assert found.lower == pytest.approx(found.upper, abs=1e-6), "a straight line leaves nothing open"


def test_one_outlier_does_not_make_a_drift() -> None:
    values = np.ones(DRIFT_BINS)
    values[-1] = 50.0
    found = drift(np.arange(DRIFT_BINS) * 20.0, values, 0.95)
    assert found.value == 0.0


def test_the_bounds_of_a_drift_hold_in_nineteen_of_twenty_series() -> None:
    random = np.random.default_rng(3)
    times = np.arange(DRIFT_BINS) * 20.0
    found = [drift(times, 100 + 5 * random.standard_normal(DRIFT_BINS), 0.95) for _ in range(400)]
    above = sum(one.lower is not None and one.lower > 0 for one in found)
    below = sum(one.upper is not None and one.upper < 0 for one in found)
    assert 5 <= above <= 35
    assert 5 <= below <= 35


def test_too_few_stretches_say_nothing() -> None:
    assert drift(np.arange(3.0), np.ones(3), 0.95).value is None
    assert drift(np.arange(DRIFT_BINS_MIN, dtype=float), np.zeros(DRIFT_BINS_MIN), 0.95).value is None


def drifting_run(per_ten_minutes: float, resident: bool = True) -> Run:
    """From the start on latencies, and the memory of one worker, grow by a share of their mean."""
    run = empty_run()
    middle_s = RUN_END_S / 2
    for _, _, row in list(run.rows["requests"]):
        assert isinstance(row, RequestRow)
        factor = 1 + per_ten_minutes * (row.intended_s - middle_s) / DRIFT_S
        run.change(row, ended_s=row.intended_s + LATENCY_S * factor)
    for time_s in np.arange(0.0, RUN_END_S, 0.5).tolist():
        factor = 1 + per_ten_minutes * (time_s - middle_s) / DRIFT_S
        for node in NODES:
            held = round(1e8 * (factor if node == "worker-1" else 1.0))
            row = sample(node, time_s, memory_bytes=held + 10_000 * round(time_s), cache_bytes=10_000 * round(time_s))
            run.add(node, msgspec.structs.replace(row, resident_bytes=held if resident else None))
    return run


@pytest.mark.parametrize("resident", [True, False])
def test_the_node_that_grows_most_is_named_and_growing_caches_are_no_leak(resident: bool) -> None:
    found = measure(drifting_run(2.0, resident).history(), "memory_drift", None, 0.95)
    assert found.value == pytest.approx(2.0, rel=0.05)
    assert "worker-1, which grew most of" in found.note
    assert measure(drifting_run(0.0, resident).history(), "memory_drift", None, 0.95).value == pytest.approx(
        0, abs=1e-9
    )


def test_latency_that_grows_is_seen_and_throughput_that_does_not_is_none() -> None:
    history = drifting_run(2.0).history()
    assert measure(history, "latency_drift", None, 0.95).value == pytest.approx(2.0, rel=0.1)
    result = evaluate(history, "drift", Criterion(metric="latency_drift", at_most=0.1))
    assert result.verdict is Outcome.FAIL
    assert measure(history, "throughput_drift", "baseline", 0.95).value is not None
    short = evaluate(history, "drift", Criterion(metric="throughput_drift", phase="baseline", at_least=-0.1))
    assert short.verdict is Outcome.INCONCLUSIVE, "six seconds say nothing of ten minutes"


def test_memory_that_nobody_told_of_has_no_value() -> None:
    assert METRICS["memory_drift"].measure(clean_run().history(), None, 0.95).value is None
