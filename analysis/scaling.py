"""Laws of scaling: what more workers are worth, with intervals, from the runs of a sweep. Pure functions of numbers."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import msgspec
import numpy as np
from scipy.optimize import nnls
from scipy.stats import t as student_t

from analysis.statistics import Values

FIT_POINTS_MIN = 6
"""A law of three parameters fits three points whatever they are; with twice as many it can be seen to be wrong."""
KNEE_GAIN = 0.5
LOADS_MIN = 3
RESAMPLES = 1000
_PARAMETERS = 3

Interval = tuple[float, float]
Runs = Mapping[int, Sequence[float]]
"""Number of workers to the throughput of each run with so many, in any unit per second; all of them positive."""


class Spread(msgspec.Struct, frozen=True):
    """How much repeats of a point differ: the standard deviation of the logarithm, and its degrees of freedom."""

    log: float
    freedom: int


class Level(msgspec.Struct, frozen=True):
    """A point of a series. mean: the geometric one, of `runs` runs; interval: of it, None where nothing is repeated."""

    workers: int
    runs: int
    mean: float
    interval: Interval | None


class Efficiency(msgspec.Struct, frozen=True):
    """Throughput for each worker, as a share of that of the smallest cluster, `base` workers; 1 is perfect."""

    workers: int
    base: int
    value: float
    interval: Interval | None


class Gain(msgspec.Struct, frozen=True):
    """What each worker added from the point before brings, as a share of what one of the smallest cluster does."""

    workers: int
    value: float
    interval: Interval | None


class Law(msgspec.Struct, frozen=True):
    """Gunther's universal scalability law, throughput(N) = each * N / (1 + contention (N - 1) + coherence N (N - 1)).

    each: of one worker, per second. contention: the share of the work that cannot be done side by side. coherence: what
    every pair of workers costs. peak: the number of workers with the highest throughput, None where more is always
    better. Intervals hold with `confidence`; of the peak None too where too many resamples have no peak. error: the
    root mean square of the relative differences between runs and law. points: distinct numbers of workers.
    """

    each: float
    contention: float
    coherence: float
    each_interval: Interval
    contention_interval: Interval
    coherence_interval: Interval
    peak: float | None
    peak_interval: Interval | None
    error: float
    points: int
    runs: int
    confidence: float

    def throughput(self, workers: float) -> float:
        """What the law says of so many workers."""
        return float(_law(np.array([workers]), self.each, self.contention, self.coherence)[0])


class Knee(msgspec.Struct, frozen=True):
    """Where a load is best: its place in the given order, its throughput per second, and its latency in seconds."""

    place: int
    throughput: float
    latency_s: float


def spread_of(runs: Runs) -> Spread | None:
    """How much repeats differ, of all points together: they are taken to spread alike, relative to their mean.

    With two runs a point nothing could be said of any of them alone. None where no point has two runs.
    """
    logs = [np.log(np.asarray(each, dtype=float)) for each in runs.values() if len(each) > 1]
    freedom = sum(len(each) - 1 for each in logs)
    if freedom == 0:
        return None
    return Spread(math.sqrt(sum(float(((each - each.mean()) ** 2).sum()) for each in logs) / freedom), freedom)


def levels(runs: Runs, confidence: float) -> list[Level]:
    """The points by number of workers, each with Student's t interval from the pooled spread."""
    spread = spread_of(runs)
    found = []
    for workers in sorted(runs):
        mean, count = _mean(runs[workers]), len(runs[workers])
        found.append(Level(workers, count, mean, _around(mean, spread, 1 / count, confidence)))
    return found


def efficiencies(runs: Runs, confidence: float) -> list[Efficiency]:
    """Of every point but the smallest, against it."""
    spread, base = spread_of(runs), min(runs)
    each, count = _mean(runs[base]) / base, len(runs[base])
    found = []
    for workers in sorted(runs)[1:]:
        value = _mean(runs[workers]) / workers / each
        interval = _around(value, spread, 1 / len(runs[workers]) + 1 / count, confidence)
        found.append(Efficiency(workers, base, value, interval))
    return found


def gains(runs: Runs, confidence: float) -> list[Gain]:
    """Of every point but the smallest, from the point before.

    The interval is that of a difference of two means and takes the one that it is divided by for known (delta method
    without its smallest term: both means are of the same order, and the divisor is a mean of runs too).
    """
    spread, base = spread_of(runs), min(runs)
    each, found = _mean(runs[base]) / base, []
    order = sorted(runs)
    for before, workers in pairwise(order):
        less, more = _mean(runs[before]), _mean(runs[workers])
        value = (more - less) / (workers - before) / each
        interval = None
        if spread is not None:
            error = spread.log * math.hypot(more / math.sqrt(len(runs[workers])), less / math.sqrt(len(runs[before])))
            half = _quantile(spread, confidence) * error / (workers - before) / each
            interval = (value - half, value + half)
        found.append(Gain(workers, value, interval))
    return found


def knee_of_workers(runs: Runs) -> int | None:
    """The largest number of workers up to which each one added brings at least half of what one of the smallest
    cluster does; None where that holds for all that were measured, so that there is no knee within them."""
    order = sorted(runs)
    for before, gain in zip(order, gains(runs, 0.95), strict=False):
        if gain.value < KNEE_GAIN:
            return before
    return None


def knee_of_load(throughputs: Sequence[float], latencies_s: Sequence[float]) -> Knee | None:
    """The load with the highest power, throughput over latency, where one more does not pay any longer.

    Kleinrock, Power and deterministic rules of thumb for probabilistic problems in computer communications, Proceedings
    of the International Conference on Communications (1979). None with fewer than three loads, and where the highest
    or the lowest load has it, for then the knee may lie beyond.
    """
    powers = [each / latency_s for each, latency_s in zip(throughputs, latencies_s, strict=True)]
    if len(powers) < LOADS_MIN:
        return None
    place = int(np.argmax(powers))
    if place in (0, len(powers) - 1):
        return None
    return Knee(place, throughputs[place], latencies_s[place])


def fit_law(runs: Runs, confidence: float, seed: int = 0) -> Law | None:
    """The law of a series; None with fewer than six numbers of workers.

    Gunther, Guerrilla Capacity Planning (2007), chapter 4, and A General Theory of Computational Scalability Based on
    Rational Functions, arXiv:0808.1431 (2008); with the throughput of one worker as a third parameter, as in Gunther,
    Puglia and Tomasette, Hadoop Superlinear Scalability, Communications of the ACM 58 (2015). None of the three is
    negative: it is no law of super-linear scaling.

    N over throughput is linear in 1 / each, contention / each and coherence / each. Relative differences are squared,
    for a run spreads in proportion to what it does; their sum has one lowest point, which non-negative least squares
    find. Intervals are percentiles of a bootstrap of the residuals, which are stretched by sqrt(n / (n - 3)) for the
    three parameters that fit them: Davison and Hinkley, Bootstrap Methods and their Application (1997), section 6.2.
    """
    if len(runs) < FIT_POINTS_MIN:
        return None
    workers = np.array([count for count, each in runs.items() for _ in each], dtype=float)
    made = np.array([value for each in runs.values() for value in each], dtype=float)
    found = _fitted(workers, made)
    expected = _law(workers, *found)
    logs = np.log(made / expected)
    residuals = (logs - logs.mean()) * math.sqrt(len(made) / (len(made) - _PARAMETERS))
    random = np.random.default_rng(seed)
    drawn = random.choice(residuals, size=(RESAMPLES, len(made)))
    again = np.array([_fitted(workers, expected * np.exp(each)) for each in drawn])
    shares = [(1 - confidence) / 2, (1 + confidence) / 2]
    low, high = np.quantile(again, shares, axis=0)
    return Law(
        *found,
        each_interval=(float(low[0]), float(high[0])),
        contention_interval=(float(low[1]), float(high[1])),
        coherence_interval=(float(low[2]), float(high[2])),
        peak=_peak(found),
        peak_interval=_peak_interval([_peak(tuple(each)) for each in again], shares),
        error=float(np.sqrt(np.mean((made / expected - 1) ** 2))),
        points=len(runs),
        runs=len(made),
        confidence=confidence,
    )


def why_no_law(runs: Runs) -> str:
    """Why there is none, a phrase; empty where there may be one."""
    count = len(runs)
    return f"{count} numbers of workers, {FIT_POINTS_MIN} are needed" if count < FIT_POINTS_MIN else ""


def _law(workers: Values, each: float, contention: float, coherence: float) -> Values:
    shape: Values = 1 + contention * (workers - 1) + coherence * workers * (workers - 1)
    return each * workers / shape


def _fitted(workers: Values, made: Values) -> tuple[float, float, float]:
    terms = np.stack([np.ones_like(workers), workers - 1, workers * (workers - 1)], axis=1)
    # Each row times throughput / N: the difference to 1 is the relative one.
    solution, _ = nnls(terms * (made / workers)[:, None], np.ones_like(made))
    base = max(float(solution[0]), np.finfo(float).tiny)
    return 1 / base, float(solution[1]) / base, float(solution[2]) / base


def _peak(found: tuple[float, ...]) -> float | None:
    """The derivative is zero where coherence N^2 = 1 - contention."""
    _, contention, coherence = found
    return math.sqrt((1 - contention) / coherence) if coherence > 0 and contention < 1 else None


def _peak_interval(peaks: Sequence[float | None], shares: Sequence[float]) -> Interval | None:
    """No peak is one beyond all others."""
    low, high = np.quantile([math.inf if peak is None else peak for peak in peaks], shares, method="nearest")
    return (float(low), float(high)) if math.isfinite(high) else None


def _mean(values: Sequence[float]) -> float:
    return math.exp(float(np.mean(np.log(np.asarray(values, dtype=float)))))


def _around(value: float, spread: Spread | None, share: float, confidence: float) -> Interval | None:
    """share: of the variance of one run, the variance of the value."""
    if spread is None:
        return None
    half = _quantile(spread, confidence) * spread.log * math.sqrt(share)
    return value * math.exp(-half), value * math.exp(half)


def _quantile(spread: Spread, confidence: float) -> float:
    return float(student_t.ppf((1 + confidence) / 2, spread.freedom))
