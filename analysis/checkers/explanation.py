"""Invariant 9: callers see only the errors that the injected faults explain."""

from typing import Any

from analysis.checkers.finding import judged, records, violations
from analysis.facts import fault_windows, finished, recovery_limit_s
from analysis.history import History
from analysis.verdict import InvariantResult

NUMBER = 9
NAME = "every error is explained by a fault"
_PERMANENT = ("MODEL_NOT_FOUND", "INVALID_REQUEST")
_OVERLOAD = (
    *("HTTP_429", "HTTP_503", "QUEUE_FULL", "RESOURCE_LIMIT_EXCEEDED", "OVERLOADED", "NO_WORKERS_AVAILABLE"),
    *("WORKER_DRAINING", "DEADLINE_EXCEEDED"),
)
"""What an endpoint that has too much to do may say, or leave unsaid until the deadline."""


def check(history: History) -> InvariantResult:
    """A failed or refused request carries a code that a fault `explains`, and overlaps that fault or the recovery
    limit after its heal. What can never succeed is never retried.

    Of somebody else's endpoint nobody knows when it has too much to do, so there the codes of overload are explained,
    and how many there may be is for the expectations to say.
    """
    rows = finished(history)
    windows = fault_windows(history)
    limit_s = recovery_limit_s(history)

    def explained(row: Any) -> bool:
        return any(
            row["code"] in window.explains and window.overlaps(row["intended_s"], row["ended_s"], limit_s)
            for window in windows
        )

    errors = rows[rows["outcome"].isin(["failed", "refused"])]
    outside = history.info.outside
    known = [(outside and row["code"] in _OVERLOAD) or explained(row) for row in records(errors)]
    found = violations(
        errors[[not fine for fine in known]],
        lambda row: f"request {row['request_id']} ended with {row['code'] or 'no code'}, which no fault explains",
    )
    hopeless = set(rows.loc[rows["code"].isin(_PERMANENT), "request_id"])
    hopeless |= set(history.attempts.loc[history.attempts["code"].isin(_PERMANENT), "request_id"])
    retries = history.events[(history.events["kind"] == "retry") & history.events["request_id"].isin(hopeless)]
    found += violations(retries, lambda row: f"request {row['request_id']} was retried and can never succeed", "time_s")
    by = "a fault, or by overload" if outside else "a fault"
    return judged(NUMBER, NAME, found, f"{len(errors)} of {len(rows)} requests met an error, each explained by {by}")
