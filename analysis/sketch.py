"""Quantiles of many values in little memory, of parts that can be merged in any order.

Masson, Rim and Lee, DDSketch: a fast and fully-mergeable quantile sketch with relative-error guarantees, PVLDB 12
(2019): values are counted in buckets whose bounds grow by the factor gamma = (1 + error) / (1 - error), so the middle
of a bucket, 2 * gamma^i / (gamma + 1), lies within `error` of everything in it. Counts are integers: merging is exact.
Own code because the published packages take one value at a time in Python, or promise a rank and not a value.
"""

import functools
import math
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

SMALLEST = 1e-6
LARGEST = 1e6
"""Seconds: less counts as nothing, more as this much. What lies outside is still seen in `least` and `most`."""

# One row per batch of sums may take so many cells; more is counted by sorting.
_DENSE_MAX = 4_000_000


class Sketch(msgspec.Struct, frozen=True, eq=False):
    """Counts of values by bucket. error: relative, of every quantile of values above SMALLEST, to LARGEST.

    first: index of the first bucket in `counts`. least, most: exact; infinite in an empty sketch.
    """

    error: float
    first: int
    counts: Integers
    least: float
    most: float

    @property
    def samples(self) -> int:
        """How many values were counted."""
        return int(self.counts.sum())

    def quantile(self, share: float) -> float | None:
        """The value that a `share` (0..1) of the values do not exceed, within `error`, else within SMALLEST.

        None for an empty sketch. Of n ordered values it is the one at max(1, ceil(share * n)). Raises ValueError.
        """
        if not 0 <= share <= 1:
            raise ValueError(f"a share lies between 0 and 1, got {share:g}")
        if not self.samples:
            return None
        # The slack is that of statistics.percentile, so that both choose the same value.
        rank = max(1, math.ceil(share * self.samples - 1e-9))
        bucket = self.first + int(np.searchsorted(np.cumsum(self.counts), rank))
        return float(min(max(float(_middles(self.error)[bucket]), self.least), self.most))

    def percentile(self, share: float) -> float | None:
        """The quantile where the sample reaches that far into the tail, as statistics.percentile has it, else None."""
        return None if self.samples * (1 - share) < 1 - 1e-9 else self.quantile(share)

    def mean(self) -> float | None:
        """The mean of the values, within `error`; None for an empty sketch."""
        if not self.samples:
            return None
        middles = _middles(self.error)[self.first : self.first + len(self.counts)]
        return float(np.dot(middles, self.counts) / self.samples)

    def merge(self, other: "Sketch") -> "Sketch":
        """The sketch of the values of both. Raises ValueError when their errors differ."""
        if self.error != other.error:
            raise ValueError(f"sketches with errors {self.error:g} and {other.error:g} cannot be merged")
        if not len(self.counts) or not len(other.counts):
            return self if len(self.counts) else other
        first = min(self.first, other.first)
        end = max(self.first + len(self.counts), other.first + len(other.counts))
        counts = np.zeros(end - first, dtype=np.int64)
        for part in (self, other):
            counts[part.first - first : part.first - first + len(part.counts)] += part.counts
        return Sketch(self.error, first, counts, min(self.least, other.least), max(self.most, other.most))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sketch) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[Any, ...]:
        return self.error, self.first, self.counts.tolist().__repr__(), self.least, self.most


def empty(error: float) -> Sketch:
    """The sketch of nothing. Raises ValueError unless 0 < error < 1."""
    _gamma(error)
    return Sketch(error, 0, np.zeros(0, dtype=np.int64), math.inf, -math.inf)


def sketch(values: Floats, error: float) -> Sketch:
    """The sketch of an array; NaN is no value."""
    return dict(sketches(values, np.zeros(len(values), dtype=np.int64), error)).get(0, empty(error))


def sketches(values: Floats, groups: Integers, error: float) -> Iterator[tuple[int, Sketch]]:
    """One sketch for each group number (from 0) that has values, in their order."""
    known = ~np.isnan(values)
    values, groups = (values, groups) if known.all() else (values[known], groups[known])
    if not len(values):
        return
    width = _width(error)
    cells, counts = count_distinct(groups * width + _buckets(values, error))
    owners, buckets = cells // width, cells % width
    present, starts = np.unique(owners, return_index=True)
    low, high = int(present[0]), int(present[-1])
    least, most = np.full(high - low + 1, math.inf), np.full(high - low + 1, -math.inf)
    np.minimum.at(least, groups - low, values)
    np.maximum.at(most, groups - low, values)
    for group, start, end in zip(present, starts, [*starts[1:], len(cells)], strict=True):
        first = int(buckets[start])
        filled = np.zeros(int(buckets[end - 1]) - first + 1, dtype=np.int64)
        filled[buckets[start:end] - first] = counts[start:end]
        yield int(group), Sketch(error, first, filled, float(least[group - low]), float(most[group - low]))


def _gamma(error: float) -> float:
    if not 0 < error < 1:
        raise ValueError(f"a relative error lies between 0 and 1, got {error:g}")
    return (1 + error) / (1 - error)


def _width(error: float) -> int:
    return math.ceil(math.log(LARGEST / SMALLEST) / math.log(_gamma(error))) + 2


def _buckets(values: Floats, error: float) -> Integers:
    """Bucket 0 is for what is too small, bucket i > 0 for SMALLEST * gamma^(i-1) < value <= SMALLEST * gamma^i."""
    exponent = np.log(np.clip(values, SMALLEST, LARGEST) / SMALLEST) / math.log(_gamma(error))
    return np.ceil(exponent).astype(np.int64)


@functools.lru_cache(8)
def _middles(error: float) -> Floats:
    gamma = _gamma(error)
    middles = 2 * SMALLEST * gamma ** np.arange(_width(error), dtype=float) / (gamma + 1)
    middles[0] = 0.0
    middles.setflags(write=False)
    return middles


def count_distinct(cells: Integers) -> tuple[Integers, Integers]:
    """The distinct numbers in order, and how often each occurs."""
    if not len(cells):
        return cells, cells
    low = int(cells.min())
    if int(cells.max()) - low < _DENSE_MAX:
        dense = np.bincount(cells - low)
        found = np.flatnonzero(dense)
        return found + low, dense[found]
    distinct, counts = np.unique(cells, return_counts=True)
    return distinct, counts
