"""Invariant 5: one attempt per token, never a superseded one; nothing runs late or twice; retries stay in budget."""

import pandas as pd

from analysis.checkers.finding import judged, violations
from analysis.executions import late_starts, repeated_starts
from analysis.facts import (
    fault_windows,
    finished,
    offered,
    policy,
    recovery_limit_s,
    require_worker_rows,
    run_end_s,
    segments,
)
from analysis.history import History
from analysis.verdict import InvariantResult, Violation

NUMBER = 5
NAME = "no execution late or twice, no token of a superseded attempt"
# What the controller sent on just before it began the next attempt is still on its way to the client; the two nodes'
# clocks differ as well.
_TRAVEL_S = 0.25


def check(history: History) -> InvariantResult:
    """Segments never go back to an earlier attempt, nor come once the controller had begun a later one;
    workers start each attempt once and before its deadline.

    Retries are at most `budget_burst + budget_share * offered`, the most that the token bucket can ever pay for.
    """
    found = violations(
        repeated_starts(history),
        lambda row: (
            f"request {row['request_id']}: attempt {row['submission']}.{row['attempt']} "
            f"was executed {row['starts']} times"
        ),
        "time_s",
    )
    found += violations(
        late_starts(history),
        lambda row: (
            f"request {row['request_id']}: {row['node']} started attempt {row['submission']}.{row['attempt']} "
            f"{row['late_s']:.3f} s after its deadline"
        ),
        "time_s",
    )
    found += _superseded(history) + _overspent(history)
    if not found:
        require_worker_rows(history)
    return judged(NUMBER, NAME, found, "each attempt ran once and in time")


def _superseded(history: History) -> list[Violation]:
    parts = segments(finished(history))
    before = parts.groupby("row")[["submission", "attempt"]].shift(1)
    older = (parts["submission"] < before["submission"]) | (
        (parts["submission"] == before["submission"]) & (parts["attempt"] < before["attempt"])
    )
    return violations(
        parts[older | parts.index.isin(_overtaken(history, parts))],
        lambda row: (
            f"request {row['request_id']}: token {row['index']} came from attempt {row['submission']}."
            f"{row['attempt']}, which had been superseded"
        ),
        "received_s",
    )


def _overtaken(history: History, parts: pd.DataFrame) -> "pd.Series[int]":
    """Labels of the segments received after the controller had begun a later attempt of the same request.

    While the link of a controller or a client is at fault, and in the recovery after it, bytes that were held there
    arrive late, and the client rightly takes them.
    """
    begun = history.attempts.loc[
        history.attempts["side"] == "controller", ["request_id", "submission", "attempt", "begun_s"]
    ]
    pairs = parts.rename_axis("part").reset_index().merge(begun, on="request_id", suffixes=("", "_begun"))
    later = (pairs["submission_begun"] > pairs["submission"]) | (
        (pairs["submission_begun"] == pairs["submission"]) & (pairs["attempt_begun"] > pairs["attempt"])
    )
    late = pairs[later & (pairs["received_s"] > pairs["begun_s"] + _TRAVEL_S)]
    windows = [
        window for window in fault_windows(history) if any(not name.startswith("worker-") for name in window.targets)
    ]
    limit_s = recovery_limit_s(history) if windows else 0.0
    for window in windows:
        late = late[~late["received_s"].between(window.injected_s, window.healed_s + limit_s)]
    overtaken: pd.Series[int] = late["part"]
    return overtaken


def _overspent(history: History) -> list[Violation]:
    retries = int(((history.events["kind"] == "retry") & (history.events["time_s"] >= 0)).sum())
    count = len(offered(history))
    allowed = policy(history, "retry", "budget_burst") + policy(history, "retry", "budget_share") * count
    if retries <= allowed:
        return []
    text = f"{retries} retries for {count} requests are more than the budget of {allowed:.0f}"
    return [Violation(run_end_s(history), "", "", text)]
