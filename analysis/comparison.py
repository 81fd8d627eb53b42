"""How much two sides differ: the ratio of a statistic, with what is certain about it and what could have been seen."""

import math
from collections.abc import Callable, Sequence
from enum import StrEnum
from itertools import pairwise
from typing import Literal, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
from scipy.stats import t as student_t

from analysis import statistics
from analysis.statistics import Values

Statistic = Callable[[Values], float]
"""What is compared, of all values of a side. `mean` and `Percentile` are resampled all at once, others one by one."""

BLOCKS_MIN = 5
"""Fewer blocks a side say nothing about how much blocks differ."""
RUNS_MIN = 3
"""With fewer runs on either side nothing is known about how much runs differ."""
RESAMPLES = 2000
POWER = 0.8
BLOCKS_MAX = 1000
_CHUNK_VALUES = 500_000

Picks = npt.NDArray[np.int32]


class Comparison(msgspec.Struct, frozen=True):
    """statistic(treatment) / statistic(control), without unit.

    interval: two-sided at the confidence asked for; lower, upper: one-sided bounds at it. detectable: the smallest
    relative difference that a comparison like this one calls a difference in 80 % of cases, such as 0.1 for 10 %.
    blocks, samples: of treatment and control. paired: a block of one side belongs to one of the other.
    """

    ratio: float
    interval: tuple[float, float]
    lower: float
    upper: float
    detectable: float
    blocks: tuple[int, int]
    samples: tuple[int, int]
    paired: bool


class Change(StrEnum):
    """What became of a metric. same: any difference is within the tolerance. cannot_say: the data do not decide."""

    BETTER = "better"
    SAME = "same"
    WORSE = "worse"
    CANNOT_SAY = "cannot_say"


class Percentile(msgspec.Struct, frozen=True):
    """The smallest value that at least `share` of the values do not exceed; share between 0 and 1."""

    share: float

    def __call__(self, values: Values) -> float:
        rank = max(1, math.ceil(self.share * len(values) - 1e-9))
        return float(np.partition(values, rank - 1)[rank - 1])


def mean(values: Values) -> float:
    """The arithmetic mean."""
    return float(values.mean())


def compare(
    treatment: Sequence[Values],
    control: Sequence[Values],
    statistic: Statistic,
    *,
    paired: bool,
    confidence: float,
    seed: int = 0,
    alike: int | None = None,
) -> Comparison | None:
    """Compare two sides, each given as the values of its blocks (stretches of time, sessions or runs).

    Values of one block may depend on each other, blocks may not. Blocks without values are left out, in pairs when
    `paired`, where block i of one side belongs to block i of the other. None with fewer than 5 blocks a side, or where
    the statistic of the control is not positive and finite. Raises ValueError for NaN, for pairs that do not match, for
    a confidence outside 0.5..1 and for fewer than 2 blocks alike.

    alike: the blocks come in order of something that was planned and not drawn, such as the length of a prompt, and so
    many neighbours (or a few more) count as alike; None: all of them. Another run of the same plan has the same blocks
    with other noise, so blocks are drawn only from among those that they are like: what the plan makes them differ by
    is no uncertainty (stratified bootstrap: Davison and Hinkley, section 3.2, with the strata of a systematic sample
    made of neighbours: Wolter, Introduction to Variance Estimation (2007), section 8.2).

    The spread of the log ratio comes from resampling whole blocks (cluster bootstrap: Davison and Hinkley, Bootstrap
    Methods and their Application (1997), section 3.8), times blocks / (blocks - 1), which a bootstrap of few blocks is
    short of; the interval takes Student's t with blocks - 1 degrees of freedom (Cameron and Miller, A practitioner's
    guide to cluster-robust inference, Journal of Human Resources 50 (2015), section VI) or, unpaired, Welch's. A plain
    percentile interval of 5 to 20 blocks would be too short: Hesterberg, What teachers should know about the bootstrap,
    The American Statistician 69 (2015). Where resamples touch zero there is no logarithm: then percentiles it is.
    """
    if not 0.5 < confidence < 1:
        raise ValueError(f"expected a confidence between 0.5 and 1, got {confidence}")
    if alike is not None and alike < 2:
        raise ValueError(f"expected at least 2 blocks alike, got {alike}")
    above, below = _blocks_with_values(treatment, control, paired)
    told = (len(above), len(below))
    above, below = _merged(above), _merged(below)
    sizes = _Strata.of(len(above), alike), _Strata.of(len(below), alike)
    if min(len(above), len(below)) < BLOCKS_MIN:
        return None
    top, bottom = statistic(np.concatenate(above)), statistic(np.concatenate(below))
    if not (0 < bottom < math.inf and math.isfinite(top)):
        return None
    random = np.random.default_rng(seed)
    picks_below = _picks(random, sizes[1])
    picks_above = picks_below if paired else _picks(random, sizes[0])
    tops, bottoms = _resample(above, statistic, picks_above), _resample(below, statistic, picks_below)
    ratio = top / bottom
    if ratio > 0 and min(tops.min(), bottoms.min()) > 0 and math.isfinite(tops.max()) and math.isfinite(bottoms.max()):
        spread, freedom, idle = _log_spread(np.log(tops), np.log(bottoms), sizes, paired)
        interval, lower, upper = _student_bounds(ratio, spread, freedom, confidence)
        detectable = detectable_difference(idle, sizes[1].freedom, confidence)
    else:
        interval, lower, upper = _percentile_bounds(tops, bottoms, confidence)
        detectable = math.inf
    samples = (sum(map(len, above)), sum(map(len, below)))
    return Comparison(ratio, interval, lower, upper, detectable, told, samples, paired)


def compare_runs(treatment: Sequence[float], control: Sequence[float], confidence: float) -> Comparison | None:
    """Compare runs by one positive value each, such as their median latency; one side may be a single run.

    Student's t of the logarithms with the spread of both sides pooled: the interval for the difference of m new
    observations and n old ones (Hahn and Meeker, Statistical Intervals (1991), section 4.8). It knows what differs from
    run to run, which no comparison within one run does. None with fewer than 3 runs on the larger side, with none on
    the other, or where a value is not positive and finite.
    """
    above, below = np.asarray(treatment, dtype=float), np.asarray(control, dtype=float)
    if max(len(above), len(below)) < RUNS_MIN or min(len(above), len(below)) < 1:
        return None
    if not all(bool(np.all(np.isfinite(side) & (side > 0))) for side in (above, below)):
        return None
    logs = np.log(above), np.log(below)
    freedom = len(above) + len(below) - 2
    variance = sum(float(((side - side.mean()) ** 2).sum()) for side in logs) / freedom
    spread = math.sqrt(variance * (1 / len(above) + 1 / len(below)))
    ratio = math.exp(float(logs[0].mean() - logs[1].mean()))
    interval, lower, upper = _student_bounds(ratio, spread, freedom, confidence)
    sizes = (len(above), len(below))
    found = detectable_difference(spread, freedom, confidence)
    return Comparison(ratio, interval, lower, upper, found, sizes, sizes, False)


def compare_estimates(
    treatment: tuple[float, float, float], control: tuple[float, float, float], confidence: float
) -> Comparison | None:
    """Compare two estimates, each a positive value, its relative standard error and the degrees of freedom of that.

    Welch's t on the logarithms, whose standard error is about the relative one (delta method). None where a value is
    not positive and finite.
    """
    (top, above, more), (bottom, below, less) = treatment, control
    if not (0 < top < math.inf and 0 < bottom < math.inf) or min(more, less) < 1:
        return None
    total = above**2 + below**2
    freedom = total**2 / (above**4 / more + below**4 / less) if total > 0 else min(more, less)
    interval, lower, upper = _student_bounds(top / bottom, math.sqrt(total), freedom, confidence)
    found = detectable_difference(math.sqrt(2) * below, less, confidence)
    return Comparison(top / bottom, interval, lower, upper, found, (1, 1), (1, 1), False)


def compare_shares(treatment: tuple[int, int], control: tuple[int, int], confidence: float) -> Comparison | None:
    """Compare two proportions, each as hits of samples, by their Clopper-Pearson bounds: safe, a little too wide.

    Each bound takes half of the error that is allowed, so that both hold together (Bonferroni). None without samples.
    Requests are counted as independent, which those of one stall are not.
    """
    if min(treatment[1], control[1]) < 1 or control[0] < 1:
        return None
    each = (1 + confidence) / 2
    above, below = (statistics.proportion_interval(*side, each) for side in (treatment, control))
    one = (statistics.proportion_interval(*side, confidence) for side in (treatment, control))
    (low, high), (least, most) = one
    # One more of each kind: a share of 1 in a sample does not mean that nothing varies.
    share = (control[0] + 1) / (control[1] + 2)
    spread = math.sqrt((1 - share) / share * (1 / treatment[1] + 1 / control[1]))
    return Comparison(
        ratio=treatment[0] / treatment[1] * control[1] / control[0],
        interval=(above[0] / below[1], above[1] / below[0]),
        lower=low / most,
        upper=high / least,
        detectable=detectable_difference(spread, math.inf, confidence),
        blocks=(1, 1),
        samples=(treatment[1], control[1]),
        paired=False,
    )


def judge_change(comparison: Comparison | None, better: Literal["higher", "lower"], tolerance: float) -> Change:
    """What a comparison says of a metric of which `better` is better; differences up to `tolerance` (0.05 for 5 %) are
    none that matter.

    better, worse: the interval leaves out 1 and the estimate lies outside of the tolerance. same: both one-sided bounds
    lie within it (two one-sided tests: Schuirmann, Journal of Pharmacokinetics and Biopharmaceutics 15 (1987)).
    """
    if tolerance < 0:
        raise ValueError(f"expected a tolerance of at least 0, got {tolerance}")
    if comparison is None:
        return Change.CANNOT_SAY
    least, most = 1 / (1 + tolerance), 1 + tolerance
    if least <= comparison.lower and comparison.upper <= most:
        return Change.SAME
    if comparison.interval[0] > 1 and comparison.ratio > most:
        return Change.BETTER if better == "higher" else Change.WORSE
    if comparison.interval[1] < 1 and comparison.ratio < least:
        return Change.BETTER if better == "lower" else Change.WORSE
    return Change.CANNOT_SAY


def detectable_difference(spread: float, freedom: float, confidence: float) -> float:
    """The relative difference that a two-sided test at this confidence shows with 80 % power.

    spread: of the log ratio of two sides that do not differ. The sum of the two quantiles times the spread: Cohen,
    Statistical Power Analysis for the Behavioral Sciences (1988), chapter 2, with t in place of the normal.
    """
    quantiles = student_t.ppf((1 + confidence) / 2, freedom) + student_t.ppf(POWER, freedom)
    return _exp(float(quantiles) * spread) - 1


def _blocks_with_values(
    treatment: Sequence[Values], control: Sequence[Values], paired: bool
) -> tuple[list[Values], list[Values]]:
    above, below = ([np.asarray(block, dtype=float) for block in side] for side in (treatment, control))
    if any(bool(np.isnan(block).any()) for block in (*above, *below)):
        raise ValueError("expected numbers, got NaN among the values")
    if not paired:
        return [block for block in above if len(block)], [block for block in below if len(block)]
    if len(above) != len(below):
        raise ValueError(f"expected as many blocks on each side, got {len(above)} and {len(below)}")
    pairs = [(one, other) for one, other in zip(above, below, strict=True) if len(one) and len(other)]
    return [one for one, _ in pairs], [other for _, other in pairs]


def _merged(blocks: list[Values]) -> list[Values]:
    """At most BLOCKS_MAX blocks, neighbours put together: what is independent stays so, and the work is bounded."""
    if len(blocks) <= BLOCKS_MAX:
        return blocks
    edges = np.linspace(0, len(blocks), BLOCKS_MAX + 1).astype(int)
    return [np.concatenate(blocks[first:last]) for first, last in pairwise(edges)]


class _Strata(NamedTuple):
    """Blocks in order, and the parts of them within which they are alike.

    edges: where each part begins, and at last the number of blocks.
    """

    blocks: int
    edges: Picks

    @classmethod
    def of(cls, blocks: int, alike: int | None) -> "_Strata":
        parts = 1 if alike is None else max(1, blocks // alike)
        return cls(blocks, np.linspace(0, blocks, parts + 1).astype(np.int32))

    @property
    def freedom(self) -> int:
        return self.blocks - len(self.edges) + 1

    @property
    def short_by(self) -> float:
        """The variance times this is what resampling of few blocks is short of, at least."""
        least = int(np.diff(self.edges).min())
        return least / (least - 1)


def _picks(random: np.random.Generator, strata: _Strata) -> Picks:
    """How often each block (column) is drawn in each resample (row)."""
    blocks = strata.blocks
    sizes = np.diff(strata.edges)
    first, size = np.repeat(strata.edges[:-1], sizes), np.repeat(sizes, sizes)
    drawn = first + random.integers(size, size=(RESAMPLES, blocks)) + np.arange(RESAMPLES)[:, None] * blocks
    return np.bincount(drawn.ravel(), minlength=RESAMPLES * blocks).reshape(RESAMPLES, blocks).astype(np.int32)


def _resample(blocks: Sequence[Values], statistic: Statistic, picks: Picks) -> Values:
    """The statistic of every resample."""
    if statistic is mean:
        sizes = np.array([len(block) for block in blocks], dtype=float)
        sums = np.array([block.sum() for block in blocks])
        means: Values = (picks @ sums) / (picks @ sizes)
        return means
    values = np.concatenate(blocks)
    owner = np.repeat(np.arange(len(blocks)), [len(block) for block in blocks])
    if not isinstance(statistic, Percentile):
        return np.array([statistic(np.repeat(values, row[owner])) for row in picks], dtype=float)
    order = np.argsort(values, kind="stable")
    values, owner = values[order], owner[order]
    found = []
    step = max(1, _CHUNK_VALUES // len(values))
    for first in range(0, len(picks), step):
        # A resample is the sorted values with a count each; the percentile is where the counts add up to its rank.
        counted = np.cumsum(picks[first : first + step, owner], axis=1, dtype=np.int32)
        ranks = np.maximum(1, np.ceil(statistic.share * counted[:, -1] - 1e-9)).astype(np.int32)
        found.append(values[np.argmax(counted >= ranks[:, None], axis=1)])
    return np.concatenate(found)


def _log_spread(
    tops: Values, bottoms: Values, sizes: tuple[_Strata, _Strata], paired: bool
) -> tuple[float, float, float]:
    """The standard error of the log ratio, its degrees of freedom, and what it is between sides like the control."""
    if paired:
        spread = float((tops - bottoms).std(ddof=1)) * math.sqrt(sizes[0].short_by)
        return spread, sizes[0].freedom, spread
    above, below = (float(logs.var(ddof=1)) * side.short_by for logs, side in zip((tops, bottoms), sizes, strict=True))
    idle = math.sqrt(below * (1 + sizes[1].blocks / sizes[0].blocks))
    total = above + below
    if total == 0:
        return 0.0, min(side.freedom for side in sizes), idle
    freedom = total**2 / (above**2 / sizes[0].freedom + below**2 / sizes[1].freedom)
    return math.sqrt(total), freedom, idle


def _student_bounds(
    ratio: float, spread: float, freedom: float, confidence: float
) -> tuple[tuple[float, float], float, float]:
    both = float(student_t.ppf((1 + confidence) / 2, freedom)) * spread
    one = float(student_t.ppf(confidence, freedom)) * spread
    return (ratio * _exp(-both), ratio * _exp(both)), ratio * _exp(-one), ratio * _exp(one)


def _percentile_bounds(tops: Values, bottoms: Values, confidence: float) -> tuple[tuple[float, float], float, float]:
    """Order statistics of the resampled ratios; a ratio to something that is not positive has no upper limit."""
    ratios = np.sort(np.divide(tops, bottoms, out=np.full(len(tops), math.inf), where=bottoms > 0))
    last = len(ratios) - 1

    def low(share: float) -> float:
        return float(ratios[math.floor(share * last)])

    def high(share: float) -> float:
        return float(ratios[math.ceil(share * last)])

    tail = (1 - confidence) / 2
    return (low(tail), high(1 - tail)), low(1 - confidence), high(confidence)


def _exp(exponent: float) -> float:
    return math.exp(exponent) if exponent < 700 else math.inf
