"""The statistics: known values, and that intervals hold as often as they promise."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import lfilter
from scipy.stats import binom, norm

from analysis import statistics


@pytest.mark.parametrize(
    ("share", "confidence", "failures", "needed"),
    [(0.99, 0.99, 0, 459), (0.99, 0.99, 1, 662), (0.95, 0.95, 0, 59), (0.5, 0.9, 0, 4)],
)
def test_samples_needed(share: float, confidence: float, failures: int, needed: int) -> None:
    assert statistics.samples_needed(share, confidence, failures) == needed


@given(st.floats(0.5, 0.995), st.floats(0.6, 0.99), st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_samples_needed_is_the_least_that_the_bound_accepts(share: float, confidence: float, failures: int) -> None:
    needed = statistics.samples_needed(share, confidence, failures)
    assert statistics.proportion_lower(needed - failures, needed, confidence) >= share - 1e-9
    if needed - 1 > failures:
        assert statistics.proportion_lower(needed - 1 - failures, needed - 1, confidence) < share + 1e-9


def test_a_known_clopper_pearson_interval() -> None:
    # R: binom.test(9, 10)$conf.int
    assert statistics.proportion_interval(9, 10, 0.95) == pytest.approx((0.5549839, 0.9974714), abs=1e-6)
    assert statistics.proportion_interval(0, 10, 0.95)[0] == 0.0
    assert statistics.proportion_interval(10, 10, 0.95)[1] == 1.0


@pytest.mark.parametrize(("hits", "samples"), [(1, 0), (0, 0), (-1, 5), (6, 5)])
def test_impossible_counts_are_refused(hits: int, samples: int) -> None:
    with pytest.raises(ValueError, match="hits"):
        statistics.proportion_lower(hits, samples, 0.9)


@given(st.integers(1, 60), st.floats(0.01, 0.99), st.floats(0.55, 0.99))
@settings(max_examples=60, deadline=None)
def test_the_bounds_of_a_proportion_hold_as_often_as_promised(samples: int, truth: float, confidence: float) -> None:
    weights = binom.pmf(np.arange(samples + 1), samples, truth)
    below = sum(w for hits, w in enumerate(weights) if statistics.proportion_lower(hits, samples, confidence) <= truth)
    above = sum(w for hits, w in enumerate(weights) if statistics.proportion_upper(hits, samples, confidence) >= truth)
    assert min(below, above) >= confidence - 1e-9


@given(st.integers(1, 600), st.sampled_from([0.5, 0.9, 0.95, 0.99]), st.sampled_from([0.8, 0.95, 0.99]))
@settings(max_examples=80, deadline=None)
def test_the_bounds_of_a_percentile_hold_as_often_as_promised(samples: int, share: float, confidence: float) -> None:
    # The values 1..n stand for the order statistics: rank r is not above the percentile when r values are below it.
    ranks = np.arange(1, samples + 1, dtype=float)
    lower = statistics.percentile_lower(ranks, share, confidence)
    upper = statistics.percentile_upper(ranks, share, confidence)
    if lower is not None:
        assert 1 - binom.cdf(lower - 1, samples, share) >= confidence - 1e-9
    if upper is not None:
        assert binom.cdf(upper - 1, samples, share) >= confidence - 1e-9
        if upper > 1:
            assert binom.cdf(upper - 2, samples, share) < confidence


def test_a_sample_too_small_has_no_bound_and_no_far_percentile() -> None:
    assert statistics.percentile_upper(range(459), 0.99, 0.99) == 458
    assert statistics.percentile_upper(range(458), 0.99, 0.99) is None
    assert statistics.percentile_interval(range(50), 0.99, 0.9) is None
    assert statistics.percentile([], 0.5) is None
    assert statistics.percentile_upper([], 0.5, 0.9) is None
    assert statistics.percentile_lower([], 0.5, 0.9) is None
    assert statistics.percentile(range(99), 0.99) is None
    assert statistics.percentile(range(1, 101), 0.99) == 99
    assert statistics.percentile([3, 1, 2], 0.5) == 2


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=80), st.sampled_from([0.5, 0.9, 0.95]))
def test_a_percentile_is_a_value_that_enough_do_not_exceed(values: list[float], share: float) -> None:
    found = statistics.percentile(values, share)
    if found is None:
        assert len(values) * (1 - share) < 1
        return
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values) - 1e-6
    assert sum(value < found for value in values) < share * len(values)


def test_correlated_values_count_for_less() -> None:
    random = np.random.default_rng(1)
    noise = random.normal(size=4000)
    correlated = np.empty(4000)
    level = 0.0
    for index, step in enumerate(noise):
        level = correlated[index] = 0.9 * level + step
    assert statistics.effective_samples(noise) > 1500
    # AR(1) with 0.9: the exact factor is (1 - 0.9) / (1 + 0.9), about 210 of 4000.
    assert 70 < statistics.effective_samples(correlated) < 600
    assert statistics.effective_samples([]) == 0
    assert statistics.effective_samples([1.0] * 100) == 100
    assert statistics.effective_samples([1.0, 2.0]) == 2


def test_the_interval_of_a_correlated_mean_holds() -> None:
    random = np.random.default_rng(2)
    held = 0
    for _ in range(200):
        series = np.empty(2000)
        level = 0.0
        for index, step in enumerate(random.normal(size=2000)):
            level = series[index] = 0.8 * level + step
        interval = statistics.mean_interval(series, 0.9)
        assert interval is not None
        held += interval[0] <= 0 <= interval[1]
    # 200 trials at 0.9: fewer than 165 would happen once in a thousand.
    assert held >= 165


def test_a_short_series_has_no_interval() -> None:
    assert statistics.mean_interval(range(39), 0.9) is None
    assert len(statistics.batch_means(range(47))) == 20
    assert math.isclose(statistics.batch_means(range(47))[-1], 45.5)


@given(st.integers(1, 300), st.sampled_from([0.5, 0.9, 0.95]), st.sampled_from([0.8, 0.95, 0.99]), st.integers(0, 9))
@settings(max_examples=80, deadline=None)
def test_what_clusters_never_narrows_the_bounds(size: int, share: float, confidence: float, seed: int) -> None:
    series = np.random.default_rng(seed).permutation(size).astype(float)
    lower, upper = statistics.series_percentile_bounds(series, share, confidence)
    least = statistics.percentile_lower(series, share, confidence)
    most = statistics.percentile_upper(series, share, confidence)
    assert lower is None or (least is not None and lower <= least)
    assert upper is None or (most is not None and upper >= most)
    if size < 2 * statistics.BATCHES:
        assert (lower, upper) == (least, most)


def test_values_never_seen_count_as_independent_and_slow_ones_in_a_row_as_one() -> None:
    assert statistics.series_percentile_bounds([0.1] * 459, 0.99, 0.99)[1] == 0.1
    assert statistics.series_percentile_bounds([0.1] * 458, 0.99, 0.99)[1] is None
    assert statistics.series_percentile_bounds([], 0.5, 0.9) == (None, None)
    spread, stalled = np.full(1000, 0.1), np.full(1000, 0.1)
    spread[::50] = stalled[480:500] = 5.0
    assert statistics.series_percentile_bounds(spread, 0.95, 0.95)[1] == 0.1
    # Twenty slow ones all over the run are far from 5 %; twenty of one stall may be more the next time.
    assert statistics.series_percentile_bounds(stalled, 0.95, 0.95)[1] == 5.0


@pytest.mark.parametrize(("share", "memory"), [(0.5, 0.0), (0.5, 0.8), (0.9, 0.8)])
def test_the_bounds_of_a_correlated_percentile_hold(share: float, memory: float) -> None:
    random = np.random.default_rng(4)
    truth = float(norm.ppf(share)) / math.sqrt(1 - memory**2)
    held = []
    for _ in range(300):
        series = lfilter([1.0], [1.0, -memory], random.normal(size=1100))[100:]
        lower, upper = statistics.series_percentile_bounds(series, share, 0.9)
        assert lower is not None
        assert upper is not None
        held.append((lower <= truth, truth <= upper))
    # 300 trials at 0.9: fewer than 253 would happen once in a thousand. Batches touch, which costs some per cent.
    assert np.sum(held, axis=0).min() >= 249


def test_a_large_sample_is_bounded_on_a_grid() -> None:
    series = np.random.default_rng(5).normal(size=30_000)
    lower, upper = statistics.series_percentile_bounds(series, 0.99, 0.95)
    assert lower is not None
    assert upper is not None
    assert 2.2 < lower < 2.33 < upper < 2.45
