"""Exact bounds of proportions and percentiles, and means of series whose values depend on each other."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.special import betaincinv
from scipy.stats import binom
from scipy.stats import t as student_t

Values = npt.NDArray[np.float64]
BATCHES = 20
_RANKS_MAX = 4000


def proportion_lower(hits: int, samples: int, confidence: float) -> float:
    """One-sided lower bound of a proportion, in 0..1: the truth lies below it with at most 1 - confidence.

    Clopper and Pearson, The use of confidence or fiducial limits illustrated in the case of the binomial,
    Biometrika 26 (1934), through the beta quantile. Raises ValueError unless 0 <= hits <= samples, samples > 0.
    """
    _check_counts(hits, samples)
    return 0.0 if hits == 0 else float(betaincinv(hits, samples - hits + 1, 1 - confidence))


def proportion_upper(hits: int, samples: int, confidence: float) -> float:
    """One-sided upper bound of a proportion, in 0..1; see `proportion_lower`."""
    _check_counts(hits, samples)
    return 1 - proportion_lower(samples - hits, samples, confidence)


def proportion_interval(hits: int, samples: int, confidence: float) -> tuple[float, float]:
    """Two-sided Clopper-Pearson interval: each tail holds half of 1 - confidence."""
    each = (1 + confidence) / 2
    return proportion_lower(hits, samples, each), proportion_upper(hits, samples, each)


def samples_needed(share: float, confidence: float, failures: int = 0) -> int:
    """How many independent samples with at most `failures` of them over a limit show that the `share` percentile is
    below it (or that a rate is at least `share`), with `confidence`.

    Wilks, Determination of sample sizes for setting tolerance limits, Annals of Mathematical Statistics 12 (1941):
    the smallest n with P(Binomial(n, 1 - share) <= failures) <= 1 - confidence. 459 for 0.99, 0.99, 0.
    """
    if not (0 < share < 1 and 0 < confidence < 1 and failures >= 0):
        raise ValueError("share and confidence lie between 0 and 1, failures are not negative")
    low, high = failures, failures + 1
    while binom.cdf(failures, high, 1 - share) > 1 - confidence:
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        if binom.cdf(failures, middle, 1 - share) > 1 - confidence:
            low = middle
        else:
            high = middle
    return high


def percentile(values: Sequence[float] | Values, share: float) -> float | None:
    """The smallest value that at least `share` of the values do not exceed.

    None with fewer than 1 / (1 - share) values: the sample does not reach that far into the tail.
    """
    ordered = np.sort(np.asarray(values, dtype=float))
    # The slack keeps 1 / (1 - 0.99), which is a hair above 100, from asking for 101.
    if len(ordered) * (1 - share) < 1 - 1e-9:
        return None
    return float(ordered[max(1, math.ceil(share * len(ordered) - 1e-9)) - 1])


def percentile_lower(values: Sequence[float] | Values, share: float, confidence: float) -> float | None:
    """One-sided lower bound of a percentile: an order statistic; None when no sample value is low enough.

    Distribution-free: the number of values at or below the true percentile is binomial. David and Nagaraja, Order
    Statistics (2003), section 7.1. It supposes independent values.
    """
    ordered = np.sort(np.asarray(values, dtype=float))
    below = binom.ppf(1 - confidence, len(ordered), share) if len(ordered) else 0
    rank = int(below) + (binom.cdf(below, len(ordered), share) <= 1 - confidence)
    return float(ordered[rank - 1]) if rank >= 1 else None


def percentile_upper(values: Sequence[float] | Values, share: float, confidence: float) -> float | None:
    """One-sided upper bound of a percentile; None when no sample value is high enough (459 needed for p99 at 99 %)."""
    ordered = np.sort(np.asarray(values, dtype=float))
    rank = int(binom.ppf(confidence, len(ordered), share)) + 1 if len(ordered) else 1
    return float(ordered[rank - 1]) if rank <= len(ordered) else None


def percentile_interval(
    values: Sequence[float] | Values, share: float, confidence: float
) -> tuple[float, float] | None:
    """Two-sided interval of a percentile, half of 1 - confidence in each tail; None where the sample is too small."""
    each = (1 + confidence) / 2
    lower, upper = percentile_lower(values, share, each), percentile_upper(values, share, each)
    return None if lower is None or upper is None else (lower, upper)


def series_percentile_bounds(
    series: Sequence[float] | Values, share: float, confidence: float
) -> tuple[float | None, float | None]:
    """One-sided lower and upper bound of a percentile of values in order of time, which may depend on each other.

    Like `percentile_lower` and `percentile_upper`, which it agrees with where nothing is correlated, each bound is the
    last value, counted from the end of the sample, at which the share of values beyond it is shown by its
    Clopper-Pearson bound; but the values count for as many as the correlation of exactly this, being beyond or not,
    leaves of them (batch means as of `effective_samples`; Heidelberger and Lewis, Quantile estimation in dependent
    sequences, Operations Research 32 (1984)). So forty slow requests of one stall are one piece of news. How values
    beyond the largest one would cluster nobody can see: those that were never seen count as independent, and 459
    values without one over a limit still show a p99. A series too short for batches counts as it is.
    """
    values = np.asarray(series, dtype=float)
    ordered = np.sort(values)
    if len(ordered) == 0:
        return None, None
    candidates = np.unique(ordered[_ranks(len(ordered))])
    upper = candidates[_shown(values, candidates, "right", share, confidence)]
    lower = candidates[_shown(values, candidates, "left", share, confidence)]
    return (float(lower[-1]) if len(lower) else None), (float(upper[0]) if len(upper) else None)


def series_percentile_interval(
    series: Sequence[float] | Values, share: float, confidence: float
) -> tuple[float, float] | None:
    """Two-sided interval out of `series_percentile_bounds`, half of 1 - confidence in each tail, or None."""
    lower, upper = series_percentile_bounds(series, share, (1 + confidence) / 2)
    return None if lower is None or upper is None else (lower, upper)


def _ranks(size: int) -> npt.NDArray[np.int64]:
    """All places of a small sorted sample; of a large one the ends and a grid, which loses less than a thousandth."""
    if size <= _RANKS_MAX:
        return np.arange(size)
    ends = _RANKS_MAX // 4
    grid = np.linspace(0, size - 1, _RANKS_MAX // 2).astype(np.int64)
    return np.unique(np.concatenate([np.arange(ends), grid, np.arange(size - ends, size)]))


def _shown(
    values: Values, candidates: Values, side: Literal["left", "right"], share: float, confidence: float
) -> npt.NDArray[np.bool_]:
    """At which candidates, ascending, it is shown that at least (`right`) `share` of the values do not exceed them, or
    (`left`) that at most `share` are smaller, without a gap from the end where nothing is beyond."""
    hits = np.searchsorted(np.sort(values), candidates, side=side).astype(float)
    inflation = _inflation(values, candidates, side)
    samples, hits = len(values) / inflation, hits / inflation
    if side == "right":
        # With no hits there is nothing to invert; the largest candidates, which count, have some.
        shown = betaincinv(np.maximum(hits, 1e-9), samples - hits + 1, 1 - confidence) >= share
        return np.logical_and.accumulate(shown[::-1])[::-1]
    shown = 1 - betaincinv(np.maximum(samples - hits, 1e-9), hits + 1, 1 - confidence) <= share
    return np.logical_and.accumulate(shown)


def _inflation(values: Values, candidates: Values, side: Literal["left", "right"]) -> Values:
    """By how much the batch means of `value <= candidate` (or `<`) vary more than independent values would, from 1."""
    size = len(values) // BATCHES
    if size < 2:
        return np.ones(len(candidates))
    batches = np.sort(values[len(values) - size * BATCHES :].reshape(BATCHES, size), axis=1)
    shares = np.array([np.searchsorted(batch, candidates, side=side) for batch in batches]) / size
    middle = shares.mean(axis=0)
    independent = middle * (1 - middle) / size
    seen = shares.var(axis=0, ddof=1)
    found: Values = np.divide(seen, independent, out=np.ones(len(candidates)), where=independent > 0)
    return np.maximum(found, 1.0)


def batch_means(values: Sequence[float] | Values, batches: int = BATCHES) -> Values:
    """Means of `batches` consecutive stretches of equal length; the first few values are left out to make them equal.

    Empty when there are fewer than two values per batch. 10 to 30 batches are about as good as any number: Schmeiser,
    Batch size effects in the analysis of simulation output, Operations Research 30 (1982).
    """
    series = np.asarray(values, dtype=float)
    size = len(series) // batches
    if size < 2:
        return np.empty(0)
    means: Values = series[len(series) - size * batches :].reshape(batches, size).mean(axis=1)
    return means


def effective_samples(values: Sequence[float] | Values, batches: int = BATCHES) -> float:
    """How many independent values would give the mean of this series as much certainty, between 1 and its length.

    Batch means: were the values independent, the means of batches of b values would vary by variance / b. What they
    vary more is correlation (Law, Simulation Modeling and Analysis (2015), section 9.5). The estimate itself is good
    to about a third. A series too short for batches counts as it is.
    """
    series = np.asarray(values, dtype=float)
    means = batch_means(series, batches)
    spread = float(series.var(ddof=1)) if len(series) > 1 else 0.0
    if len(means) == 0 or spread == 0:
        return float(len(series))
    inflation = (len(series) // batches) * float(means.var(ddof=1)) / spread
    return float(np.clip(len(series) / max(inflation, 1.0), 1, len(series)))


def mean_interval(
    values: Sequence[float] | Values, confidence: float, batches: int = BATCHES
) -> tuple[float, float] | None:
    """Two-sided interval for the mean of a stationary, correlated series, by batch means and Student's t.

    None when the series is too short for batches. Source as of `effective_samples`.
    """
    means = batch_means(values, batches)
    if len(means) == 0:
        return None
    half = float(student_t.ppf((1 + confidence) / 2, len(means) - 1) * means.std(ddof=1) / math.sqrt(len(means)))
    middle = float(means.mean())
    return middle - half, middle + half


def _check_counts(hits: Any, samples: Any) -> None:
    if not 0 <= hits <= samples or samples < 1:
        raise ValueError(f"expected 0 <= hits <= samples and samples > 0, got {hits} of {samples}")
