"""Invariant 1: every accepted request ends exactly once, in time, as one thing."""

import pandas as pd

from analysis.checkers.finding import judged, violations
from analysis.facts import DEADLINE_TOLERANCE_S, ENDED_OUTCOMES, due, finished
from analysis.history import History
from analysis.verdict import InvariantResult

NUMBER = 1
NAME = "every request ends exactly once, in time"


def check(history: History) -> InvariantResult:
    """Each request that was due has one row, not later than its deadline plus DEADLINE_TOLERANCE_S.

    A request without a row hung; in a run that was cut it is in flight, which is no breach.
    """
    rows = finished(history)
    wanted = due(history)
    again = rows[rows.duplicated("request_id")]
    found = violations(again, lambda row: f"request {row['request_id']} ended twice")
    if len(history.schedule):
        unasked = rows[~rows["request_id"].isin(history.schedule["request_id"])]
        found += violations(unasked, lambda row: f"request {row['request_id']} was never scheduled")
    if history.info.complete:
        hung = wanted[~wanted["request_id"].isin(rows["request_id"])]
        found += violations(hung, lambda row: f"request {row['request_id']} never ended", "intended_s")
    late = rows[rows["ended_s"] > rows["deadline_s"] + DEADLINE_TOLERANCE_S]
    found += violations(
        late,
        lambda row: f"request {row['request_id']} ended {row['ended_s'] - row['deadline_s']:.2f} s after its deadline",
    )
    found += violations(
        rows[~_consistent(rows)],
        lambda row: (
            f"request {row['request_id']} ended as {row['outcome'] or 'nothing'} with code "
            f"{row['code'] or 'none'} and finish {row['finish'] or 'none'}"
        ),
    )
    return judged(NUMBER, NAME, found, f"{len(rows)} requests each ended once, in time")


def _consistent(rows: pd.DataFrame) -> "pd.Series[bool]":
    completed = rows["outcome"] == "completed"
    finish = rows["finish"].isin(["stop", "length"])
    return (completed & finish & (rows["code"] == "")) | (
        ~completed & rows["outcome"].isin(ENDED_OUTCOMES) & (rows["code"] != "")
    )
