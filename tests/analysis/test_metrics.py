"""Metrics and recovery times of a run whose every number is known."""

import msgspec
import pytest

from analysis.facts import CannotJudge
from analysis.metrics import METRICS, UnknownMetricError, measure
from analysis.recovery import fault_times
from tests.analysis.histories import (
    BREAKER_OPENED_S,
    HEALED_S,
    INJECTED_S,
    INTERVAL_S,
    LATENCY_S,
    MAX_TOKENS,
    PHASES,
    clean_run,
)
from tests.analysis.test_checkers import CLEAN, cut, fail, fresh, hung_request, request, started_late

HISTORY = CLEAN.history()


def test_requests_belong_to_the_phase_in_which_they_were_due() -> None:
    for name, (start_s, end_s) in PHASES.items():
        due = sum(start_s <= row["intended_s"] < end_s for row in CLEAN.schedule)
        assert measure(HISTORY, "success_rate", name).samples == due
    assert measure(HISTORY, "success_rate").samples == len(CLEAN.schedule)


@pytest.mark.parametrize(
    ("name", "phase", "value"),
    [
        ("success_rate", None, 1.0),
        ("refused_rate", "fault", 0.0),
        ("told_in_time_rate", "fault", 1.0),
        ("latency_p50_s", "baseline", LATENCY_S),
        ("latency_p95_s", "baseline", LATENCY_S),
        ("latency_p99_s", "fault", 1.0 + LATENCY_S),
        ("ttft_p50_s", "baseline", LATENCY_S - 0.1),
        ("ttft_p95_s", "baseline", LATENCY_S - 0.1),
        # From the first token to the last, over the gaps between them.
        ("inter_token_p50_s", "baseline", 0.1 / (MAX_TOKENS - 1)),
        ("inter_token_p95_s", "baseline", 0.1 / (MAX_TOKENS - 1)),
        ("dispatch_lag_p99_s", None, 0.001),
        ("detection_s", None, 0.9),
        ("detection_s", "fault", 0.9),
        ("return_to_steady_s", None, 1.4),
        ("retry_amplification", "baseline", 1.0),
        ("late_executions", None, 0.0),
        ("breaker_trips", "fault", 1.0),
        ("breaker_trips", "baseline", 0.0),
        ("first_attempt_success_rate", "baseline", 1.0),
        ("wasted_attempts", "baseline", 0.0),
        ("session_moves", "baseline", 0.0),
    ],
)
def test_values(name: str, phase: str | None, value: float) -> None:
    assert measure(HISTORY, name, phase).value == pytest.approx(value)


def test_throughput_is_over_wall_time() -> None:
    requests = measure(HISTORY, "throughput_requests_per_s", "baseline")
    tokens = measure(HISTORY, "throughput_tokens_per_s", "baseline")
    assert requests.value == pytest.approx(1 / INTERVAL_S, rel=0.02)
    assert tokens.value == pytest.approx(MAX_TOKENS / INTERVAL_S, rel=0.02)
    for seen in (requests, tokens):
        assert seen.interval is not None
        assert seen.value is not None
        assert seen.interval[0] <= seen.value <= seen.interval[1]


def test_a_single_observation_is_its_own_bound() -> None:
    seen = measure(HISTORY, "mitigation_s")
    assert seen.lower == seen.upper == seen.value
    assert 0.9 < (seen.value or 0) < BREAKER_OPENED_S - INJECTED_S


def test_failures_and_hung_requests_count() -> None:
    run = fresh()
    fail(run, "r150", "FIRST_TOKEN_TIMEOUT")
    fail(run, "r151", "QUEUE_FULL", "refused")
    hung_request(run)
    history = run.history()
    total = len(run.schedule)
    assert measure(history, "success_rate").value == pytest.approx((total - 3) / total)
    assert measure(history, "refused_rate").value == pytest.approx(1 / total)
    assert measure(history, "told_in_time_rate").value == pytest.approx((total - 1) / total)
    assert measure(history, "latency_p50_s").samples == total - 3


def test_cancelled_requests_are_nobodys_failure() -> None:
    run = fresh()
    run.change(request(run), outcome="cancelled", code="CANCELLED", finish="")
    seen = measure(run.history(), "success_rate")
    assert seen.value == 1.0
    assert seen.samples == len(run.schedule) - 1


def test_late_ends_are_not_told_in_time() -> None:
    run = fresh()
    row = request(run)
    run.change(row, ended_s=row.deadline_s + 1.1)
    assert (measure(run.history(), "told_in_time_rate").value or 1) < 1


def test_late_starts_are_counted_in_their_phase() -> None:
    run = fresh()
    started_late(run)
    assert measure(run.history(), "late_executions").value == 1
    assert measure(run.history(), "late_executions", "warm_up").value == 0


def test_requests_in_flight_in_a_cut_run_are_unknown() -> None:
    run = fresh()
    cut(run, 11.0)
    assert measure(run.history(), "success_rate").value == 1.0


def test_wrong_names_are_told() -> None:
    with pytest.raises(UnknownMetricError, match="speed: no such metric; there are success_rate"):
        measure(HISTORY, "speed")
    with pytest.raises(CannotJudge, match="the phase picnic never began"):
        measure(HISTORY, "success_rate", "picnic")


def test_every_metric_bears_an_empty_phase() -> None:
    run = fresh()
    for table in ("requests", "attempts", "faults", "nodes"):
        run.rows[table] = []
    run.schedule = []
    history = run.history()
    for name in METRICS:
        assert measure(history, name, "baseline").value in (None, 0.0)


def test_who_noticed_first() -> None:
    (times,) = fault_times(HISTORY)
    assert (times.noticed_by, times.noticed_how) == ("controller", "attempt_failed")
    run = fresh()
    run.event("worker-0", INJECTED_S + 0.4, "link_down", "worker-0")
    (times,) = fault_times(run.history())
    assert (times.noticed_by, times.noticed_how) == ("worker-0", "link_down")
    assert times.detection_s == pytest.approx(0.4)
    assert "worker-0 noticed it after 0.40 s (link_down)" in times.explanation()


def test_clients_notice_a_lost_controller() -> None:
    run = clean_run(target="controller")
    assert fault_times(run.history())[0].detection_s is None
    run.event("client-0", INJECTED_S + 2.0, "contact_lost", "controller")
    assert fault_times(run.history())[0].detection_s == pytest.approx(2.0)
    assert fault_times(run.history())[0].mitigation_s == 0.0


def test_any_lost_link_tells_of_the_broker() -> None:
    run = clean_run(target="broker")
    run.event("client-0", INJECTED_S + 0.2, "link_down", "client-0")
    assert fault_times(run.history())[0].detection_s == pytest.approx(0.2)


def test_mitigation_ends_with_the_first_distrust() -> None:
    run = fresh()
    before = fault_times(run.history())[0].mitigation_s
    row = run.find("attempts", side="controller", worker="worker-0", outcome="failed")[-1]
    run.add("controller", msgspec.structs.replace(row, begun_s=12.0, ended_s=13.0, attempt=7))
    assert fault_times(run.history())[0].mitigation_s == before
    for kind in ("breaker_opened", "worker_suspected", "worker_dead"):
        run.drop(run.find("events", kind=kind, subject="worker-0")[0])
    assert fault_times(run.history())[0].mitigation_s == pytest.approx(12.0 - INJECTED_S)


def test_failures_put_the_return_off() -> None:
    run = fresh()
    for number in (200, 201, 225):
        fail(run, f"r{number}", "FIRST_TOKEN_TIMEOUT")
    (times,) = fault_times(run.history())
    # One failure among the rest is below 1 %, two are not: the return comes after the second.
    assert times.return_to_steady_s == pytest.approx(202 * INTERVAL_S + 0.02 - HEALED_S)


def test_slow_requests_put_the_return_off() -> None:
    run = fresh()
    for number in range(230, 236):
        row = request(run, f"r{number}")
        run.change(row, ended_s=row.ended_s + 0.5)
    seconds = fault_times(run.history())[0].return_to_steady_s
    assert seconds is not None
    assert 230 * INTERVAL_S < seconds + HEALED_S < 236 * INTERVAL_S


def test_a_cluster_that_stays_broken_never_returns() -> None:
    run = fresh()
    run.drop(run.find("events", kind="breaker_closed")[0])
    (times,) = fault_times(run.history())
    assert times.return_to_steady_s is None
    assert measure(run.history(), "return_to_steady_s").value is None
    assert "never came back" in times.explanation()


def test_failing_until_the_end_is_no_return() -> None:
    run = fresh()
    for number in range(300, len(run.schedule)):
        fail(run, f"r{number}", "FIRST_TOKEN_TIMEOUT")
    assert fault_times(run.history())[0].return_to_steady_s is None


def test_overlapping_faults_return_together_and_followed_ones_do_not_count() -> None:
    run = fresh()
    row = run.find("faults")[0]
    run.add("director", msgspec.structs.replace(row, name="other", injected_s=13.0, healed_s=15.0))
    first, second = fault_times(run.history())
    assert first.return_to_steady_s == second.return_to_steady_s == pytest.approx(0.4)
    run.change(row, healed_s=12.5)
    first, _ = fault_times(run.history())
    assert first.followed
    assert first.return_to_steady_s is None
    assert measure(run.history(), "return_to_steady_s").value == pytest.approx(0.4)


def test_how_long_the_refused_waited_counts_from_their_intended_time_and_from_nobody_else() -> None:
    run = fresh()
    for number, row in enumerate(run.find("requests")[:40]):
        run.change(row, outcome="refused", code="NO_WORKERS_AVAILABLE", ended_s=row.intended_s + 0.1 + number / 1000)
    seen = measure(run.history(), "refusal_p95_s")
    assert seen.samples == 40
    assert seen.value == pytest.approx(0.137)
    assert measure(HISTORY, "refusal_p95_s").value is None
