"""Quantiles of a sketch lie within its error of the exact ones, whatever the values and however they were merged."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis import statistics
from analysis.sketch import LARGEST, SMALLEST, Sketch, empty, sketch, sketches

ERROR = 0.01
values_within = st.lists(st.floats(SMALLEST, LARGEST, exclude_min=True), max_size=60)
anything = st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=40)
shares = st.floats(0, 1)


def of(values: list[float], error: float = ERROR) -> Sketch:
    return sketch(np.array(values, dtype=float), error)


@given(values_within.filter(len), shares, st.sampled_from([0.001, 0.01, 0.02, 0.2]))
def test_a_quantile_lies_within_the_error_of_the_exact_one(values: list[float], share: float, error: float) -> None:
    exact = sorted(values)[max(1, math.ceil(share * len(values) - 1e-9)) - 1]
    found = of(values, error).quantile(share)
    assert found == pytest.approx(exact, rel=error * (1 + 1e-9))


@given(
    st.lists(st.floats(SMALLEST, 100.0, exclude_min=True), min_size=1, max_size=400),
    st.sampled_from([0.5, 0.9, 0.95, 0.99]),
)
def test_a_percentile_is_that_of_the_statistics_or_none_where_that_is_none(values: list[float], share: float) -> None:
    exact, found = statistics.percentile(values, share), of(values).percentile(share)
    assert (found is None) == (exact is None)
    if exact is not None:
        assert found == pytest.approx(exact, rel=ERROR * (1 + 1e-9))


@given(values_within.filter(len))
def test_the_mean_lies_within_the_error(values: list[float]) -> None:
    assert of(values).mean() == pytest.approx(float(np.mean(values)), rel=ERROR * (1 + 1e-6))


@given(anything, anything, anything)
def test_merging_is_associative_and_commutative_and_the_merge_of_parts_is_the_whole(
    a: list[float], b: list[float], c: list[float]
) -> None:
    one, two, three = of(a), of(b), of(c)
    assert one.merge(two) == two.merge(one)
    assert one.merge(two).merge(three) == one.merge(two.merge(three)) == of([*a, *b, *c])
    assert one.merge(empty(ERROR)) == one == empty(ERROR).merge(one)


@given(st.lists(st.tuples(st.integers(0, 5), st.floats(-1, 1e7)), max_size=60))
def test_each_group_gets_the_sketch_of_its_own_values(pairs: list[tuple[int, float]]) -> None:
    groups = np.array([group for group, _ in pairs], dtype=np.int64)
    found = dict(sketches(np.array([value for _, value in pairs], dtype=float), groups, ERROR))
    assert found == {number: of([value for group, value in pairs if group == number]) for number, _ in pairs}


def test_groups_that_lie_far_apart_are_counted_too() -> None:
    found = dict(sketches(np.array([1.0, 2.0, 3.0]), np.array([7, 9_000_000, 7]), ERROR))
    assert found == {7: of([1.0, 3.0]), 9_000_000: of([2.0])}


@given(anything, shares)
def test_what_lies_outside_is_clamped_and_still_seen_at_the_ends(values: list[float], share: float) -> None:
    known = [value for value in values if not math.isnan(value)]
    made = of(values)
    assert made.samples == len(known)
    found = made.quantile(share)
    if not known:
        assert found is None
    else:
        assert (made.least, made.most) == (min(known), max(known))
        assert found is not None
        assert made.least <= found <= made.most


def test_the_promise_is_not_kept_by_a_sketch_with_a_bucket_moved() -> None:
    """The bound is tight enough to notice: three buckets further is out of it."""
    made = of([0.5] * 10 + [1.0] * 10 + [2.0])
    moved = Sketch(made.error, made.first + 3, made.counts, made.least, made.most)
    assert made.quantile(0.6) == pytest.approx(1.0, rel=ERROR)
    assert moved.quantile(0.6) != pytest.approx(1.0, rel=ERROR)


def test_misuse_is_named() -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        of([1.0]).quantile(1.5)
    with pytest.raises(ValueError, match="cannot be merged"):
        of([1.0]).merge(of([1.0], 0.02))
    with pytest.raises(ValueError, match="relative error"):
        empty(1.0)
