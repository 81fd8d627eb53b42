"""Comparisons: what holds of every one, what they do with nothing to go by, and that they err as seldom as promised."""

import math
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from analysis.comparison import (
    Change,
    Comparison,
    Percentile,
    Statistic,
    compare,
    compare_estimates,
    compare_runs,
    compare_shares,
    judge_change,
    mean,
)
from analysis.statistics import Values

blocks_of_values = st.lists(st.lists(st.floats(0.1, 10), min_size=1, max_size=8).map(np.array), min_size=5, max_size=12)
statistics = st.sampled_from([mean, Percentile(0.5), Percentile(0.95)])


def found(comparison: Comparison | None) -> Comparison:
    assert comparison is not None
    return comparison


def correlated(random: np.random.Generator, size: int, memory: float = 0.8) -> Values:
    """Latencies whose logarithms are AR(1), stationary from the first on."""
    steps = random.normal(size=size) * math.sqrt(1 - memory**2)
    steps[0] = random.normal()
    level = 0.0
    logs = np.empty(size)
    for index, step in enumerate(steps):
        level = logs[index] = memory * level + step
    return np.exp(0.3 * logs)


@given(blocks_of_values, blocks_of_values, statistics, st.floats(0.6, 0.99))
@settings(max_examples=60, deadline=None)
def test_what_holds_of_every_comparison(
    above: list[Values], below: list[Values], statistic: Statistic, confidence: float
) -> None:
    seen = found(compare(above, below, statistic, paired=False, confidence=confidence))
    low, high = seen.interval
    assert low <= seen.lower <= seen.ratio * (1 + 1e-9)
    assert seen.ratio <= seen.upper * (1 + 1e-9) <= high * (1 + 1e-6)
    assert seen.detectable >= 0
    assert seen.blocks == (len(above), len(below))
    assert seen == compare(above, below, statistic, paired=False, confidence=confidence)
    doubled = found(compare([2 * block for block in above], below, statistic, paired=False, confidence=confidence))
    assert doubled.ratio == pytest.approx(2 * seen.ratio)
    assert doubled.interval == pytest.approx((2 * low, 2 * high))


@given(blocks_of_values, statistics)
@settings(max_examples=40, deadline=None)
def test_a_pair_that_is_twice_the_same_differs_by_nothing(blocks: list[Values], statistic: Statistic) -> None:
    seen = found(compare(blocks, blocks, statistic, paired=True, confidence=0.9))
    assert (seen.ratio, seen.interval, seen.detectable) == (1, (1, 1), 0)
    # The other way round is the inverse.
    tripled = [3 * block for block in blocks]
    more = found(compare(tripled, blocks, statistic, paired=True, confidence=0.9))
    less = found(compare(blocks, tripled, statistic, paired=True, confidence=0.9))
    assert more.ratio * less.ratio == pytest.approx(1)
    assert more.lower * less.upper == pytest.approx(1)


@given(blocks_of_values, blocks_of_values, st.sampled_from([0.25, 0.5, 0.9, 0.99]))
@settings(max_examples=20, deadline=None)
def test_resampling_at_once_is_resampling_one_by_one(above: list[Values], below: list[Values], share: float) -> None:
    whole = compare(above, below, Percentile(share), paired=False, confidence=0.9)
    single = compare(above, below, lambda values: Percentile(share)(values), paired=False, confidence=0.9)
    assert whole == single


def test_many_sessions_are_put_together_and_told_as_they_are() -> None:
    random = np.random.default_rng(3)
    sessions = [random.lognormal(size=1) for _ in range(2500)]
    seen = found(compare(sessions, sessions[::-1], Percentile(0.5), paired=False, confidence=0.9))
    assert seen.blocks == seen.samples == (2500, 2500)
    assert seen.ratio == 1


@pytest.mark.parametrize(
    ("above", "below"),
    [
        ([[1.0]] * 4, [[1.0]] * 9),
        ([[1.0]] * 9, [[1.0]] * 4),
        ([[1.0]] * 9, [[0.0]] * 9),
        ([[1.0]] * 9, [[-1.0]] * 9),
        ([[math.inf]] * 9, [[1.0]] * 9),
        ([[1.0]] * 9, [[]] * 9),
        ([], []),
    ],
)
@pytest.mark.parametrize("paired", [False, True])
def test_too_little_to_compare(above: list[list[float]], below: list[list[float]], paired: bool) -> None:
    if paired:
        size = min(len(above), len(below))
        above, below = above[:size], below[:size]
    sides = [[np.array(block) for block in side] for side in (above, below)]
    assert compare(sides[0], sides[1], mean, paired=paired, confidence=0.9) is None


def test_what_is_wrongly_asked_is_refused() -> None:
    good = [np.ones(2)] * 5
    with pytest.raises(ValueError, match="NaN"):
        compare([np.array([math.nan])] * 5, good, mean, paired=False, confidence=0.9)
    with pytest.raises(ValueError, match="as many blocks"):
        compare(good, [*good, np.ones(1)], mean, paired=True, confidence=0.9)
    with pytest.raises(ValueError, match="confidence"):
        compare(good, good, mean, paired=True, confidence=0.5)
    with pytest.raises(ValueError, match="tolerance"):
        judge_change(None, "lower", -0.1)


def test_a_side_that_touches_zero_has_bounds_all_the_same() -> None:
    rare = [np.array([0.0] * 9 + [float(number % 2)]) for number in range(12)]
    often = [np.ones(10)] * 12
    seen = found(compare(rare, often, mean, paired=False, confidence=0.9))
    assert seen.interval[0] <= seen.lower <= seen.ratio <= seen.upper <= seen.interval[1] < 1
    turned = found(compare(often, rare, mean, paired=False, confidence=0.9))
    assert 1 < turned.interval[0] <= turned.ratio <= turned.interval[1]


def test_a_change_is_judged_by_the_interval_and_the_tolerance() -> None:
    def seen(ratio: float, low: float, high: float) -> Comparison:
        return Comparison(ratio, (low, high), low, high, 0.1, (9, 9), (90, 90), False)

    assert judge_change(None, "lower", 0.05) is Change.CANNOT_SAY
    assert judge_change(seen(1.0, 0.97, 1.03), "lower", 0.05) is Change.SAME
    assert judge_change(seen(1.02, 1.01, 1.04), "lower", 0.05) is Change.SAME
    assert judge_change(seen(1.2, 1.1, 1.3), "lower", 0.05) is Change.WORSE
    assert judge_change(seen(1.2, 1.1, 1.3), "higher", 0.05) is Change.BETTER
    assert judge_change(seen(0.8, 0.7, 0.9), "lower", 0.05) is Change.BETTER
    assert judge_change(seen(0.8, 0.7, 0.9), "higher", 0.05) is Change.WORSE
    assert judge_change(seen(1.2, 0.9, 1.6), "lower", 0.05) is Change.CANNOT_SAY
    # There is a difference, but perhaps none that matters.
    assert judge_change(seen(1.04, 1.01, 1.07), "lower", 0.05) is Change.CANNOT_SAY


def test_shares_and_single_estimates() -> None:
    assert compare_shares((1, 1), (0, 5), 0.9) is None
    assert compare_shares((0, 0), (5, 5), 0.9) is None
    equal = found(compare_shares((2000, 2000), (2000, 2000), 0.99))
    assert equal.ratio == 1
    assert judge_change(equal, "higher", 0.01) is Change.SAME
    assert judge_change(compare_shares((900, 1000), (999, 1000), 0.99), "higher", 0.01) is Change.WORSE
    assert judge_change(compare_shares((20, 20), (20, 20), 0.99), "higher", 0.01) is Change.CANNOT_SAY
    assert compare_estimates((1.0, 0.1, 19), (0.0, 0.1, 19), 0.9) is None
    slower = found(compare_estimates((0.8, 0.01, 19), (1.0, 0.01, 19), 0.99))
    assert judge_change(slower, "higher", 0.05) is Change.WORSE
    assert found(compare_estimates((1.0, 0.0, 19), (1.0, 0.0, 19), 0.99)).interval == (1, 1)


def test_runs_need_three_of_one_kind() -> None:
    assert compare_runs([1.0, 1.0], [1.0, 1.0], 0.9) is None
    assert compare_runs([], [1.0, 1.0, 1.0], 0.9) is None
    assert compare_runs([0.0], [1.0, 1.0, 1.0], 0.9) is None
    assert found(compare_runs([1.2], [1.0, 1.01, 0.99, 1.0, 1.0], 0.99)).interval[0] > 1
    assert found(compare_runs([1.0, 1.01, 0.99], [1.2], 0.9)).ratio == pytest.approx(1 / 1.2, rel=1e-3)


def within(random: np.random.Generator, factor: float) -> Comparison | None:
    """Two runs, their stretches as blocks."""
    sides = [np.array_split(correlated(random, 800), 20) for _ in range(2)]
    return compare([factor * block for block in sides[0]], sides[1], Percentile(0.5), paired=False, confidence=0.95)


def in_pairs(random: np.random.Generator, factor: float) -> Comparison | None:
    """One run with a slow drift that is larger than the difference, alternating."""
    blocks = np.array_split(correlated(random, 1600) * np.linspace(1, 2, 1600), 40)
    above = [factor * blocks[pair + (pair // 2) % 2] for pair in range(0, 40, 2)]
    below = [blocks[pair + 1 - (pair // 2) % 2] for pair in range(0, 40, 2)]
    return compare(above, below, mean, paired=True, confidence=0.95)


def by_run(random: np.random.Generator, factor: float) -> Comparison | None:
    """One run against five, which differ by 3 % by themselves."""
    values = np.exp(random.normal(size=6) * 0.03)
    return compare_runs([factor * float(values[0])], [float(value) for value in values[1:]], 0.95)


def sweep(random: np.random.Generator, common: float, own: float) -> tuple[list[Values], list[Values]]:
    """60 sessions an arm over prefixes of 128 to 2048 tokens: with a cache they take 0.2 s, without it more per token.

    common: the spread of what the two of a pair, asked close together, have in common; own: of what each has alone.
    """
    tokens = np.geomspace(128, 2048, 60)
    noise = common * random.normal(size=(60, 1)) + own * random.normal(size=(60, 2))
    times = np.stack([np.full(60, 0.2), 0.2 + 0.0006 * tokens], axis=1) * np.exp(noise)
    return [times[row, :1] for row in range(60)], [times[row, 1:] for row in range(60)]


def in_a_sweep(random: np.random.Generator, factor: float) -> Comparison | None:
    """Sessions of planned lengths, paired with their twins; made so that the ratio is the factor."""
    above, below = sweep(random, 0.15, 0.1)
    above = [factor / sweep_ratio() * block for block in above]
    return compare(above, below, Percentile(0.5), paired=True, confidence=0.95, alike=10)


@cache
def sweep_ratio() -> float:
    """What the ratio of the medians of a sweep is, on the average over its noise."""
    random = np.random.default_rng(1)
    middle = Percentile(0.5)
    pairs = [[middle(np.concatenate(side)) for side in sweep(random, 0.15, 0.1)] for _ in range(3000)]
    return float(np.exp(np.mean([math.log(above / below) for above, below in pairs])))


@pytest.mark.parametrize(("common", "own"), [(0.02, 0.02), (0.15, 0.1), (0.3, 0.05)])
def test_pairs_that_share_their_noise_and_a_planned_sweep_make_the_interval_narrower(common: float, own: float) -> None:
    random = np.random.default_rng(14)
    widths: dict[str, list[float]] = {"whole": [], "paired": [], "unpaired": []}
    for _ in range(20):
        above, below = sweep(random, common, own)
        for name, paired, alike in (("whole", True, None), ("paired", True, 10), ("unpaired", False, 10)):
            low, high = found(
                compare(above, below, Percentile(0.5), paired=paired, confidence=0.95, alike=alike)
            ).interval
            widths[name].append(math.log(high / low))
    width = {name: float(np.mean(of)) for name, of in widths.items()}
    assert width["paired"] < width["unpaired"]
    assert width["paired"] < 0.75 * width["whole"]


def test_blocks_alike_are_neighbours_and_at_least_two() -> None:
    random = np.random.default_rng(15)
    steps = [np.array([1.0 + (place // 5)]) for place in range(20)]
    noise = [np.array([float(value)]) for value in random.lognormal(size=20)]
    # Within each stretch of five the control is one value, so a resample has it again: the control is certain.
    seen = found(compare(steps, steps, mean, paired=False, confidence=0.9, alike=5))
    assert seen.interval == pytest.approx((1, 1))
    assert found(compare(steps, steps, mean, paired=False, confidence=0.9)).interval[1] > 1
    # All of them alike is what is said without saying anything.
    whole = compare(noise, steps, mean, paired=True, confidence=0.9)
    assert whole == compare(noise, steps, mean, paired=True, confidence=0.9, alike=20)
    assert whole == compare(noise, steps, mean, paired=True, confidence=0.9, alike=500)
    with pytest.raises(ValueError, match="2 blocks alike"):
        compare(noise, steps, mean, paired=True, confidence=0.9, alike=1)


@pytest.mark.parametrize("draw", [within, in_pairs, in_a_sweep, by_run])
def test_as_many_false_alarms_as_promised(draw: Callable[[np.random.Generator, float], Comparison | None]) -> None:
    random = np.random.default_rng(11)
    trials = 200
    alarms = missed = 0
    for _ in range(trials):
        low, high = found(draw(random, 1.0)).interval
        alarms += not low <= 1 <= high
    for _ in range(60):
        low, high = found(draw(random, 1.5)).interval
        missed += not low <= 1.5 <= high
    # More would happen once in a thousand; 0.07 and not 0.05, for batches of correlated values still touch.
    assert alarms <= binom.ppf(0.999, trials, 0.07)
    assert missed <= binom.ppf(0.999, 60, 0.07)


def test_what_is_said_to_be_detectable_is_detected_in_about_four_of_five() -> None:
    random = np.random.default_rng(12)
    detectable = float(np.median([found(within(random, 1.0)).detectable for _ in range(40)]))
    seen = [found(within(random, 1 + detectable)).interval[0] > 1 for _ in range(150)]
    assert 0.65 < np.mean(seen) < 0.95
