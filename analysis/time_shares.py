"""Where the time of completed requests goes: from the intended send time to the end of the answer, part by part."""

import math

import msgspec
import numpy as np
import numpy.typing as npt
import pandas as pd

from analysis.facts import offered
from analysis.history import History

PARTS: dict[str, str] = {
    "send": "the client was late to send it",
    "bus": "under way between the nodes",
    "controller": "waiting at the controller",
    "retry": "attempts that came to nothing, and the waits after them",
    "queue": "waiting on the worker",
    "prefill": "computing the prompt",
    "decode": "making tokens",
    "unknown": "nobody left a row that says",
}
"""The parts in the order in which a request meets them (it is under way several times), and what each is."""

WAITING = ("controller", "queue")
"""Parts that would be zero in an idle cluster."""

Floats = npt.NDArray[np.float64]

# What lies between one point of a request's life and the next.
_POINTS = (
    "intended_s", "sent_s", "accepted_s", "first_dispatched_s", "dispatched_s", "received_s", "started_s",
    "first_token_s", "made_s", "ended_s",
)  # fmt: skip
_BETWEEN = ("send", "bus", "controller", "retry", "bus", "queue", "prefill", "decode", "bus")
_LAST_ATTEMPT = ["request_id", "submission", "attempt", "worker"]


class TimeShares(msgspec.Struct, frozen=True):
    """The mean request of a phase and arm. mean_s: end to end; parts: mean seconds by name of PARTS; they add up to it.

    phase, arm: empty where all are counted together, or there is none.
    """

    phase: str
    arm: str
    requests: int
    mean_s: float
    parts: dict[str, float]

    def share(self, *names: str) -> float:
        """What share of the time the named parts have together, 0..1."""
        return sum(self.parts[name] for name in names) / self.mean_s if self.mean_s > 0 else 0.0


def request_times(history: History, *, until_first_token: bool = False) -> pd.DataFrame:
    """One line per completed request: request_id, arm, intended_s, ended_s, the seconds of every part, and total_s.

    All times are on the axis of the run. A point that the merge of clocks put before the one before it counts as the
    same moment, so that no part is negative and all of them add up. What lies around a point that nobody recorded is
    unknown. The way back from the worker includes what the stream gathers before it sends.
    until_first_token: only up to the first token where the caller has it, which is then what ended_s is.
    """
    rows = offered(history)
    rows = rows[(rows["outcome"] == "completed") & rows["ended_s"].notna()]
    if until_first_token:
        rows = rows[rows["first_token_s"].notna()].assign(ended_s=rows["first_token_s"])
    points = rows[["request_id", "intended_s", "sent_s", "ended_s"]].merge(_attempts(history), "left", "request_id")
    if until_first_token:
        points["made_s"] = points["first_token_s"]
    events = history.events
    accepted = events[events["kind"] == "request_accepted"].groupby("request_id")["time_s"].min()
    points["accepted_s"] = points["request_id"].map(accepted)
    at = points[list(_POINTS)].to_numpy(dtype=float)
    known = ~np.isnan(at)
    at = np.maximum.accumulate(np.where(known, at, -np.inf), axis=1)
    # Nothing of a request comes after its end, nor before it was to be sent.
    end_s = points[["intended_s", "ended_s"]].max(axis=1).to_numpy(dtype=float)
    at = np.where(known, np.minimum(at, end_s[:, None]), np.nan)
    spent = _between(at)
    lines = points[["request_id", "intended_s", "ended_s"]].assign(**spent)
    lines["total_s"] = lines[list(PARTS)].sum(axis=1)
    lines["arm"] = lines["request_id"].map(arm_of(history)).fillna("")
    return lines


def time_shares(history: History, *, by_phase: bool = True, by_arm: bool = True) -> list[TimeShares]:
    """The mean request of every phase and arm that has a completed one, phases in order; without arms, of every phase.

    Where a comparison has arms, requests of none of them are left out.
    """
    lines = request_times(history)
    armed = by_arm and bool((lines["arm"] != "").any())
    spans = [(phase.name, phase.start_s, phase.end_s) for phase in history.phases()]
    found = []
    for name, start_s, end_s in spans if by_phase else [("", -math.inf, math.inf)]:
        inside = lines[(lines["intended_s"] >= start_s) & (lines["intended_s"] < end_s)]
        for arm in arm_order(history) if armed else [""]:
            chosen = inside[inside["arm"] == arm] if armed else inside
            if len(chosen):
                found.append(mean_request(chosen, name, arm))
    return found


def mean_request(lines: pd.DataFrame, phase: str = "", arm: str = "") -> TimeShares:
    """The mean of some lines of `request_times`, of which there must be one at least."""
    parts = {part: float(lines[part].mean()) for part in PARTS}
    return TimeShares(phase, arm, len(lines), float(lines["total_s"].mean()), parts)


def arm_of(history: History) -> "pd.Series[str]":
    """The arm of each planned request by request_id, empty for one that belongs to none."""
    plan = history.schedule.drop_duplicates("request_id")
    return plan.set_index("request_id")["arm"].fillna("")


def arm_order(history: History) -> list[str]:
    """The arms of which requests were planned, in the order of the experiment."""
    planned = set(arm_of(history)) - {""}
    named = history.experiment.get("arms")
    order = [str(name) for name in named] if isinstance(named, dict) else []
    return [name for name in order if name in planned] + sorted(planned - set(order))


def _attempts(history: History) -> pd.DataFrame:
    """When each request was first dispatched, and the life of the attempt that ended it, as far as it is known."""
    told = history.attempts
    dispatched = told[told["side"] == "controller"].sort_values("begun_s", kind="stable")
    first = dispatched.groupby("request_id")["begun_s"].min().rename("first_dispatched_s")
    last = dispatched[dispatched["outcome"] == "completed"].drop_duplicates("request_id", keep="last")
    last = last[[*_LAST_ATTEMPT, "begun_s"]].rename(columns={"begun_s": "dispatched_s"})
    worked = told[told["side"] == "worker"].drop_duplicates(_LAST_ATTEMPT, keep="last")
    worked = worked[[*_LAST_ATTEMPT, "begun_s", "started_s", "first_token_s", "ended_s"]]
    worked = worked.rename(columns={"begun_s": "received_s", "ended_s": "made_s"})
    joined = last.merge(worked, "left", _LAST_ATTEMPT).merge(first, "outer", on="request_id")
    return joined.drop(columns=_LAST_ATTEMPT[1:])


def _between(at: Floats) -> dict[str, Floats]:
    """Seconds of each part, from the points of each request in order; NaN is a point that nobody recorded."""
    spent = {part: np.zeros(len(at)) for part in PARTS}
    before = at[:, 0]
    whole = np.ones(len(at), dtype=bool)
    for index, part in enumerate(_BETWEEN, start=1):
        here = at[:, index]
        known = ~np.isnan(here)
        length = np.where(known, here - before, 0.0)
        spent[part] += np.where(whole, length, 0.0)
        spent["unknown"] += np.where(whole, 0.0, length)
        before, whole = np.where(known, here, before), known
    return spent
