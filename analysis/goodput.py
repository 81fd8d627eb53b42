"""Whether goodput comes back with the load after a fault. Where the load is as before and goodput stays low, the
cluster keeps itself down: a metastable failure (Bronson and others, Metastable failures in distributed systems, HotOS
2021)."""

import math
from enum import StrEnum

import msgspec
import numpy as np
import numpy.typing as npt
from scipy.stats import binom

from analysis.facts import CannotJudge, QuietSpan, fault_windows, offered
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
    CALM_S; None also where it is back and was never seen away, or nobody can tell since when. text: the finding, a
    phrase.
    """

    before: Share
    last: Share
    state: Return
    back_s: float | None
    text: str


class Load(msgspec.Struct, frozen=True):
    """The requests of a run that somebody wanted, in order: when they were due, and whether they were good.

    patience_s: how long after it was due a request is good or is not: the steady state's limit, without one the
    longest time that one of them took in the baseline.
    """

    intended_s: npt.NDArray[np.float64]
    good: npt.NDArray[np.bool_]
    patience_s: float = 0.0

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
        took_s = (lines["ended_s"] - lines["intended_s"])[lines["outcome"] == "completed"]
        good = took_s.reindex(lines.index) <= limit_s
        usual_s = took_s[lines["intended_s"].between(*baseline_span(history))].max()
        patience_s = limit_s if math.isfinite(limit_s) else float(np.nan_to_num(usual_s))
        return cls(lines["intended_s"].to_numpy(dtype=float), good.to_numpy(dtype=bool), patience_s)

    def between(self, start_s: float, end_s: float) -> npt.NDArray[np.float64]:
        """When those were due that were due from start_s until before end_s."""
        first, past = np.searchsorted(self.intended_s, [start_s, end_s])
        return self.intended_s[first:past]

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


def last_part(history: History, span: QuietSpan, patience_s: float = 0.0) -> tuple[float, float]:
    """Start and end of the last part of a quiet span, seconds since the run began; empty where it would be a moment.

    patience_s: what was due so shortly before the next fault may have met it, and is left out.
    """
    end_s = max(span.start_s, load_end_s(history, span) - (patience_s if span.followed else 0.0))
    if end_s - span.start_s < 2 * LAST_MIN_S:
        return end_s, end_s
    return end_s - min(LAST_S, (end_s - span.start_s) / 2), end_s


def goodput_return(history: History, load: Load, span: QuietSpan, began_s: float, cut_off: str) -> GoodputReturn:
    """Whether goodput came back in a quiet span after faults that began at began_s.

    cut_off: by which fault it was cut too short, "" if by none.
    """
    start_s, end_s = last_part(history, span, load.patience_s)
    before, last = load.over(*baseline_span(history)), load.over(start_s, end_s)

    def result(state: Return, text: str, back_s: float | None = None) -> GoodputReturn:
        return GoodputReturn(before, last, state, back_s, text)

    seen_s = end_s - span.start_s
    if cut_off and seen_s < CALM_S:
        return result(Return.NOT_JUDGED, f"not judged: {cut_off}")
    floor = before.interval()
    nothing = _nothing_to_compare(history, before, last)
    if nothing or floor is None:
        return result(Return.CANNOT_SAY, f"cannot say ({nothing})")
    low = binom.cdf(last.good, last.requests, floor[0]) < _LAST_DOUBT
    calm = None if low else _first_calm(load, span.start_s, end_s, floor[0])
    if calm is not None:
        if _below(last, before):
            said = f"only {last.per_s:.1f} /s were offered at last, {before.per_s:.1f} /s before"
            return result(Return.CANNOT_SAY, f"cannot say ({said})")
        return result(Return.BACK, *_since_when(load, span, began_s, calm, floor[0]))
    if cut_off:
        return result(Return.NOT_JUDGED, f"not judged: {cut_off}")
    if not history.info.complete:
        return result(Return.CANNOT_SAY, "cannot say (the run was cut)")
    if seen_s < CALM_S:
        end = "the next fault struck too soon" if span.followed else f"the load ended {seen_s:.2f} s after the heal"
        return result(Return.CANNOT_SAY, f"cannot say ({end})")
    if _above(last, before):
        return result(Return.CANNOT_SAY, "cannot say (the load was above the baseline's)")
    within = "before the next fault" if span.followed else "within the run"
    return result(Return.NEVER, f"not back {within} (metastable?)")


def _nothing_to_compare(history: History, before: Share, last: Share) -> str:
    """Why nothing can be said, a phrase; empty where something can."""
    floor = before.interval()
    if floor is None or min(before.requests, last.requests) < REQUESTS_MIN:
        scarce = f"{before.requests} before" if before.requests < REQUESTS_MIN else f"{last.requests} at last"
        return f"too few requests: {scarce}"
    start_s, end_s = baseline_span(history)
    if any(window.injected_s < end_s and start_s < window.healed_s for window in fault_windows(history)):
        return "a fault was on in the baseline"
    if _chance_of_none(last.requests, floor[0]) >= _LAST_DOUBT:
        # Were none good at last, that would be nothing new.
        return f"goodput was {before.share:.0%} before"
    return ""


def _above(last: Share, before: Share) -> bool:
    """Whether more was offered than in the baseline, by more than the slack and than chance.

    Given their sum, one of two Poisson counts of equal rates is binomial (Przyborowski and Wilenski, Homogeneity of
    results in testing samples from Poisson series, Biometrika 31 (1940)).
    """
    if last.per_s is None or before.per_s is None or last.per_s <= (1 + LOAD_SLACK) * before.per_s:
        return False
    share = last.length_s / (last.length_s + before.length_s)
    return bool(binom.sf(last.requests - 1, last.requests + before.requests, share) < _LOAD_DOUBT)


def _below(last: Share, before: Share) -> bool:
    """Whether less was offered than in the baseline, by more than the slack and than chance: see _above."""
    if last.per_s is None or before.per_s is None or last.per_s >= (1 - LOAD_SLACK) * before.per_s:
        return False
    share = last.length_s / (last.length_s + before.length_s)
    return bool(binom.cdf(last.requests, last.requests + before.requests, share) < _LOAD_DOUBT)


def _chance_of_none(requests: int | float, share: float) -> float:
    """How likely it is that none of so many requests is good where this share of them should be."""
    return float((1 - share) ** requests)


class Calm(msgspec.Struct, frozen=True):
    """From when on goodput stays up, seconds since the heal. unseen: why that is no measurement, a phrase."""

    after_s: float
    unseen: str


def _since_when(load: Load, span: QuietSpan, began_s: float, calm: Calm, floor: float) -> tuple[str, float | None]:
    """Since when it is back, as a phrase, and in seconds after the heal where it was seen to come back."""
    if calm.unseen:
        return f"back, since when cannot be told ({calm.unseen})", None
    if len(_low_times(load, began_s, span.start_s + calm.after_s + CALM_S, floor)):
        return f"came back after {calm.after_s:.2f} s", calm.after_s
    if unseen := _unseen(load.between(began_s, span.start_s), began_s, span.start_s, floor):
        return f"up, whether it was ever away cannot be told ({unseen})", None
    return "was never away", None


def _unseen(times: npt.NDArray[np.float64], start_s: float, end_s: float, floor: float) -> str:
    """Why requests due at these times, all between start_s and end_s, would not have shown that goodput is away."""
    gap_s = float(np.diff(np.concatenate([[start_s], times, [end_s]])).max())
    if gap_s > WINDOW_S:
        return f"nothing was offered for {gap_s:.1f} s"
    held = len(times) * WINDOW_S / (end_s - start_s) if end_s > start_s else 0.0
    if _chance_of_none(held, floor) >= _WINDOW_DOUBT:
        return f"{held:.1f} requests in {WINDOW_S:g} s show nothing"
    return ""


def _low_times(load: Load, start_s: float, end_s: float, floor: float) -> npt.NDArray[np.float64]:
    """When requests were due that were not good, in a window of WINDOW_S that is below the floor; by time."""
    first, past = np.searchsorted(load.intended_s, [start_s, end_s])
    times, good = load.intended_s[first:past], load.good[first:past]
    ends = np.searchsorted(times, times + WINDOW_S)
    sums = np.concatenate([[0], np.cumsum(good)])
    held = ends - np.arange(len(times))
    low = np.flatnonzero(binom.cdf(sums[ends] - sums[:-1], held, floor) < _WINDOW_DOUBT)
    edges = np.zeros(len(times) + 1, dtype=int)
    np.add.at(edges, low, 1)
    np.add.at(edges, ends[low], -1)
    # It is low until the last of them.
    low_times: npt.NDArray[np.float64] = times[(np.cumsum(edges)[:-1] > 0) & ~good]
    return low_times


def _first_calm(load: Load, healed_s: float, end_s: float, floor: float) -> Calm | None:
    """The first moment from which goodput stays up for CALM_S, all of it seen."""
    times = load.between(healed_s, end_s)
    low_s = np.append(_low_times(load, healed_s, end_s, floor), math.inf)
    fine = np.flatnonzero(low_s[np.searchsorted(low_s, times)] > times + CALM_S)
    if len(fine) == 0:
        return None
    back_s = healed_s if fine[0] == 0 else float(times[fine[0]])
    if back_s + CALM_S > times[-1]:
        return None
    since_s = healed_s if fine[0] == 0 else float(times[fine[0] - 1])
    # Until the first one after the calm, or a pause would seem to end with it.
    inside = times[np.searchsorted(times, since_s) : np.searchsorted(times, back_s + CALM_S) + 1]
    return Calm(back_s - healed_s, _unseen(inside, since_s, max(back_s + CALM_S, float(inside[-1])), floor))
