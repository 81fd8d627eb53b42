"""What workers really started: repeated and late executions, from their own rows."""

import pandas as pd

from analysis.facts import CLOCK_TOLERANCE_S
from analysis.history import History

_ATTEMPT = ["request_id", "submission", "attempt"]


def repeated_starts(history: History) -> pd.DataFrame:
    """Attempts that were given to an engine more than once, on any workers: their names, `starts`, time_s of the last.

    Both the events (written at the start) and the attempt rows (written at the end) tell of a start; of a killed
    worker only the first may be left, so the larger count holds.
    """
    events = history.events[history.events["kind"] == "attempt_started"]
    rows = history.attempts[(history.attempts["side"] == "worker") & history.attempts["started_s"].notna()]
    told = pd.concat([_starts(events, "time_s"), _starts(rows, "started_s")])
    repeated = told[told["starts"] > 1].sort_values("starts", kind="stable")
    return repeated.drop_duplicates(_ATTEMPT, keep="last").sort_values(["time_s", *_ATTEMPT], ignore_index=True)


def late_starts(history: History) -> pd.DataFrame:
    """Starts past a deadline: node, attempt names, time_s, and late_s by which they missed it.

    A worker's own row is judged in its own clock, exactly. Its start event is judged against the client's deadline
    and gets CLOCK_TOLERANCE_S for the two clocks.
    """
    rows = history.attempts[history.attempts["side"] == "worker"]
    late = rows[rows["started_s"] > rows["deadline_s"]]
    own = late[["node", *_ATTEMPT]].assign(time_s=late["started_s"], late_s=late["started_s"] - late["deadline_s"])
    events = history.events[history.events["kind"] == "attempt_started"]
    deadlines = history.requests.drop_duplicates("request_id")[["request_id", "deadline_s"]]
    started = events.merge(deadlines, on="request_id")
    after = started[started["time_s"] > started["deadline_s"] + CLOCK_TOLERANCE_S]
    seen = after[["node", *_ATTEMPT, "time_s"]].assign(late_s=after["time_s"] - after["deadline_s"])
    both = pd.concat([own, seen]).drop_duplicates(["node", *_ATTEMPT])
    return both.sort_values(["time_s", *_ATTEMPT], ignore_index=True)


def _starts(rows: pd.DataFrame, time: str) -> pd.DataFrame:
    return rows.groupby(_ATTEMPT, as_index=False).agg(starts=(time, "size"), time_s=(time, "max"))
