"""The named metrics of a history: what experiments may set limits on, and what reports print."""

import math
from collections.abc import Callable

import numpy as np
import pandas as pd

from analysis import statistics
from analysis.arm_metrics import ARM_METRICS
from analysis.arms import measure_arm, measure_ratio
from analysis.executions import late_starts
from analysis.facts import DEADLINE_TOLERANCE_S, fault_windows, finished, segments
from analysis.history import History
from analysis.load_metrics import LOAD_METRICS
from analysis.measurement import Measurement as Measurement
from analysis.measurement import Metric, Values, completed_lines, lines_of, proportion
from analysis.measurement import span as span
from analysis.recovery import FaultTimes, fault_times

_BINS_PER_BATCH = 2


class UnknownMetricError(ValueError):
    """There is no metric of that name. The message lists those there are."""


def measure(
    history: History,
    name: str,
    phase: str | None = None,
    confidence: float = 0.95,
    *,
    arm: str | None = None,
    versus: str | None = None,
) -> Measurement:
    """A metric by name over a phase: of all requests, of those of an arm, or of one arm divided by that of another.

    Raises UnknownMetricError, and CannotJudge for a phase that never began.
    """
    if name not in METRICS:
        raise UnknownMetricError(f"{name}: no such metric; there are {', '.join(METRICS)}")
    metric = METRICS[name]
    if arm is None:
        return metric.measure(history, phase, confidence)
    if versus is None:
        return measure_arm(history, metric, arm, phase, confidence)
    return measure_ratio(history, metric, arm, versus, phase, confidence)


def _percentile(values: pd.Series, share: float, confidence: float) -> Measurement:
    """The values come in the order in which the requests were to be sent, so that the bounds know what clusters."""
    known = values.dropna().to_numpy(dtype=float)
    lower, upper = statistics.series_percentile_bounds(known, share, confidence)
    return Measurement(
        value=statistics.percentile(known, share),
        interval=statistics.series_percentile_interval(known, share, confidence),
        lower=lower,
        upper=upper,
        samples=len(known),
        estimator="percentile",
    )


def _success_rate(history: History, phase: str | None, confidence: float) -> Measurement:
    """Completed of all that somebody still wanted; a request that hung is a failure."""
    lines = lines_of(history, phase)
    wanted = lines[lines["outcome"] != "cancelled"]
    return proportion(int((wanted["outcome"] == "completed").sum()), len(wanted), confidence)


def _refused_rate(history: History, phase: str | None, confidence: float) -> Measurement:
    lines = lines_of(history, phase)
    return proportion(int((lines["outcome"] == "refused").sum()), len(lines), confidence)


def _told_in_time_rate(history: History, phase: str | None, confidence: float) -> Measurement:
    """Ended, completed or with a code, not later than the deadline plus its tolerance."""
    lines = lines_of(history, phase)
    ended = (lines["outcome"] == "completed") | (lines["code"].fillna("") != "")
    in_time = ended & (lines["ended_s"] <= lines["deadline_s"] + DEADLINE_TOLERANCE_S)
    return proportion(int(in_time.sum()), len(lines), confidence)


def _percentile_of(values: Values, share: float, *, first_token: bool = False) -> Metric:
    def measure_percentile(history: History, phase: str | None, confidence: float) -> Measurement:
        return _percentile(values(history, phase), share, confidence)

    return Metric("s", "lower", measure_percentile, by_arm=True, values=values, share=share, first_token=first_token)


def _latency(history: History, phase: str | None) -> "pd.Series[float]":
    """End to end from the intended time, of completed requests."""
    rows = completed_lines(history, phase).set_index("request_id")
    return rows["ended_s"] - rows["intended_s"]


def _first_token(history: History, phase: str | None) -> "pd.Series[float]":
    """From the intended time to the first token, of completed requests."""
    rows = completed_lines(history, phase).set_index("request_id")
    return rows["first_token_s"] - rows["intended_s"]


def _refusal(history: History, phase: str | None, confidence: float) -> Measurement:
    """How long the refused had to wait for their no, from the intended time."""
    lines = lines_of(history, phase)
    refused = lines[lines["outcome"] == "refused"]
    return _percentile(refused["ended_s"] - refused["intended_s"], 0.95, confidence)


def _inter_token(history: History, phase: str | None) -> "pd.Series[float]":
    """From one token to the next where the caller gets them, the mean of each completed request of two tokens or more.

    Tokens that come together have no time between them, so a request that came at once has 0.
    """
    rows = completed_lines(history, phase).set_index("request_id")
    gaps = rows["tokens"].map(len) - 1
    rows, gaps = rows[gaps >= 1], gaps[gaps >= 1]
    return (rows["ended_s"] - rows["first_token_s"]) / gaps


def _dispatch_lag(history: History, phase: str | None, confidence: float) -> Measurement:
    rows = lines_of(history, phase)
    return _percentile(rows["sent_s"] - rows["intended_s"], 0.99, confidence)


def _rate(history: History, phase: str | None, confidence: float, times: pd.Series, weights: pd.Series) -> Measurement:
    """Weight per second over a phase; the interval by batch means over the phase cut into equal bins."""
    start_s, end_s = span(history, phase)
    length_s = end_s - start_s
    if length_s <= 0:
        return Measurement(None, None, None, None, 0, "mean")
    bins = statistics.BATCHES * _BINS_PER_BATCH
    made, _ = np.histogram(times.to_numpy(dtype=float), bins=bins, range=(start_s, end_s), weights=weights.to_numpy())
    per_s = made * bins / length_s
    interval = statistics.mean_interval(per_s, confidence)
    lower, upper = statistics.mean_interval(per_s, 2 * confidence - 1) or (None, None)
    return Measurement(float(made.sum() / length_s), interval, lower, upper, bins, "mean")


def _requests_per_s(history: History, phase: str | None, confidence: float) -> Measurement:
    rows = finished(history)
    ended = rows.loc[rows["outcome"] == "completed", "ended_s"]
    return _rate(history, phase, confidence, ended, pd.Series(1.0, index=ended.index))


def _tokens_per_s(history: History, phase: str | None, confidence: float) -> Measurement:
    parts = segments(finished(history))
    return _rate(history, phase, confidence, parts["received_s"], parts["count"].astype(float))


def _fault_time(
    read: Callable[[FaultTimes], float | None], known: Callable[[FaultTimes], bool] = lambda fault: True
) -> Callable[[History, str | None, float], Measurement]:
    """The worst of the faults injected in the phase; None when it never happened for one of them.

    known: a fault of which nobody can say, because the next one struck too soon, does not count.
    """

    def measure_fault_time(history: History, phase: str | None, confidence: float) -> Measurement:
        start_s, end_s = (-math.inf, math.inf) if phase is None else span(history, phase)
        inside = [fault for fault in fault_times(history) if start_s <= fault.injected_s < end_s]
        times = [read(fault) for fault in inside if known(fault)]
        found = [time_s for time_s in times if time_s is not None]
        worst = max(found) if found and len(found) == len(times) else None
        return Measurement(worst, None, worst, worst, len(times), "observed")

    return measure_fault_time


def _retry_amplification(history: History, phase: str | None, confidence: float) -> Measurement:
    lines = lines_of(history, phase)
    dispatched = history.attempts[history.attempts["side"] == "controller"]
    attempts = dispatched[dispatched["request_id"].isin(lines["request_id"])]
    requests = int(attempts["request_id"].nunique())
    value = len(attempts) / requests if requests else None
    return Measurement(value, None, value, value, requests, "observed")


def _first_attempts(history: History, phase: str | None, confidence: float) -> Measurement:
    """What success would have been without any second attempt: requests whose first one completed, of those sent."""
    lines = lines_of(history, phase)
    attempts = history.attempts[history.attempts["side"] == "controller"].sort_values("begun_s", kind="stable")
    first = attempts[attempts["request_id"].isin(lines["request_id"])].drop_duplicates("request_id")
    return proportion(int((first["outcome"] == "completed").sum()), len(first), confidence)


def _wasted_attempts(history: History, phase: str | None, confidence: float) -> Measurement:
    """Attempts that failed on a target of a fault in force."""
    start_s, end_s = (-math.inf, math.inf) if phase is None else span(history, phase)
    attempts = history.attempts[(history.attempts["side"] == "controller") & (history.attempts["outcome"] == "failed")]
    failed = attempts[(attempts["ended_s"] >= start_s) & (attempts["ended_s"] < end_s)]
    wasted: set[object] = set()
    windows = fault_windows(history)
    for fault in windows:
        on = failed["worker"].isin(fault.targets) & (failed["begun_s"] >= fault.injected_s)
        wasted |= set(failed[on & (failed["begun_s"] < fault.healed_s)].index)
    return Measurement(float(len(wasted)), None, len(wasted), len(wasted), len(windows), "observed")


def _events(kind: str) -> Callable[[History, str | None, float], Measurement]:
    """How often something happened."""

    def count_events(history: History, phase: str | None, confidence: float) -> Measurement:
        start_s, end_s = span(history, phase)
        times = history.events.loc[history.events["kind"] == kind, "time_s"]
        count = float(((times >= start_s) & (times < end_s)).sum())
        return Measurement(count, None, count, count, len(history.events), "observed")

    return count_events


def _session_moves(history: History, phase: str | None, confidence: float) -> Measurement:
    """How often a session was given to another worker than before: the growth of the controllers' counters."""
    start_s, end_s = span(history, phase)
    samples = history.nodes[(history.nodes["role"] == "controller") & history.nodes["time_s"].between(start_s, end_s)]
    counters = samples.groupby(["node", "incarnation"])["session_moves"]
    moves = float((counters.max() - counters.min()).sum())
    return Measurement(moves, None, moves, moves, len(samples), "observed")


def _late_executions(history: History, phase: str | None, confidence: float) -> Measurement:
    start_s, end_s = (-math.inf, math.inf) if phase is None else span(history, phase)
    late = late_starts(history)
    count = float(((late["time_s"] >= start_s) & (late["time_s"] < end_s)).sum())
    started = history.attempts[(history.attempts["side"] == "worker") & history.attempts["started_s"].notna()]
    return Measurement(count, None, count, count, len(started), "observed")


def _lost_requests(history: History, phase: str | None, confidence: float) -> Measurement:
    """Requests that had an attempt on a fault's target while the fault was on, and did not complete."""
    lines = lines_of(history, phase)
    attempts = history.attempts[history.attempts["side"] == "controller"]
    touched: set[str] = set()
    for fault in fault_windows(history):
        hit = attempts["worker"].isin(fault.targets) & (attempts["ended_s"] >= fault.injected_s)
        touched |= set(attempts.loc[hit & (attempts["begun_s"] <= fault.healed_s), "request_id"])
    at_risk = lines[lines["request_id"].isin(touched) & (lines["outcome"] != "cancelled")]
    lost = float((at_risk["outcome"] != "completed").sum())
    return Measurement(lost, None, lost, lost, len(at_risk), "observed")


METRICS: dict[str, Metric] = {
    "success_rate": Metric("share", "higher", _success_rate, by_arm=True),
    "refused_rate": Metric("share", "lower", _refused_rate, by_arm=True),
    "told_in_time_rate": Metric("share", "higher", _told_in_time_rate, by_arm=True),
    "latency_p50_s": _percentile_of(_latency, 0.50),
    "latency_p95_s": _percentile_of(_latency, 0.95),
    "latency_p99_s": _percentile_of(_latency, 0.99),
    "ttft_p50_s": _percentile_of(_first_token, 0.50, first_token=True),
    "ttft_p95_s": _percentile_of(_first_token, 0.95, first_token=True),
    "refusal_p95_s": Metric("s", "lower", _refusal),
    "inter_token_p50_s": _percentile_of(_inter_token, 0.50),
    "inter_token_p95_s": _percentile_of(_inter_token, 0.95),
    "throughput_requests_per_s": Metric("1/s", "higher", _requests_per_s, by_arm=True, per_time=True),
    "throughput_tokens_per_s": Metric("1/s", "higher", _tokens_per_s, by_arm=True, per_time=True),
    "dispatch_lag_p99_s": Metric("s", "lower", _dispatch_lag),
    "detection_s": Metric(
        "s", "lower", _fault_time(lambda fault: fault.detection_s, lambda fault: fault.detection_known)
    ),
    "mitigation_s": Metric("s", "lower", _fault_time(lambda fault: fault.mitigation_s)),
    "return_to_steady_s": Metric(
        "s", "lower", _fault_time(lambda fault: fault.return_to_steady_s, lambda fault: not fault.not_judged)
    ),
    "retry_amplification": Metric("attempts", "lower", _retry_amplification, by_arm=True),
    "lost_requests": Metric("requests", "lower", _lost_requests, by_arm=True),
    "first_attempt_success_rate": Metric("share", "higher", _first_attempts, by_arm=True),
    "wasted_attempts": Metric("attempts", "lower", _wasted_attempts, by_arm=True),
    "breaker_trips": Metric("trips", "lower", _events("breaker_opened")),
    "session_moves": Metric("moves", "higher", _session_moves),
    "late_executions": Metric("executions", "lower", _late_executions),
    **LOAD_METRICS,
    **ARM_METRICS,
}
