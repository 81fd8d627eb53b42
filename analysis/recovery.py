"""What a fault cost, in time: from injection to detection and mitigation, from heal to the steady state."""

import contextlib
import math

import msgspec
import numpy as np
import numpy.typing as npt
import pandas as pd

from analysis.facts import (
    CLOCK_TOLERANCE_S,
    CannotJudge,
    FaultWindow,
    QuietSpan,
    fault_windows,
    hit_every_worker,
    offered,
    quiet_spans,
    recovery_limit_s,
    worker_count,
)
from analysis.history import History
from analysis.statistics import percentile
from analysis.timeline import breakers, controllers, membership, states_at

FAILING_SHARE_MAX = 0.01
WINDOW_S = 2.0
LATENCY_FACTOR = 2.0
LATENCY_SLACK_S = 0.25
CALM_S = 5.0
NEAR_S = 0.6
"""A sample so much before a moment tells of it: nodes are sampled twice a second."""
STEADY_RULE = (
    "from then on until the end all workers ready, all breakers closed and at most 1 % of requests failing, "
    "and for 5 s p95 latency in every 2 s at most twice the baseline's, or 0.25 s above it"
)
_ABOUT_SUBJECT = ("worker_suspected", "worker_dead", "breaker_opened", "contact_lost", "link_down", "engine_died")
_ABOUT_WRITER = ("link_down", "engine_died", "resubmitted")
_DISTRUST = ("worker_suspected", "worker_dead", "breaker_opened")
_TARGETS_SHOWN = 3
_ALREADY, _SHORT = "already_distrusted", "RESOURCE_LIMIT_EXCEEDED"
_UNSEEN = "unseen"
"""Of somebody else's cluster nobody tells who noticed what."""


class FaultTimes(msgspec.Struct, frozen=True):
    """One injected fault. Durations in seconds; None where it never happened (in the time that belongs to the fault:
    until the injection of the next one that was not on with it, or the run's end).

    detection_s: from injection to the first sign that anyone had of it; noticed_by and noticed_how: who, and by what
    kind of event (`attempt_failed`, `attempt_refused`: a controller's attempt on a target; `already_distrusted`: nobody
    trusted its targets when it struck, so there was nothing to notice). predicted_s: when detection was due at the
    latest, predicted_by: by what. late: whether that was exceeded by more than tolerance_s; None where nothing was due.
    detection_known: False where there was nothing to notice, or the next fault came before anybody had to and had.
    mitigation_s: the longest time from a strike (the injection, or a repetition of it) to a dispatch that was wasted
    on a target before the controller first suspected it or opened its breaker, 0 without one (until the heal if it
    never did).
    return_to_steady_s: from the heal (of the last fault that was on with this one), by STEADY_RULE. not_judged: why
    nobody can say whether the steady state came back, empty where it is known. followed: the next fault came before the
    run's end.
    at_risk: requests that hung on a target when it struck or came to hang on it before it was healed: on a worker by
    an attempt, on a client because it sent them, on the broker, the only controller or all workers together always.
    """

    name: str
    kind: str
    targets: tuple[str, ...]
    injected_s: float
    healed_s: float | None
    detection_s: float | None
    noticed_by: str
    noticed_how: str
    mitigation_s: float
    return_to_steady_s: float | None
    followed: bool = False
    predicted_s: float | None = None
    predicted_by: str = ""
    at_risk: int = 0
    not_judged: str = ""
    tolerance_s: float = CLOCK_TOLERANCE_S
    late: bool | None = None
    detection_known: bool = True

    @property
    def label(self) -> str:
        """Kind and targets, for people."""
        return _label(self.kind, self.targets)

    def punctuality(self) -> str:
        """Whether it was noticed when it was due, as a phrase; empty where nothing was due."""
        if self.late is None or self.predicted_s is None:
            return ""
        if not self.late:
            return f"in time (tolerance {self.tolerance_s:.2f} s)"
        return "late: never" if self.detection_s is None else f"late by {self.detection_s - self.predicted_s:.2f} s"

    def noticed(self) -> str:
        """Who noticed it and when it was due, as a phrase."""
        if self.noticed_how == _ALREADY:
            return "its targets were distrusted already when it struck"
        noticed = (
            "nobody noticed it"
            if self.detection_s is None
            else f"{self.noticed_by} noticed it after {self.detection_s:.2f} s ({self.noticed_how})"
        )
        if self.predicted_s is not None:
            noticed += f"; by its policy after {self.predicted_s:.2f} s at the latest ({self.predicted_by})"
        return f"{noticed}: {self.punctuality()}" if self.late is not None else noticed

    def returned(self) -> str:
        """When the steady state came back, as a phrase."""
        if self.not_judged:
            return f"the return to the steady state was not judged: {self.not_judged}"
        if self.return_to_steady_s is None:
            return "the steady state never came back"
        return f"the steady state was back {self.return_to_steady_s:.2f} s after the heal"

    def explanation(self) -> str:
        """The three times as a sentence."""
        if self.noticed_how == _UNSEEN:
            return f"{self.name}: who noticed it cannot be seen from outside; {self.returned()}"
        many = "1 request was" if self.at_risk == 1 else f"{self.at_risk or 'no'} requests were"
        risk = f"{many} at risk"
        return (
            f"{self.name}: {self.noticed()}; {risk}; work went to its targets for {self.mitigation_s:.2f} s; "
            f"{self.returned()}"
        )


def fault_times(history: History) -> list[FaultTimes]:
    """The times of every injected fault, by injection."""
    windows, lines = fault_windows(history), offered(history)
    proved = set(history.faults.loc[history.faults["verified"].astype(bool), "name"])
    spans = {span.fault: span for span in quiet_spans(history)}
    returns: dict[tuple[float, float], float | None] = {}
    times = []
    for fault in windows:
        span = spans.get(fault)
        if span is not None and (span.start_s, span.end_s) not in returns:
            returns[span.start_s, span.end_s] = _return_to_steady(history, span)
        back_s = None if span is None else returns[span.start_s, span.end_s]
        until_s = span.end_s if span is not None and span.followed else math.inf
        distrusting = _distrusting(history, fault)
        noticed = None if distrusting else _first_notice(history, fault, until_s)
        detection_s = None if noticed is None else noticed[0] - fault.injected_s
        tolerance_s = _tolerance_s(history, fault, noticed)
        times.append(
            FaultTimes(
                name=fault.name,
                kind=fault.kind,
                targets=fault.targets,
                injected_s=fault.injected_s,
                healed_s=None if math.isinf(fault.healed_s) else fault.healed_s,
                detection_s=detection_s,
                noticed_by=distrusting or ("" if noticed is None else noticed[1]),
                noticed_how=_how(history, distrusting, noticed),
                mitigation_s=_mitigation(history, fault),
                return_to_steady_s=back_s,
                followed=span is not None and span.followed,
                predicted_s=fault.predicted_s,
                predicted_by=fault.predicted_by,
                at_risk=len(touched(history, fault, lines)),
                not_judged="" if span is None or back_s is not None else _cut_off(history, span, windows),
                tolerance_s=tolerance_s,
                # Of a fault that did not prove that it bites nobody had anything to notice.
                late=None
                if distrusting or fault.name not in proved
                else _late(history, fault, detection_s, tolerance_s),
                detection_known=not history.info.outside
                and (detection_s is not None or not (distrusting or _undecided(fault, until_s))),
            )
        )
    return times


def return_limit_s(history: History) -> float:
    """How long a return may take by what the experiment says anywhere, infinite where it says nothing."""
    asked = history.experiment.get("expectations")
    limits = [
        float(each["at_most"])
        for each in (asked.values() if isinstance(asked, dict) else ())
        if isinstance(each, dict) and each.get("metric") == "return_to_steady_s" and each.get("at_most") is not None
    ]
    with contextlib.suppress(CannotJudge):
        limits.append(recovery_limit_s(history))
    return max(limits, default=math.inf)


def _cut_off(history: History, span: QuietSpan, windows: list[FaultWindow]) -> str:
    """Why a return that was not seen may have come yet: the next fault struck before it was due. Else nothing."""
    if not span.followed or span.end_s - span.start_s >= return_limit_s(history) + CALM_S:
        return ""
    following = next(window for window in windows if window.injected_s == span.end_s)
    gap_s = span.end_s - span.start_s
    return f"{_label(following.kind, following.targets)} struck {gap_s:.2f} s after the heal"


def _label(kind: str, targets: tuple[str, ...]) -> str:
    if len(targets) <= _TARGETS_SHOWN:
        return f"{kind} {', '.join(targets)}"
    return f"{kind} {', '.join(targets[: _TARGETS_SHOWN - 1])} and {len(targets) - _TARGETS_SHOWN + 1} more"


def _tolerance_s(history: History, fault: FaultWindow, noticed: tuple[float, str, str] | None) -> float:
    """How far a measured detection may exceed its prediction and be in time: the bound of two nodes' clocks, within
    which lie a message's travel and the injection's own command too, and by how much the loop that noticed was late
    when it mattered: as it heard the last of what was sent before the injection, or when it noticed."""
    if noticed is None:
        return CLOCK_TOLERANCE_S
    nodes = history.nodes[history.nodes["node"] == noticed[1]]
    lag_s = max(_lag_s(nodes, fault.injected_s), _lag_s(nodes, noticed[0]))
    return CLOCK_TOLERANCE_S + lag_s


def _lag_s(samples: pd.DataFrame, time_s: float) -> float:
    """How late a node's loop was about then: by the samples of the node less than NEAR_S before and the next after."""
    before = samples[(samples["time_s"] > time_s - NEAR_S) & (samples["time_s"] < time_s)]
    # A loop that stands still takes its next sample late, and that one tells.
    after = samples[samples["time_s"] >= time_s].nsmallest(1, "time_s")
    lag_s = pd.concat([before, after])["loop_lag_s"].max()
    return 0.0 if pd.isna(lag_s) else max(0.0, float(lag_s))


def _late(history: History, fault: FaultWindow, detection_s: float | None, tolerance_s: float) -> bool | None:
    if fault.predicted_s is None:
        return None
    if detection_s is not None:
        return detection_s > fault.predicted_s + tolerance_s
    # What was gone before it had to be noticed need not be noticed, and of a run that was cut nobody knows.
    if not history.info.complete or fault.healed_s < fault.injected_s + fault.predicted_s + tolerance_s:
        return None
    return True


def _undecided(fault: FaultWindow, until_s: float) -> bool:
    """Whether the next fault came before this one had to be noticed by anybody."""
    return until_s < (math.inf if fault.predicted_s is None else fault.injected_s + fault.predicted_s)


def _how(history: History, distrusting: str | None, noticed: tuple[float, str, str] | None) -> str:
    if history.info.outside:
        return _UNSEEN
    return _ALREADY if distrusting else "" if noticed is None else noticed[2]


def _first_notice(history: History, fault: FaultWindow, until_s: float) -> tuple[float, str, str] | None:
    """When, by whom and how, before until_s: what is noticed from then on is another fault."""
    if history.info.outside:
        return None
    events = history.events[(history.events["time_s"] >= fault.injected_s) & (history.events["time_s"] < until_s)]
    subject = events["kind"].isin(_ABOUT_SUBJECT) & events["subject"].isin(fault.targets)
    writer = events["kind"].isin(_ABOUT_WRITER) & events["node"].isin(fault.targets)
    # Every node hangs on the broker: whoever loses its link has noticed.
    anyone = (events["kind"] == "link_down") & ("broker" in fault.targets)
    told = events.loc[subject | writer | anyone, ["time_s", "node", "kind"]]
    # A worker that is short says so itself. What else it refuses, it may refuse at any time.
    refused = (history.attempts["outcome"] == "refused") & (history.attempts["code"] == _SHORT)
    refused &= _SHORT in fault.explains
    attempts = history.attempts[
        (history.attempts["side"] == "controller")
        & ((history.attempts["outcome"] == "failed") | refused)
        & history.attempts["worker"].isin(fault.targets)
        & (history.attempts["ended_s"] >= fault.injected_s)
        & (history.attempts["ended_s"] < until_s)
    ]
    failed = attempts[["ended_s", "node"]].rename(columns={"ended_s": "time_s"})
    failed = failed.assign(kind="attempt_" + attempts["outcome"])
    both = pd.concat([told, failed]).sort_values("time_s", kind="stable")
    if both.empty:
        return None
    first = both.iloc[0]
    return float(first["time_s"]), str(first["node"]), str(first["kind"])


def _distrusting(history: History, fault: FaultWindow) -> str | None:
    """A controller in whose eyes no target was fit for work a moment before; None if it had any to lose."""
    before = history.events[history.events["time_s"] < fault.injected_s]
    if not fault.targets or not set(fault.targets) <= set(before.loc[before["kind"].isin(_DISTRUST), "subject"]):
        return None
    known, broken = (states_at(read(before), math.inf) for read in (membership, breakers))
    if any(known.get(name) == "ready" and broken.get(name, "closed") == "closed" for name in fault.targets):
        return None
    told = before[before["kind"].isin(_DISTRUST) & before["subject"].isin(fault.targets)]
    return str(told.sort_values("time_s", kind="stable")["node"].iloc[-1])


def touched(history: History, fault: FaultWindow, lines: pd.DataFrame) -> set[str]:
    """The ids of the requests at risk, see FaultTimes. lines: as of `offered`."""
    attempts = history.attempts[history.attempts["side"] == "controller"]
    ends_s = lines["ended_s"].fillna(math.inf)
    alive = lines[(lines["intended_s"] < fault.healed_s) & (ends_s > fault.injected_s)]
    deciders = controllers(history.events)
    everybody = "broker" in fault.targets or hit_every_worker([fault], worker_count(history))
    if everybody or (deciders and deciders <= set(fault.targets)):
        return set(alive["request_id"])
    on = attempts["worker"].isin(fault.targets) | attempts["node"].isin(fault.targets)
    open_then = attempts[on & (attempts["begun_s"] < fault.healed_s) & (attempts["ended_s"] > fault.injected_s)]
    return {*open_then["request_id"], *alive.loc[alive["node"].isin(fault.targets), "request_id"]}


def _mitigation(history: History, fault: FaultWindow) -> float:
    events, attempts = history.events, history.attempts
    distrusted = events[events["kind"].isin(_DISTRUST) & (events["time_s"] >= fault.injected_s)]
    # A link that flaps earns trust and loses it again, and a half-open breaker sends its probe: what it costs to notice
    # a return is not what it cost to react.
    until_s = distrusted.groupby("subject")["time_s"].min()
    wasted = attempts[
        (attempts["side"] == "controller")
        & attempts["worker"].isin(fault.targets)
        & (attempts["begun_s"] >= fault.injected_s)
        & (attempts["begun_s"] < fault.healed_s)
        & (attempts["begun_s"] <= attempts["worker"].map(until_s).astype(float).fillna(math.inf))
        & (attempts["outcome"] != "completed")
    ]
    repeated = events[(events["kind"] == "fault_repeated") & events["subject"].isin(fault.targets)]["time_s"]
    strikes = np.sort([fault.injected_s, *repeated[repeated.between(fault.injected_s, fault.healed_s)]])
    before = strikes[np.searchsorted(strikes, wasted["begun_s"], side="right") - 1]
    # What was under way when the next strike came was sent over a link that worked, and broke with it.
    under_way = np.searchsorted(strikes, wasted["ended_s"], side="right") > np.searchsorted(
        strikes, wasted["begun_s"], side="right"
    )
    late_s = (wasted["begun_s"] - before)[~under_way]
    return 0.0 if late_s.empty else float(late_s.max())


def load_end_s(history: History, span: QuietSpan) -> float:
    """Until when a quiet span holds load: what drains after the last phase says nothing about load."""
    phases = [phase for phase in history.phases() if math.isfinite(phase.end_s)]
    return min([span.end_s, *(phase.end_s for phase in phases[-1:])])


def _return_to_steady(history: History, span: QuietSpan) -> float | None:
    whole_s = _whole_again(history, span)
    lines = offered(history)
    if not history.info.complete:
        lines = lines[lines["outcome"] != "in_flight"]
    end_s = load_end_s(history, span)
    lines = lines[(lines["outcome"] != "cancelled") & lines["intended_s"].between(span.start_s, end_s)]
    if whole_s is None or lines.empty:
        return None
    intended = lines["intended_s"].to_numpy()
    failing = (lines["outcome"] != "completed").to_numpy()
    share = np.cumsum(failing[::-1])[::-1] / np.arange(len(failing), 0, -1)
    fine = share <= FAILING_SHARE_MAX
    # A slow moment long after the return is a matter of the latency criteria: hosts have such moments without a fault.
    slow_s = np.append(intended[_slow(lines, _latency_limit(history))], math.inf)
    fine &= slow_s[np.searchsorted(slow_s, intended)] > intended + CALM_S
    first = int(np.searchsorted(intended, whole_s))
    found = first + np.flatnonzero(fine[first:])
    if len(found) == 0:
        return None
    steady_s = whole_s if found[0] == first else float(intended[found[0]])
    # The calm must have been seen, or the end of the load would pass for calm.
    return steady_s - span.start_s if steady_s + CALM_S <= intended[-1] else None


def _whole_again(history: History, span: QuietSpan) -> float | None:
    """From when on until the span's end every worker is ready and every breaker closed; None if one is not."""
    whole_s = span.start_s
    for changes, good in ((membership(history.events), "ready"), (breakers(history.events), "closed")):
        seen = changes[span.ends_after(changes["time_s"])]
        for _, of_worker in seen.groupby("worker", sort=False):
            bad = np.flatnonzero((of_worker["state"] != good).to_numpy())
            if len(bad) == 0:
                continue
            if bad[-1] == len(of_worker) - 1:
                return None
            whole_s = max(whole_s, float(of_worker["time_s"].iloc[bad[-1] + 1]))
    return whole_s


def _latency_limit(history: History) -> float:
    name = history.experiment.get("baseline_phase", "baseline")
    lines = offered(history)
    for phase in history.phases():
        if phase.name == name:
            inside = lines[lines["intended_s"].between(phase.start_s, phase.end_s) & (lines["outcome"] == "completed")]
            usual = percentile((inside["ended_s"] - inside["intended_s"]).to_numpy(), 0.95)
            if usual is not None:
                return max(LATENCY_FACTOR * usual, usual + LATENCY_SLACK_S)
    return math.inf


def _slow(lines: pd.DataFrame, limit_s: float) -> npt.NDArray[np.bool_]:
    """For each request: whether the WINDOW_S seconds from it on, all seen, have a p95 above the limit."""
    intended: npt.NDArray[np.float64] = lines["intended_s"].to_numpy()
    latency = np.where(lines["outcome"] == "completed", lines["ended_s"] - lines["intended_s"], np.nan)
    ends = np.searchsorted(intended, intended + WINDOW_S)
    slow = np.zeros(len(intended), dtype=bool)
    for index in range(len(intended)):
        if intended[index] + WINDOW_S > intended[-1]:
            break
        window = np.sort(latency[index : ends[index]][~np.isnan(latency[index : ends[index]])])
        slow[index] = len(window) > 0 and window[math.ceil(0.95 * len(window)) - 1] > limit_s
    return slow
