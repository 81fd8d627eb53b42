"""Where a series becomes steady."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.statistics import Values
from analysis.steady import Steadiness, settle


def noise(size: int, seed: int = 1) -> Values:
    return np.random.default_rng(seed).normal(size=size)


@pytest.mark.parametrize("transient", [50, 100, 200])
def test_a_transient_is_cut_where_it_ends(transient: int) -> None:
    series = noise(1000)
    series[:transient] += np.linspace(20, 3, transient)
    found = settle(series)
    assert found is not None
    assert found.steady
    assert transient - 10 <= found.transient <= transient + 30


def test_a_steady_series_loses_little_and_a_drift_is_never_steady() -> None:
    cuts = [settle(noise(1000, seed)) for seed in range(20)]
    assert np.median([cut.transient for cut in cuts if cut is not None]) < 100
    assert all(cut is not None for cut in cuts)
    drift = settle(noise(1000) + np.linspace(0, 100, 1000))
    assert drift is not None
    assert not drift.steady


def test_short_and_constant_series() -> None:
    assert settle(noise(99)) is None
    assert settle([3.0] * 100) == Steadiness(0, True)


@given(st.lists(st.floats(-1e3, 1e3), min_size=100, max_size=300))
def test_the_unit_does_not_matter(values: list[float]) -> None:
    found, moved = settle(values), settle([2 * value for value in values])
    assert found == moved
    assert found is not None
    assert 0 <= found.transient < len(values)
