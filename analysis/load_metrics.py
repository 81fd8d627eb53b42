"""Metrics of how a cluster bears its load: queues, goodput, batches, a phase against the baseline, and drift."""

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import theilslopes

from analysis.comparison import Percentile, compare
from analysis.facts import CannotJudge, finished
from analysis.history import History
from analysis.measurement import Measurement, Metric, completed_lines, lines_of, proportion, span
from analysis.statistics import Values

BLOCKS = 20
"""Of a phase that is compared with another: see statistics.batch_means for the number."""

DRIFT_BINS = 30
DRIFT_BINS_MIN = 10
DRIFT_S = 600.0
"""Drift is a share of the mean per ten minutes."""

QUIET_S = 2.0
"""For how long a queue must stay at its base before it counts as back there."""


def queue_depth(history: History) -> "pd.Series[float]":
    """How many requests waited at controllers and workers together, by time in seconds since the run began.

    Nodes are sampled at times of their own: between two samples the last one holds.
    """
    nodes = history.nodes[history.nodes["role"].isin(("controller", "worker"))]
    if nodes.empty:
        return pd.Series(dtype=float)
    each = nodes.pivot_table(index="time_s", columns="node", values="queue_depth", aggfunc="last")
    return each.ffill().fillna(0.0).sum(axis=1)


def _queue_in(history: History, phase: str | None) -> "pd.Series[float]":
    start_s, end_s = span(history, phase)
    depth = queue_depth(history)
    return depth[(depth.index >= start_s) & (depth.index < end_s)]


def _observed(value: float | None, samples: int) -> Measurement:
    return Measurement(value, None, value, value, samples, "observed")


def _queue_max(history: History, phase: str | None, confidence: float) -> Measurement:
    depth = _queue_in(history, phase)
    return _observed(float(depth.max()) if len(depth) else None, len(depth))


def _queue_return(history: History, phase: str | None, confidence: float) -> Measurement:
    """From the phase's start until no more waited than at any time of the baseline, and that for QUIET_S or longer."""
    start_s, end_s = span(history, phase)
    base = _queue_in(history, baseline_phase(history))
    depth = _queue_in(history, phase)
    if base.empty or depth.empty:
        return _observed(None, 0)
    above = depth.index[depth.to_numpy() > base.max()].to_numpy()
    # It may have been back for a while and then up again: every stretch between two samples above counts.
    edges = [start_s, *above.tolist(), end_s]
    quiet = (before_s for before_s, after_s in pairwise(edges) if after_s - before_s >= QUIET_S)
    back_s = next(quiet, None)
    return _observed(None if back_s is None else back_s - start_s, len(depth))


def baseline_phase(history: History) -> str:
    """The name of the phase that others are compared with."""
    return str(history.experiment.get("baseline_phase", "baseline"))


def latency_objective_s(history: History) -> float:
    """The lowest latency limit of the steady state. Raises CannotJudge when it sets none."""
    criteria = history.experiment.get("steady_state")
    limits = [
        float(each["at_most"])
        for each in (criteria.values() if isinstance(criteria, Mapping) else ())
        if str(each.get("metric", "")).startswith("latency_") and each.get("at_most") is not None
    ]
    if not limits:
        raise CannotJudge("the steady state sets no latency limit, so nobody knows what is good enough")
    return min(limits)


def _goodput(history: History, phase: str | None, confidence: float) -> Measurement:
    """Completed within the steady state's latency limit, of all that somebody still wanted."""
    limit_s = latency_objective_s(history)
    lines = lines_of(history, phase)
    wanted = lines[lines["outcome"] != "cancelled"]
    good = (wanted["outcome"] == "completed") & (wanted["ended_s"] - wanted["intended_s"] <= limit_s)
    return proportion(int(good.sum()), len(wanted), confidence)


def _batch(history: History, phase: str | None) -> tuple[float | None, int]:
    """Tokens made per step by all workers, and in how many steps: the growth of their counters over the phase."""
    start_s, end_s = span(history, phase)
    samples = history.nodes[(history.nodes["role"] == "worker") & history.nodes["time_s"].between(start_s, end_s)]
    counters = samples.groupby(["node", "incarnation"])[["tokens_made", "steps"]]
    grown = (counters.max() - counters.min()).sum()
    steps = int(grown["steps"])
    return (float(grown["tokens_made"]) / steps if steps else None), steps


def _batch_mean(history: History, phase: str | None, confidence: float) -> Measurement:
    return _observed(*_batch(history, phase))


def _batch_ratio(history: History, phase: str | None, confidence: float) -> Measurement:
    during, steps = _batch(history, phase)
    before, _ = _batch(history, baseline_phase(history))
    return _observed(during / before if during is not None and before else None, steps)


def _latency_ratio(share: float) -> Callable[[History, str | None, float], Measurement]:
    """A percentile of the latency, end to end from the intended time, against that of the baseline."""

    def measure_latency_ratio(history: History, phase: str | None, confidence: float) -> Measurement:
        during, before = (_latency_blocks(history, name) for name in (phase, baseline_phase(history)))
        samples = sum(map(len, during))
        found = compare(during, before, Percentile(share), paired=False, confidence=confidence)
        if found is None:
            return Measurement(None, None, None, None, samples, "ratio")
        seen = f"a difference below {100 * found.detectable:.3g} % cannot be told from none here"
        return Measurement(found.ratio, found.interval, found.lower, found.upper, samples, "ratio", seen)

    return measure_latency_ratio


def _latency_blocks(history: History, phase: str | None) -> list[Values]:
    start_s, end_s = span(history, phase)
    rows = completed_lines(history, phase)
    edges = np.linspace(start_s, end_s, BLOCKS + 1)[1:-1]
    block = np.searchsorted(edges, rows["intended_s"].to_numpy(dtype=float), side="right")
    latency = (rows["ended_s"] - rows["intended_s"]).to_numpy(dtype=float)
    return [latency[block == number] for number in range(BLOCKS)]


def drift(times_s: Values, values: Values, confidence: float, resolution: float = 0.0) -> Measurement:
    """The robust slope of a series as a share of its mean per DRIFT_S, from its means over bins.

    Theil and Sen's median of slopes with the interval of Sen, Estimates of the regression coefficient based on
    Kendall's tau, Journal of the American Statistical Association 63 (1968). It supposes independent values: neighbours
    that are not are put into one bin. No value with fewer than DRIFT_BINS_MIN bins. resolution: to which the values are
    known, 1 for counts: many equal ones would otherwise look like certainty.
    """
    if len(values) < DRIFT_BINS_MIN or not values.mean() > 0:
        return Measurement(None, None, None, None, len(values), "slope")
    scale = DRIFT_S / float(values.mean())
    slope, _, low, high = theilslopes(values, times_s, alpha=confidence)
    _, _, lower, upper = theilslopes(values, times_s, alpha=max(0.5, 2 * confidence - 1))
    blur = resolution * scale / float(times_s[-1] - times_s[0])
    interval = (float(low) * scale - blur, float(high) * scale + blur)
    return Measurement(
        value=float(slope) * scale,
        interval=interval,
        lower=float(lower) * scale - blur,
        upper=float(upper) * scale + blur,
        samples=len(values),
        estimator="slope",
    )


def _bins(history: History, phase: str | None) -> tuple[Values, Values]:
    """The edges of the bins, and their middles."""
    start_s, end_s = span(history, phase)
    edges: Values = np.linspace(start_s, end_s, DRIFT_BINS + 1)
    return edges, (edges[1:] + edges[:-1]) / 2


def _binned(
    edges: Values, middles: Values, times_s: Any, values: Any, reduce: Callable[[Any], float]
) -> tuple[Values, Values]:
    """The middles of the bins that hold something, and what `reduce` makes of each."""
    number = np.searchsorted(edges, np.asarray(times_s, dtype=float), side="right") - 1
    known = np.asarray(values, dtype=float)
    held = [index for index in range(len(middles)) if bool((number == index).any())]
    return middles[held], np.array([reduce(known[number == index]) for index in held])


def _latency_drift(history: History, phase: str | None, confidence: float) -> Measurement:
    """Of the median latency, end to end from the intended time."""
    rows = completed_lines(history, phase)
    found = _binned(*_bins(history, phase), rows["intended_s"], rows["ended_s"] - rows["intended_s"], np.median)
    return drift(*found, confidence)


def _throughput_drift(history: History, phase: str | None, confidence: float) -> Measurement:
    """Of the requests completed per second."""
    edges, middles = _bins(history, phase)
    rows = finished(history)
    counts, _ = np.histogram(rows.loc[rows["outcome"] == "completed", "ended_s"].to_numpy(dtype=float), bins=edges)
    return drift(middles, counts.astype(float), confidence, resolution=1.0)


def _memory_drift(history: History, phase: str | None, confidence: float) -> Measurement:
    """Of the memory of that worker or controller whose memory grows most.

    Resident bytes of its process; where there is no process, as in a simulated world, what a worker says it holds
    besides kept caches, which grow to their limit and are no leak. The bounds are those of as many nodes at once
    (Bonferroni).
    """
    start_s, end_s = span(history, phase)
    nodes = history.nodes[history.nodes["role"].isin(("controller", "worker"))]
    nodes = nodes[nodes["time_s"].between(start_s, end_s)]
    resident = bool(nodes["resident_bytes"].notna().any())
    held = nodes["resident_bytes"] if resident else nodes["memory_bytes"] - nodes["cache_bytes"]
    told = nodes.assign(held=held)[held.notna() & (held > 0)]
    edges, middles = _bins(history, phase)
    each = {
        str(name): _binned(edges, middles, rows["time_s"], rows["held"], np.mean) for name, rows in told.groupby("node")
    }
    found = {name: drift(*series, 1 - (1 - confidence) / len(each)) for name, series in each.items()}
    slopes = {name: one.value for name, one in found.items() if one.value is not None}
    if not slopes:
        return Measurement(None, None, None, None, len(told), "slope")
    worst = max(slopes, key=lambda name: slopes[name])
    bounds = [(one.lower, one.upper) for one in found.values() if one.lower is not None and one.upper is not None]
    what = "resident memory" if resident else "what it holds, for there is no process,"
    return Measurement(
        value=slopes[worst],
        interval=found[worst].interval,
        lower=max(lower for lower, _ in bounds),
        upper=max(upper for _, upper in bounds),
        samples=min(one.samples for one in found.values()),
        estimator="slope",
        note=f"{what} of {worst}, which grew most of {len(each)} nodes",
    )


LOAD_METRICS: dict[str, Metric] = {
    "queue_depth_max": Metric("requests", "lower", _queue_max),
    "queue_return_s": Metric("s", "lower", _queue_return),
    "goodput_rate": Metric("share", "higher", _goodput),
    "batch_mean": Metric("sequences", "higher", _batch_mean),
    "batch_mean_ratio": Metric("x baseline", "higher", _batch_ratio),
    "latency_p50_ratio": Metric("x baseline", "lower", _latency_ratio(0.50)),
    "latency_p95_ratio": Metric("x baseline", "lower", _latency_ratio(0.95)),
    "latency_drift": Metric("share", "lower", _latency_drift),
    "throughput_drift": Metric("share", "higher", _throughput_drift),
    "memory_drift": Metric("share", "lower", _memory_drift),
}
"""Drifts are shares of the mean per ten minutes."""
