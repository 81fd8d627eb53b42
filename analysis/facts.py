"""Facts that checkers, metrics and the judge share: what was offered, what came of it, and when faults were on."""

import json
import math
import re
from collections.abc import Sequence

import msgspec
import pandas as pd

from analysis.history import History
from analysis.verdict import Counts

DEADLINE_TOLERANCE_S = 1.0
"""How long after its deadline a request may still end: a timer's wake and the way back to the caller."""

CLOCK_TOLERANCE_S = 0.25
"""How far two nodes' times may lie apart after the merge."""

ENDED_OUTCOMES = ("completed", "failed", "refused", "cancelled")
_NUMBER = re.compile(r"\d+(\.\d+)?")


class CannotJudge(Exception):
    """The history lacks what a check or metric needs. The message says what, as a sentence without a full stop."""


class FaultWindow(msgspec.Struct, frozen=True):
    """When a fault was on, seconds since the run began; healed_s is infinite while nobody healed it.

    predicted_s, predicted_by: see FaultRow. at_once: how many of its targets it hits at a time; None: all of them.
    """

    name: str
    kind: str
    targets: tuple[str, ...]
    injected_s: float
    healed_s: float
    explains: tuple[str, ...]
    predicted_s: float | None = None
    predicted_by: str = ""
    at_once: int | None = None

    def overlaps(self, start_s: float, end_s: float, linger_s: float = 0.0) -> bool:
        """Whether the fault, or the `linger_s` seconds after its heal, touches the closed span."""
        return self.injected_s <= end_s and start_s <= self.healed_s + linger_s


class QuietSpan(msgspec.Struct, frozen=True):
    """After a fault: from its heal, or that of the last fault that was on with it, until the next injection or the
    run's end. followed: it was the next injection."""

    fault: FaultWindow
    start_s: float
    end_s: float
    followed: bool

    def ends_after(self, times_s: "pd.Series[float]") -> "pd.Series[bool]":
        """Which of these times lie before its end. In the moment of the next injection the next fault is at work."""
        return times_s < self.end_s if self.followed else times_s <= self.end_s


def policy(history: History, section: str, name: str) -> float:
    """A number of the resolved policy. Raises CannotJudge when the experiment has none."""
    sections = history.experiment.get("policy")
    values = sections.get(section) if isinstance(sections, dict) else None
    value = values.get(name) if isinstance(values, dict) else None
    if not isinstance(value, int | float):
        raise CannotJudge(f"the experiment does not say policy.{section}.{name}")
    return float(value)


def recovery_limit_s(history: History) -> float:
    """How long after a heal the experiment allows. Raises CannotJudge when it does not say."""
    limit = history.experiment.get("recovery_limit_s")
    if not isinstance(limit, int | float):
        raise CannotJudge("the experiment does not say recovery_limit_s")
    return float(limit)


def run_end_s(history: History) -> float:
    """When the run ended; in a run that was cut, the last moment of which anybody told."""
    ended = history.events.loc[history.events["kind"] == "run_ended", "time_s"]
    if len(ended):
        return float(ended.max())
    told = [
        history.events["time_s"].max(),
        history.requests["ended_s"].max(),
        history.attempts["ended_s"].max(),
        history.nodes["time_s"].max(),
    ]
    return max((float(time_s) for time_s in told if not math.isnan(time_s)), default=0.0)


def asked(history: History) -> "pd.Series[float]":
    """When each request of a closed load was really asked, seconds since the run began, by request_id."""
    events = history.events[history.events["kind"] == "request_asked"].drop_duplicates("request_id")
    return events.set_index("request_id")["time_s"]


def closed_lines(schedule: pd.DataFrame) -> "pd.Series[bool]":
    """Which lines of a schedule belong to a closed load."""
    return schedule["segment"].fillna("") != ""


def due(history: History) -> pd.DataFrame:
    """The rows of the schedule whose time had come when the run ended; intended_s is when it came.

    A request of a closed load is due as it is asked. One that never was has never been offered.
    """
    plan = history.schedule
    closed = closed_lines(plan)
    if closed.any():
        plan = plan.assign(intended_s=plan["intended_s"].mask(closed, plan["request_id"].map(asked(history))))
    return plan[plan["intended_s"] <= run_end_s(history)]


def finished(history: History) -> pd.DataFrame:
    """The request rows of this run. What was sent before time zero measured the capacity and is not part of it."""
    rows = history.requests
    early = rows["intended_s"] < 0
    return rows[~early | rows["request_id"].isin(history.schedule["request_id"])] if early.any() else rows


def offered(history: History) -> pd.DataFrame:
    """One line per request that was due, in order of intended_s: columns of `requests`; without one `in_flight`.

    A row that nobody scheduled is listed too, and a request with several rows by its first: invariant 1 judges both.
    """
    rows = finished(history).drop_duplicates("request_id")
    wanted = due(history)[["request_id", "intended_s"]].rename(columns={"intended_s": "scheduled_s"})
    lines = wanted.merge(rows, on="request_id", how="outer")
    # Both sides say the same; the schedule is exact, the row came over the client's clock.
    lines["intended_s"] = lines["scheduled_s"].fillna(lines["intended_s"])
    lines["outcome"] = lines["outcome"].fillna("in_flight")
    return lines.sort_values(["intended_s", "request_id"], ignore_index=True)


def counts(history: History) -> Counts:
    """How the offered requests ended, counting request rows (a request that ended twice counts twice)."""
    lines = offered(history)
    ended = finished(history)["outcome"].value_counts()
    return Counts(
        offered=len(lines),
        in_flight=int((lines["outcome"] == "in_flight").sum()),
        **{outcome: int(ended.get(outcome, 0)) for outcome in ENDED_OUTCOMES},
    )


def segments(rows: pd.DataFrame) -> pd.DataFrame:
    """The segments of request rows, one line each, in order of delivery, with the request_id and the row's label."""
    columns = ["row", "request_id", *_SEGMENT_COLUMNS]
    lines = [
        (row, request_id, *(segment[name] for name in _SEGMENT_COLUMNS))
        for row, request_id, listed in zip(rows.index, rows["request_id"], rows["segments"], strict=True)
        for segment in listed
    ]
    return pd.DataFrame(lines, columns=columns)


_SEGMENT_COLUMNS = ("index", "count", "submission", "attempt", "worker", "worker_incarnation", "received_s")


def fault_windows(history: History) -> list[FaultWindow]:
    """The faults that were injected, by time of injection."""
    injected = history.faults[history.faults["injected_s"].notna()].sort_values("injected_s", kind="stable")
    return [
        FaultWindow(
            name=row["name"],
            kind=row["kind"],
            targets=tuple(row["targets"]),
            injected_s=row["injected_s"],
            healed_s=math.inf if math.isnan(row["healed_s"]) else row["healed_s"],
            explains=tuple(row["explains"]),
            predicted_s=None if pd.isna(row["predicted_detection_s"]) else float(row["predicted_detection_s"]),
            predicted_by=row["predicted_by"] or "",
            at_once=_at_once(row["parameters"]),
        )
        for row in injected.to_dict("records")
    ]


def _at_once(parameters: str) -> int | None:
    try:
        read = json.loads(parameters)
    except (ValueError, RecursionError):
        return None
    value = read.get("at_once") if isinstance(read, dict) else None
    return value if isinstance(value, int) and value >= 0 else None


def worker_count(history: History) -> int:
    """How many workers the cluster has; 0 where the experiment does not say."""
    workers = _cluster(history).get("workers")
    return workers if isinstance(workers, int) else 0


def model_name(history: History) -> str:
    """The model that the cluster serves; empty where the experiment does not say."""
    return str(_cluster(history).get("model") or "")


def _cluster(history: History) -> dict[str, object]:
    cluster = history.experiment.get("cluster")
    return cluster if isinstance(cluster, dict) else {}


def hit_every_worker(windows: Sequence[FaultWindow], workers: int) -> bool:
    """Whether faults that are on together hit every worker of a cluster of so many. Nobody knows whom of its targets a
    fault that goes from one to the next hits just now: it may be any."""
    aims = [({name for name in window.targets if name.startswith("worker-")}, window.at_once) for window in windows]
    sure = {name for targets, at_once in aims if at_once is None for name in targets}
    perhaps = [(targets - sure, at_once) for targets, at_once in aims if at_once is not None]
    room = sum(min(at_once, len(targets)) for targets, at_once in perhaps)
    others = len(set().union(*(targets for targets, _ in perhaps)))
    return 0 < workers <= len(sure) + min(room, others)


def quiet_spans(history: History) -> list[QuietSpan]:
    """The span after each fault in which none was on, one per fault; none for a fault healed only after the end."""
    windows = fault_windows(history)
    end_s = run_end_s(history)
    spans = []
    for fault in windows:
        start_s = fault.healed_s
        for other in windows:
            if other.injected_s <= start_s < other.healed_s:
                start_s = other.healed_s
        if start_s <= end_s:
            next_s = min((other.injected_s for other in windows if other.injected_s > start_s), default=math.inf)
            spans.append(QuietSpan(fault, start_s, min(end_s, next_s), next_s <= end_s))
    return spans


def host_stalls(history: History) -> pd.DataFrame:
    """Stalls of the host in the run: node, start_s, end_s, length_s. Those that a fault made are left out."""
    end_s = run_end_s(history)
    events = history.events[(history.events["kind"] == "host_stall") & history.events["time_s"].between(0, end_s)]
    windows = fault_windows(history)
    lines = []
    for row in events.to_dict("records"):
        found = _NUMBER.search(row["detail"])
        # A stall of unknown length may have been as long as the run.
        length_s = float(found.group()) if found else row["time_s"]
        start_s = row["time_s"] - length_s
        made = any(
            row["node"] in window.targets and window.overlaps(start_s, row["time_s"], DEADLINE_TOLERANCE_S)
            for window in windows
        )
        if not made:
            lines.append((row["node"], start_s, row["time_s"], length_s))
    return pd.DataFrame(lines, columns=["node", "start_s", "end_s", "length_s"])


def require_worker_rows(history: History) -> None:
    """Raises CannotJudge when tokens were delivered and no worker ever told of an attempt.

    Single workers that were killed may leave nothing; that all of them leave nothing proves nothing.
    """
    told = (history.attempts["side"] == "worker").any() or (history.events["kind"] == "attempt_started").any()
    if not told and tokens_delivered(history):
        raise CannotJudge("no worker left a row")


def tokens_delivered(history: History) -> bool:
    """Whether any request of the run got a token."""
    return bool((finished(history)["segments"].map(len) > 0).any())


def cleanly_stopped(history: History) -> set[tuple[str, int]]:
    """Node and incarnation of those that ended on request, so that nothing of their rows is missing."""
    stopped = history.events[history.events["kind"] == "node_stopped"]
    return set(zip(stopped["node"], stopped["incarnation"], strict=True))
