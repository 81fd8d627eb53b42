"""What the controller writes into the history, and what it answers to news that are history already."""

from analysis.schema import AttemptRow, EventRow
from cluster.controller.breaker import BreakerState
from cluster.controller.ledger import Attempt, Entry
from cluster.node import Command, Record, Send
from cluster.protocol import Chunk, Withdraw


def event(
    now: float,
    kind: str,
    subject: str,
    request_id: str = "",
    submission: int = 0,
    attempt: int = 0,
    detail: str = "",
) -> Record:
    """Something happened; see analysis.schema.EVENT_KINDS."""
    return Record(EventRow(now, kind, subject, request_id, submission, attempt, detail))


def breaker_change(worker: str, state: BreakerState | None, now: float) -> list[Command]:
    """The worker's breaker is in a new state; None: it is not."""
    if state is None:
        return []
    return [event(now, "breaker_opened" if state is BreakerState.OPEN else f"breaker_{state}", worker)]


def attempt_ended(entry: Entry, attempt: Attempt, outcome: str, code: str, now: float) -> Record:
    """An attempt has ended for the controller, with `code` unless it is completed."""
    row = AttemptRow(
        side="controller",
        request_id=entry.id,
        submission=attempt.id.submission,
        attempt=attempt.id.attempt,
        worker=attempt.worker,
        worker_incarnation=attempt.worker_incarnation,
        begun_s=attempt.begun_s,
        started_s=None,
        first_token_s=attempt.first_token_s,
        ended_s=now,
        deadline_s=entry.deadline_s,
        index=attempt.index,
        tokens=attempt.tokens,
        outcome=outcome,
        code=code,
        cached_tokens=attempt.cached_tokens,
        priority=entry.submit.priority,
    )
    return Record(row)


def stale_report(worker: str, chunk: Chunk, now: float) -> list[Command]:
    """News of an attempt that was given up. Our Withdraw may have been lost: say it again while the attempt runs."""
    attempt = chunk.attempt
    row = event(now, "stale_report", worker, attempt.request_id, attempt.submission, attempt.attempt)
    if chunk.finish is not None or chunk.code is not None:
        return [row]
    return [row, Send(worker, Withdraw(attempt))]
