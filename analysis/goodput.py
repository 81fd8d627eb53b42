"""Whether goodput comes back with the load after a fault. Where the load is as before and goodput stays low, the
cluster keeps itself down: a metastable failure (Bronson and others, Metastable failures in distributed systems, HotOS
2021)."""

import math
from enum import StrEnum

import msgspec
import numpy as np
import numpy.typing as npt
from scipy.stats import binom

from analysis.facts import CannotJudge, QuietSpan, offered
from analysis.history import History
from analysis.load_metrics import baseline_phase, latency_objective_s
from analysis.measurement import span as phase_span
from analysis.recovery import CALM_S, WINDOW_S, load_end_s
from analysis.statistics import proportion_interval

REQUESTS_MIN = 20
"""Of fewer requests, before the fault or in the last part of the time after it, nothing is said."""
LAST_S = 10.0
"""The last part of the time after a heal: so much of it, and half of it at most."""
LAST_MIN_S = 0.5
LOAD_SLACK = 0.1
"""A load that is so much above the baseline's is still normal."""
_CONFIDENCE = 0.95
_LOAD_DOUBT = 0.01
# One last part is looked at, and hundreds of windows: in a healthy run none of them may look bad by chance.
_LAST_DOUBT, _WINDOW_DOUBT = 0.01, 0.0001


class Return(StrEnum):
    """What became of something after a heal. not_judged: the next fault struck too soon to say."""

    BACK = "back"
    NEVER = "never"
    NOT_JUDGED = "not_judged"
    CANNOT_SAY = "cannot_say"


class Share(msgspec.Struct, frozen=True):
    """Goodput over some time: requests of that time and those that were good, and the length of it in seconds.

    good: completed within the steady state's latency limit, if it sets one, of all that somebody still wanted.
    """

    good: int
    requests: int
    length_s: float

    @property
    def share(self) -> float | None:
        """Good of all, 0..1."""
        return self.good / self.requests if self.requests else None

    @property
    def per_s(self) -> float | None:
        """Offered per second."""
        return self.requests / self.length_s if self.length_s > 0 else None

    def interval(self) -> tuple[float, float] | None:
        """Of the share, two-sided, 95 %."""
        return proportion_interval(self.good, self.requests, _CONFIDENCE) if self.requests else None


class GoodputReturn(msgspec.Struct, frozen=True):
    """Goodput before a fault, in the last part of the time that belongs to it, and whether it came back.

    back_s: from the heal to the first moment from which no window of WINDOW_S is below the baseline's interval for
    CALM_S. text: the finding, a phrase.
    """

    before: Share
    last: Share
    state: Return
    back_s: float | None
    text: str


class Load(msgspec.Struct, frozen=True):
    """The requests of a run that somebody wanted, in order: when they were due, and whether they were good."""

    intended_s: npt.NDArray[np.float64]
    good: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, history: History) -> "Load":
        """In a run that was cut, what was in flight is unknown and left out."""
        lines = offered(history)
        unknown = ["cancelled"] if history.info.complete else ["cancelled", "in_flight"]
        lines = lines[~lines["outcome"].isin(unknown)]
        try:
            limit_s = latency_objective_s(history)
        except CannotJudge:
            limit_s = math.inf
        good = (lines["outcome"] == "completed") & (lines["ended_s"] - lines["intended_s"] <= limit_s)
        return cls(lines["intended_s"].to_numpy(dtype=float), good.to_numpy(dtype=bool))

    def over(self, start_s: float, end_s: float) -> Share:
        """Goodput of the requests due from start_s until before end_s."""
        inside = (self.intended_s >= start_s) & (self.intended_s < end_s)
        return Share(int(self.good[inside].sum()), int(inside.sum()), max(0.0, end_s - start_s))


def baseline_span(history: History) -> tuple[float, float]:
    """Start and end of the baseline phase; an empty span where there is none."""
    try:
        return phase_span(history, baseline_phase(history))
    except CannotJudge:
        return 0.0, 0.0


def last_part(history: History, span: QuietSpan) -> tuple[float, float]:
    """Start and end of the last part of a quiet span, seconds since the run began; empty where it would be a moment."""
    end_s = max(span.start_s, load_end_s(history, span))
    if end_s - span.start_s < 2 * LAST_MIN_S:
        return end_s, end_s
    return end_s - min(LAST_S, (end_s - span.start_s) / 2), end_s


def goodput_return(history: History, load: Load, span: QuietSpan, cut_off: str) -> GoodputReturn:
    """Whether goodput came back in a quiet span. cut_off: by which fault it was cut too short, "" if by none."""
    start_s, end_s = last_part(history, span)
    before, last = load.over(*baseline_span(history)), load.over(start_s, end_s)

    def result(state: Return, text: str, back_s: float | None = None) -> GoodputReturn:
        return GoodputReturn(before, last, state, back_s, text)

    floor = before.interval()
    if cut_off and end_s - span.start_s < CALM_S:
        return result(Return.NOT_JUDGED, f"not judged: {cut_off}")
    if floor is None or min(before.requests, last.requests) < REQUESTS_MIN:
        scarce = f"{before.requests} before" if before.requests < REQUESTS_MIN else f"{last.requests} at last"
        return result(Return.CANNOT_SAY, f"cannot say (too few requests: {scarce})")
    low = binom.cdf(last.good, last.requests, floor[0]) < _LAST_DOUBT
    back_s = None if low else _first_calm(load, span, end_s, floor[0])
    if back_s is not None:
        return result(Return.BACK, f"came back after {back_s:.2f} s", back_s)
    if cut_off:
        return result(Return.NOT_JUDGED, f"not judged: {cut_off}")
    if not history.info.complete:
        return result(Return.CANNOT_SAY, "cannot say (the run was cut)")
    if end_s - span.start_s < CALM_S:
        return result(Return.CANNOT_SAY, f"cannot say (the load ended {end_s - span.start_s:.2f} s after the heal)")
    if _above(last, before):
        return result(Return.CANNOT_SAY, "cannot say (the load was above the baseline's)")
    within = "before the next fault" if span.followed else "within the run"
    return result(Return.NEVER, f"not back {within} (metastable?)")


def _above(last: Share, before: Share) -> bool:
    """Whether more was offered than in the baseline, by more than the slack and than chance.

    Given their sum, one of two Poisson counts of equal rates is binomial (Przyborowski and Wilenski, Homogeneity of
    results in testing samples from Poisson series, Biometrika 31 (1940)).
    """
    if last.per_s is None or before.per_s is None or last.per_s <= (1 + LOAD_SLACK) * before.per_s:
        return False
    share = last.length_s / (last.length_s + before.length_s)
    return bool(binom.sf(last.requests - 1, last.requests + before.requests, share) < _LOAD_DOUBT)


def _first_calm(load: Load, span: QuietSpan, end_s: float, floor: float) -> float | None:
    """Seconds from the heal to the first moment from which goodput stays up for CALM_S, all of it seen."""
    first, past = np.searchsorted(load.intended_s, [span.start_s, end_s])
    times, good = load.intended_s[first:past], load.good[first:past]
    ends = np.searchsorted(times, times + WINDOW_S)
    sums = np.concatenate([[0], np.cumsum(good)])
    held = ends - np.arange(len(times))
    low = np.flatnonzero(binom.cdf(sums[ends] - sums[:-1], held, floor) < _WINDOW_DOUBT)
    edges = np.zeros(len(times) + 1, dtype=int)
    np.add.at(edges, low, 1)
    np.add.at(edges, ends[low], -1)
    # Requests that were not good in a window that is too low: it is low until the last of them.
    low_s = np.append(times[(np.cumsum(edges)[:-1] > 0) & ~good], math.inf)
    fine = np.flatnonzero(low_s[np.searchsorted(low_s, times)] > times + CALM_S)
    if len(fine) == 0:
        return None
    back_s = span.start_s if fine[0] == 0 else float(times[fine[0]])
    return back_s - span.start_s if back_s + CALM_S <= times[-1] else None
