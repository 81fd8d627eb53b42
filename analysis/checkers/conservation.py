"""Invariant 4: nothing offered is lost or made up, and no token is delivered that no worker made."""

import numpy as np
import pandas as pd

from analysis.checkers.finding import judged, violations
from analysis.facts import (
    asked,
    cleanly_stopped,
    closed_lines,
    counts,
    finished,
    require_worker_rows,
    run_end_s,
    segments,
)
from analysis.history import History
from analysis.timeline import controllers
from analysis.verdict import InvariantResult, Violation

NUMBER = 4
NAME = "conservation of requests and tokens"
_ATTEMPT = ["request_id", "submission", "attempt"]


def check(history: History) -> InvariantResult:
    """offered = completed + failed + refused + cancelled, plus what is in flight in a run that was cut.

    A request of a closed load is offered by being asked, and only what was asked can end. Of every attempt a client
    got at most the tokens that its worker says it made, and from the very worker to which the controller gave it; no
    worker runs what no controller gave it. Rows of a node that did not stop on request may be missing, which is no
    breach.
    """
    tally = counts(history)
    ended = tally.completed + tally.failed + tally.refused + tally.cancelled
    found = []
    if ended + tally.in_flight != tally.offered or (tally.in_flight and history.info.complete):
        still = f" and {tally.in_flight} never ended" if tally.in_flight else ""
        text = f"{tally.offered} requests were offered, {ended} ended{still}"
        found.append(Violation(run_end_s(history), "", "", text))
    found += _unasked(history) + _token_breaches(history) + _undispatched(history)
    sums = "token sums agree"
    if history.info.outside:
        sums = "how many tokens were made cannot be seen from outside"
    elif not found:
        require_worker_rows(history)
    return judged(NUMBER, NAME, found, f"{tally.offered} requests offered, all accounted for; {sums}")


def _unasked(history: History) -> list[Violation]:
    """Requests of a closed load that ended although nobody had asked them, or were asked and are in no plan."""
    closed = history.schedule.loc[closed_lines(history.schedule), "request_id"]
    rows, told = finished(history), asked(history)
    made_up = rows[rows["request_id"].isin(closed) & ~rows["request_id"].isin(told.index)]
    found = violations(made_up, lambda row: f"request {row['request_id']} of a closed load ended and was never asked")
    strange = told[~told.index.isin(closed)]
    return found + [
        Violation(float(time_s), str(request_id), "", f"request {request_id} was asked and is in no closed load")
        for request_id, time_s in strange.items()
    ]


def _token_breaches(history: History) -> list[Violation]:
    rows = finished(history).drop_duplicates("request_id")
    keys = [*_ATTEMPT, "worker", "worker_incarnation"]
    got = segments(rows[rows["outcome"] == "completed"]).groupby(keys, as_index=False)
    delivered = got.agg(delivered=("count", "sum"), ended_s=("received_s", "max"))
    worked = history.attempts[history.attempts["side"] == "worker"]
    made = worked.groupby(_ATTEMPT, as_index=False).agg(made=("tokens", "max"))
    both = delivered.merge(made, on=_ATTEMPT, how="left")
    stopped = cleanly_stopped(history)
    pairs = zip(both["worker"], both["worker_incarnation"], strict=True)
    told = np.array([pair in stopped for pair in pairs], dtype=bool)
    found = violations(
        both[both["made"].isna() & told],
        lambda row: (
            f"request {row['request_id']}: {row['delivered']} tokens of attempt {row['submission']}."
            f"{row['attempt']}, of which {row['worker']} has no row"
        ),
    )
    return found + violations(
        both[both["delivered"] > both["made"]],
        lambda row: (
            f"request {row['request_id']}: {row['delivered']} tokens delivered of attempt {row['submission']}."
            f"{row['attempt']}, of which {row['worker']} made {row['made']:.0f}"
        ),
    )


def _undispatched(history: History) -> list[Violation]:
    """Tokens from, and executions on, a worker to which no controller gave the attempt."""
    dispatched = history.attempts[history.attempts["side"] == "controller"]
    rows = finished(history)
    got = segments(rows).drop_duplicates([*_ATTEMPT, "worker"]).rename(columns={"received_s": "ended_s"})
    known = _known(got, dispatched, [*_ATTEMPT, "worker"])
    elsewhere = ~known & _known(got, dispatched, _ATTEMPT)
    found = violations(
        got[elsewhere],
        lambda row: (
            f"request {row['request_id']}: tokens of attempt {row['submission']}.{row['attempt']} came from "
            f"{row['worker']}, the controller had given it to another worker"
        ),
    )
    if not _controllers_told_all(history):
        return found
    # What was still open when a run was cut has no row yet.
    over = rows if history.info.complete else rows[rows["outcome"] == "completed"]
    found += violations(
        got[~known & ~elsewhere & got["request_id"].isin(over["request_id"])],
        lambda row: (
            f"request {row['request_id']}: tokens of attempt {row['submission']}.{row['attempt']} came from "
            f"{row['worker']}, the controller has no row of it"
        ),
    )
    # Before time zero is the load of the capacity probe.
    made = history.attempts[(history.attempts["side"] == "worker") & (history.attempts["begun_s"] >= 0)]
    made = made[made["started_s"].notna()]
    if not history.info.complete:
        made = made[made["request_id"].isin(over["request_id"])]
    return found + violations(
        made[~_known(made, dispatched, [*_ATTEMPT, "worker"])],
        lambda row: (
            f"request {row['request_id']}: {row['worker']} ran attempt {row['submission']}.{row['attempt']}, "
            "which no controller gave it"
        ),
    )


def _known(rows: pd.DataFrame, among: pd.DataFrame, keys: list[str]) -> "pd.Series[bool]":
    told = set(zip(*(among[key] for key in keys), strict=True))
    found = [key in told for key in zip(*(rows[key] for key in keys), strict=True)]
    return pd.Series(found, index=rows.index, dtype=bool)


def _controllers_told_all(history: History) -> bool:
    """Whether every controller there ever was stopped on request. One that was killed took its last rows with it."""
    names = controllers(history.events)
    told = [history.attempts[history.attempts["side"] == "controller"], history.events]
    told[1] = told[1][told[1]["node"].isin(names)]
    seen = {pair for rows in told for pair in zip(rows["node"], rows["incarnation"], strict=True)}
    return bool(seen) and seen <= cleanly_stopped(history)
