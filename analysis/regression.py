"""What became better or worse between two sides of runs, metric by metric."""

from typing import Literal

import msgspec
import numpy as np

from analysis.baselines import Measured, RunSummary, Side, usable
from analysis.comparison import (
    RUNS_MIN,
    Change,
    Comparison,
    Percentile,
    compare,
    compare_estimates,
    compare_runs,
    compare_shares,
    judge_change,
)
from analysis.statistics import samples_needed

CONFIDENCE = 0.99
TOLERANCE = 0.05
SHARE_TOLERANCE = 0.01
"""Of shares: 0.99 instead of 1 is a matter already, where 5 % more latency is none."""
BETWEEN, WITHIN, COUNTED, UNKNOWN = "between runs", "within one run only", "requests counted", "nothing"


class NotComparable(Exception):
    """The two sides are not of the same thing. The message is one line for the user."""


class Compared(msgspec.Struct, frozen=True, kw_only=True):
    """A metric on both sides, in `unit`: the mean of its runs (of a share, all requests together).

    ratio, interval: candidate / base; of shares that should be low, of what they leave of 1. detectable: see
    Comparison. basis: what the interval knows of: `between runs`, `within one run only` (not how much two runs differ
    that differ in nothing), `requests counted`, or `nothing`. why: a phrase where the change cannot be said.
    """

    name: str
    metric: str
    unit: str
    better: Literal["higher", "lower"]
    base: float | None
    candidate: float | None
    change: Change
    basis: str
    ratio: float | None = None
    interval: tuple[float, float] | None = None
    detectable: float | None = None
    why: str = ""


class Regression(msgspec.Struct, frozen=True, kw_only=True):
    """The comparison as a whole. runs: of base and candidate. notes: what a reader must know besides."""

    base: str
    candidate: str
    experiment: str
    world: str
    model: str
    runs: tuple[int, int]
    confidence: float
    compared: list[Compared]
    notes: list[str]

    @property
    def worse(self) -> list[Compared]:
        """What became worse."""
        return [each for each in self.compared if each.change is Change.WORSE]

    @property
    def silent(self) -> bool:
        """Whether nothing can be said at all."""
        return all(each.change is Change.CANNOT_SAY for each in self.compared)


def compare_sides(
    base: Side,
    candidate: Side,
    *,
    confidence: float = CONFIDENCE,
    tolerance: float = TOLERANCE,
    share_tolerance: float = SHARE_TOLERANCE,
    force: bool = False,
) -> Regression:
    """Compare every metric that both sides have. tolerances: relative differences that do not matter.

    With three runs on a side the run is the block. With fewer, blocks are stretches of the measured phase, and nothing
    is known about how much runs differ by themselves. Raises NotComparable for sides of different experiments, worlds
    or models, unless force, and for a side without a run that may be compared.
    """
    kept: list[list[RunSummary]] = []
    notes: list[str] = []
    for side in (base, candidate):
        runs, left_out = usable(side.runs)
        if not runs and force:
            runs, left_out = side.runs, [f"{line}; taken nevertheless" for line in left_out]
        if not runs:
            raise NotComparable(f"{side.name}: no run to compare: {left_out[0]}")
        kept.append(runs)
        notes += left_out
        notes += [f"{run.run_id}: {note}" for run in runs for note in run.notes]
    different = _differences([run for runs in kept for run in runs])
    if different and not force:
        raise NotComparable(f"{'; '.join(different)}: not the same thing (--force compares them nevertheless)")
    names = [name for name in kept[0][0].measured if all(name in run.measured for runs in kept for run in runs)]
    first = kept[1][0]
    within = max(map(len, kept)) < RUNS_MIN
    if within:
        notes.append(
            "with fewer than 3 runs on a side nobody knows how much runs differ by themselves: a difference found "
            "within one run only may be noise between runs; compare with a baseline of 3 runs or more, better 5"
        )
    return Regression(
        base=base.name,
        candidate=candidate.name,
        experiment=first.experiment,
        world=first.world,
        model=first.model,
        runs=(len(kept[0]), len(kept[1])),
        confidence=confidence,
        compared=[
            _compared(
                name,
                [run.measured[name] for run in kept[0]],
                [run.measured[name] for run in kept[1]],
                confidence,
                (tolerance, share_tolerance),
            )
            for name in names
        ],
        notes=[*different, *notes],
    )


def _differences(runs: list[RunSummary]) -> list[str]:
    found = []
    for field in ("experiment", "world", "model"):
        values = sorted({str(getattr(run, field)) for run in runs})
        if len(values) > 1:
            found.append(f"{field} {' and '.join(values)}")
    return found


def _compared(
    name: str, base: list[Measured], candidate: list[Measured], confidence: float, tolerances: tuple[float, float]
) -> Compared:
    kind = candidate[0]
    shares = kind.estimator == "proportion"
    found, basis, why = _estimate(base, candidate, confidence)
    # Of shares the good one is compared, so that none that should be near 0 is divided by.
    change = judge_change(found, "higher" if shares else kind.better, tolerances[1] if shares else tolerances[0])
    if found is None and _all_equal_zero(base, candidate):
        change, basis, why = Change.SAME, BETWEEN, "0 in every run"
    elif change is Change.CANNOT_SAY and found is not None:
        why = "the interval reaches from no difference to one that matters"
    return Compared(
        name=name,
        metric=kind.metric,
        unit=kind.unit,
        better=kind.better,
        base=_value(base),
        candidate=_value(candidate),
        change=change,
        basis=basis,
        ratio=None if found is None else found.ratio,
        interval=None if found is None else found.interval,
        detectable=None if found is None else found.detectable,
        why=why,
    )


def _estimate(base: list[Measured], candidate: list[Measured], confidence: float) -> tuple[Comparison | None, str, str]:
    """The comparison, what it knows of, and why there is none."""
    one, other = base[0], candidate[0]
    if {each.estimator for each in (*base, *candidate)} == {"proportion"}:
        found = compare_shares(_good(candidate), _good(base), confidence)
        return found, COUNTED, "" if found is not None else "no requests, or none that ended well, to divide by"
    if any(each.value is None for each in (*base, *candidate)):
        return None, UNKNOWN, "a run could not measure it"
    if max(len(base), len(candidate)) >= RUNS_MIN:
        values = [[each.value for each in side if each.value is not None] for side in (candidate, base)]
        found = compare_runs(values[0], values[1], confidence)
        return found, BETWEEN, "" if found is not None else "a value that is not positive has no ratio"
    if one.blocks and other.blocks:
        if min(_effective(base), _effective(candidate)) < samples_needed(one.share, 0.5):
            return None, UNKNOWN, "too few effective samples for this percentile"
        sides = [[np.asarray(block) for each in side for block in each.blocks] for side in (candidate, base)]
        found = compare(sides[0], sides[1], Percentile(one.share), paired=False, confidence=confidence)
    elif len(base) == len(candidate) == 1 and one.value and other.value and one.spread and other.spread:
        found = compare_estimates(
            (other.value, other.spread, other.freedom), (one.value, one.spread, one.freedom), confidence
        )
    else:
        return None, UNKNOWN, "one number per run: it takes 3 runs on a side to know how much it varies"
    return found, WITHIN, "" if found is not None else "too few blocks"


def _good(side: list[Measured]) -> tuple[int, int]:
    """Hits and samples of what should be high, all runs together."""
    samples = sum(each.samples for each in side)
    hits = sum(round((each.value or 0.0) * each.samples) for each in side)
    return (hits if side[0].better == "higher" else samples - hits), samples


def _effective(side: list[Measured]) -> float:
    return sum(each.effective or 0.0 for each in side)


def _value(side: list[Measured]) -> float | None:
    if side[0].estimator == "proportion":
        samples = sum(each.samples for each in side)
        return sum((each.value or 0.0) * each.samples for each in side) / samples if samples else None
    values = [each.value for each in side if each.value is not None]
    return float(np.mean(values)) if values else None


def _all_equal_zero(base: list[Measured], candidate: list[Measured]) -> bool:
    """Nothing to count on either side of several runs; in a single pair of runs it proves nothing."""
    return max(len(base), len(candidate)) >= RUNS_MIN and all(each.value == 0 for each in (*base, *candidate))
