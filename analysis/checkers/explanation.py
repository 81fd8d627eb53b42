"""Invariant 9: callers see only the errors that the injected faults explain."""

from collections.abc import Sequence
from typing import Any

from analysis.checkers.finding import judged, records, violations
from analysis.facts import fault_windows, finished, hit_every_worker, recovery_limit_s, worker_count
from analysis.history import History
from analysis.hurt import Hurt, hurt_at, hurts
from analysis.outside import SERVER_SIDE
from analysis.verdict import InvariantResult

NUMBER = 9
NAME = "every error is explained by a fault"
_PERMANENT = ("MODEL_NOT_FOUND", "INVALID_REQUEST")
_OVERLOAD = (
    *("HTTP_429", "HTTP_503", "QUEUE_FULL", "RESOURCE_LIMIT_EXCEEDED", "OVERLOADED", "NO_WORKERS_AVAILABLE"),
    *("WORKER_DRAINING", "DEADLINE_EXCEEDED"),
)
"""What an endpoint that has too much to do may say, or leave unsaid until the deadline."""
_NOBODY_LEFT = "NO_WORKERS_AVAILABLE"


def check(history: History) -> InvariantResult:
    """A failed or refused request carries a code that a fault `explains`, and overlaps that fault or the recovery
    limit after its heal. That nobody is left is also explained by faults that together hurt every worker at one moment
    of the request's life, each worker until it was seen to be back: see analysis.hurt. What can never succeed is never
    retried.

    Of somebody else's endpoint nobody knows when it has too much to do, so there the codes of overload are explained,
    and how many there may be is for the expectations to say. Nor does it know our codes: while a fault is on, or soon
    after, any way of saying that something behind it has gone wrong is explained by the fault.
    """
    rows = finished(history)
    windows = fault_windows(history)
    limit_s = recovery_limit_s(history)
    workers = worker_count(history)
    outside = history.info.outside
    # A fault that explains nothing is no excuse here either.
    hurt = hurts(history, [window for window in windows if window.explains])

    def explained(row: Any) -> bool:
        start_s, end_s, code = row["intended_s"], row["ended_s"], row["code"]
        met = [window for window in windows if window.overlaps(start_s, end_s, limit_s)]
        if any(code in window.explains for window in met) or (met and outside and code in SERVER_SIDE):
            return True
        return code == _NOBODY_LEFT and _nobody_left(hurt, start_s, end_s, workers)

    errors = rows[rows["outcome"].isin(["failed", "refused"])]
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


def _nobody_left(hurt: Sequence[Hurt], start_s: float, end_s: float, workers: int) -> bool:
    """Whether every worker was hurt at one moment of a request's life."""
    # The most are hurt when the request begins or just after an injection.
    moments = {start_s, *(each.start_s for each in hurt if start_s < each.start_s <= end_s)}
    return any(hit_every_worker(hurt_at(hurt, moment), workers) for moment in moments)
