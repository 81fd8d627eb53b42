"""When a series became steady: was the warm-up long enough?"""

from collections.abc import Sequence

import msgspec
import numpy as np

from analysis.statistics import Values

BATCH = 5
BATCHES_MIN = 20
"""A series of fewer than 100 values says nothing about where its transient ends."""


class Steadiness(msgspec.Struct, frozen=True):
    """transient: how many values from the beginning belong to the start-up. steady: whether the rest is long enough to
    be called so, that is, whether the transient ends in the first half."""

    transient: int
    steady: bool


def settle(values: Sequence[float] | Values) -> Steadiness | None:
    """Where a series in order of time leaves its initial transient, by MSER-5; None for fewer than 100 values.

    The cut is the one that makes the squared standard error of the mean of what is left, in means of five values,
    smallest: White, An effective truncation heuristic for bias reduction in simulation output, Simulation 69 (1997);
    White, Cobb and Spratt, A comparison of five steady-state truncation heuristics, Winter Simulation Conference 2000.
    A cut in the second half means that no steady state was seen. The rule is a heuristic: of a series that is steady
    from its beginning it may cut a few values, so a short transient is no proof of too short a warm-up.
    """
    series = np.asarray(values, dtype=float)
    count = len(series) // BATCH
    if count < BATCHES_MIN:
        return None
    means = series[: count * BATCH].reshape(count, BATCH).mean(axis=1)
    # From the end: size, sum and sum of squares of what is left after each cut; centred, so that little cancels.
    left = (means - means.mean())[::-1]
    sizes = np.arange(1, count + 1)
    squares = np.maximum(np.cumsum(left**2) - np.cumsum(left) ** 2 / sizes, 0.0)
    # Of the last few batches alone the error is small by chance: White's rule leaves them out.
    errors = (squares / sizes**2)[::-1][: count - BATCH]
    cut = int(np.argmin(errors))
    return Steadiness(transient=cut * BATCH, steady=cut <= count // 2)
