"""What a fault cost, in time: from injection to detection and mitigation, from heal to the steady state."""

import math

import msgspec
import numpy as np
import numpy.typing as npt
import pandas as pd

from analysis.facts import FaultWindow, QuietSpan, fault_windows, offered, quiet_spans
from analysis.history import History
from analysis.statistics import percentile
from analysis.timeline import breakers, membership

FAILING_SHARE_MAX = 0.01
WINDOW_S = 2.0
LATENCY_FACTOR = 2.0
LATENCY_SLACK_S = 0.25
CALM_S = 5.0
STEADY_RULE = (
    "from then on until the end all workers ready, all breakers closed and at most 1 % of requests failing, "
    "and for 5 s p95 latency in every 2 s at most twice the baseline's, or 0.25 s above it"
)
_ABOUT_SUBJECT = ("worker_suspected", "worker_dead", "breaker_opened", "contact_lost", "link_down", "engine_died")
_ABOUT_WRITER = ("link_down", "engine_died")
_DISTRUST = ("worker_suspected", "worker_dead", "breaker_opened")


class FaultTimes(msgspec.Struct, frozen=True):
    """One injected fault. Durations in seconds; None where it never happened (in this history).

    detection_s: from injection to the first sign that anyone had of it; noticed_by and noticed_how: who, and by what
    kind of event (`attempt_failed`: a controller's attempt on a target).
    mitigation_s: the longest time from a strike (the injection, or a repetition of it) to a dispatch that was wasted
    on a target before the controller first suspected it or opened its breaker, 0 without one (until the heal if it
    never did).
    return_to_steady_s: from the heal (of the last fault that was on with this one), by STEADY_RULE. followed: the next
    fault came before the run's end. predicted_s: when detection was due at the latest, predicted_by: by what.
    at_risk: requests that were on a target when it struck, or were sent there before it was healed.
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

    def explanation(self) -> str:
        """The three times as a sentence."""
        noticed = (
            "nobody noticed it"
            if self.detection_s is None
            else f"{self.noticed_by} noticed it after {self.detection_s:.2f} s ({self.noticed_how})"
        )
        if self.predicted_s is not None:
            noticed += f"; by its policy after {self.predicted_s:.2f} s at the latest ({self.predicted_by})"
        steady = (
            "the steady state never came back"
            if self.return_to_steady_s is None
            else f"the steady state was back {self.return_to_steady_s:.2f} s after the heal"
        )
        risk = f"{self.at_risk} requests were at risk" if self.at_risk else "no request was at risk"
        return f"{self.name}: {noticed}; {risk}; work went to its targets for {self.mitigation_s:.2f} s; {steady}"


def fault_times(history: History) -> list[FaultTimes]:
    """The times of every injected fault, by injection."""
    spans = {span.fault: span for span in quiet_spans(history)}
    times = []
    for fault in fault_windows(history):
        noticed = _first_notice(history, fault)
        span = spans.get(fault)
        times.append(
            FaultTimes(
                name=fault.name,
                kind=fault.kind,
                targets=fault.targets,
                injected_s=fault.injected_s,
                healed_s=None if math.isinf(fault.healed_s) else fault.healed_s,
                detection_s=None if noticed is None else noticed[0] - fault.injected_s,
                noticed_by="" if noticed is None else noticed[1],
                noticed_how="" if noticed is None else noticed[2],
                mitigation_s=_mitigation(history, fault),
                return_to_steady_s=None if span is None else _return_to_steady(history, span),
                followed=span is not None and span.followed,
                predicted_s=fault.predicted_s,
                predicted_by=fault.predicted_by,
                at_risk=_at_risk(history, fault),
            )
        )
    return times


def _first_notice(history: History, fault: FaultWindow) -> tuple[float, str, str] | None:
    events = history.events[history.events["time_s"] >= fault.injected_s]
    subject = events["kind"].isin(_ABOUT_SUBJECT) & events["subject"].isin(fault.targets)
    writer = events["kind"].isin(_ABOUT_WRITER) & events["node"].isin(fault.targets)
    # Every node hangs on the broker: whoever loses its link has noticed.
    anyone = (events["kind"] == "link_down") & ("broker" in fault.targets)
    told = events.loc[subject | writer | anyone, ["time_s", "node", "kind"]]
    attempts = history.attempts[
        (history.attempts["side"] == "controller")
        & (history.attempts["outcome"] == "failed")
        & history.attempts["worker"].isin(fault.targets)
        & (history.attempts["ended_s"] >= fault.injected_s)
    ]
    failed = attempts[["ended_s", "node"]].rename(columns={"ended_s": "time_s"}).assign(kind="attempt_failed")
    both = pd.concat([told, failed]).sort_values("time_s", kind="stable")
    if both.empty:
        return None
    first = both.iloc[0]
    return float(first["time_s"]), str(first["node"]), str(first["kind"])


def _at_risk(history: History, fault: FaultWindow) -> int:
    attempts = history.attempts[
        (history.attempts["side"] == "controller") & history.attempts["worker"].isin(fault.targets)
    ]
    open_then = attempts[(attempts["begun_s"] < fault.healed_s) & (attempts["ended_s"] > fault.injected_s)]
    return int(open_then["request_id"].nunique())


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
        & (attempts["begun_s"] <= attempts["worker"].map(until_s).fillna(math.inf))
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


def _return_to_steady(history: History, span: QuietSpan) -> float | None:
    whole_s = _whole_again(history, span)
    lines = offered(history)
    if not history.info.complete:
        lines = lines[lines["outcome"] != "in_flight"]
    phases = [phase for phase in history.phases() if math.isfinite(phase.end_s)]
    end_s = min([span.end_s, *(phase.end_s for phase in phases[-1:])])
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
