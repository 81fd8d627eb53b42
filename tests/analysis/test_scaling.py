"""Scaling laws find what made the numbers, and intervals hold as often as they say."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.scaling import (
    efficiencies,
    fit_law,
    gains,
    knee_of_load,
    knee_of_workers,
    levels,
    spread_of,
    why_no_law,
)

COUNTS = (1, 2, 3, 4, 6, 8, 10)


def law(workers: int, each: float, contention: float, coherence: float) -> float:
    return each * workers / (1 + contention * (workers - 1) + coherence * workers * (workers - 1))


@settings(max_examples=15, deadline=None)
@given(
    each=st.floats(0.1, 1e4),
    contention=st.floats(0, 0.5),
    coherence=st.floats(0, 0.05),
)
def test_the_law_is_found_that_made_the_throughputs(each: float, contention: float, coherence: float) -> None:
    found = fit_law({count: [law(count, each, contention, coherence)] for count in COUNTS}, 0.95)
    assert found is not None
    assert found.each == pytest.approx(each, rel=1e-4)
    assert found.contention == pytest.approx(contention, abs=1e-4)
    assert found.coherence == pytest.approx(coherence, abs=1e-5)
    assert found.error < 1e-4
    assert found.throughput(5) == pytest.approx(law(5, each, contention, coherence), rel=1e-3)


def test_the_peak_is_where_the_law_says() -> None:
    found = fit_law({count: [law(count, 10, 0.05, 0.01)] for count in COUNTS}, 0.95)
    assert found is not None
    assert found.peak == pytest.approx(math.sqrt(0.95 / 0.01), rel=0.01)
    linear = fit_law({count: [10.0 * count] for count in COUNTS}, 0.95)
    assert linear is not None
    assert linear.peak is None or linear.peak > 1e4


def test_intervals_of_the_law_hold_about_as_often_as_they_say() -> None:
    random, hits, tries = np.random.default_rng(5), 0, 30
    for seed in range(tries):
        runs = {
            count: [law(count, 20, 0.08, 0.004) * math.exp(random.normal(0, 0.03)) for _ in range(2)]
            for count in COUNTS
        }
        found = fit_law(runs, 0.95, seed)
        assert found is not None
        low, high = found.contention_interval
        hits += low <= 0.08 <= high
    # 95 % of 30 are 28.5; fewer than 23 come with a chance below one in a thousand.
    assert hits >= 23


def test_five_numbers_of_workers_are_too_few_for_a_law() -> None:
    runs = {count: [10.0 * count, 9.9 * count] for count in COUNTS[:5]}
    assert fit_law(runs, 0.95) is None
    assert why_no_law(runs) == "5 numbers of workers, 6 are needed"
    assert why_no_law({**runs, 8: [80.0]}) == ""
    assert fit_law({**runs, 8: [80.0]}, 0.95) is not None


def test_the_pooled_interval_of_a_mean_holds_as_often_as_it_says() -> None:
    random, hits, tries = np.random.default_rng(7), 0, 400
    for _ in range(tries):
        runs = {count: [10 * count * math.exp(random.normal(0, 0.05)) for _ in range(2)] for count in COUNTS}
        level = levels(runs, 0.9)[3]
        assert level.interval is not None
        hits += level.interval[0] <= 40 <= level.interval[1]
    assert 0.85 <= hits / tries <= 0.95


def test_efficiency_is_against_the_smallest_cluster() -> None:
    found = efficiencies({2: [20.0, 20.0], 4: [30.0, 30.0]}, 0.95)
    assert [(each.workers, each.base) for each in found] == [(4, 2)]
    assert found[0].value == pytest.approx(0.75)
    assert found[0].interval == pytest.approx((0.75, 0.75))


def test_without_repeats_there_is_no_interval() -> None:
    runs = {1: [10.0], 2: [19.0]}
    assert spread_of(runs) is None
    intervals = [each.interval for each in levels(runs, 0.95)]
    intervals += [each.interval for each in efficiencies(runs, 0.95)] + [each.interval for each in gains(runs, 0.95)]
    assert intervals == [None] * 4


def test_the_knee_is_where_one_more_brings_less_than_half() -> None:
    runs = {1: [10.0], 2: [19.0], 3: [25.0], 4: [28.0], 6: [29.0]}
    assert [round(each.value, 2) for each in gains(runs, 0.95)] == [0.9, 0.6, 0.3, 0.05]
    assert knee_of_workers(runs) == 3
    assert knee_of_workers({1: [10.0], 2: [19.0]}) is None


def test_the_knee_of_a_load_is_where_power_is_highest() -> None:
    # A queue with one server that does 10/s: latency is 1 / (10 - load), and power is highest at half of it.
    loads = [1.0, 3.0, 5.0, 7.0, 9.0]
    found = knee_of_load(loads, [1 / (10 - load) for load in loads])
    assert found is not None
    assert (found.place, found.throughput) == (2, 5.0)
    assert knee_of_load(loads[:2], [0.1, 0.2]) is None
    assert knee_of_load([1.0, 2.0, 3.0], [0.1, 0.1, 0.1]) is None
