"""TimeoutHandler: the three timeouts of a request (first token, between tokens, total)."""

import math

from cluster.controller.ledger import Entry
from cluster.errors import Code
from cluster.policy import TimeoutPolicy
from cluster.timers import Timers


class TimeoutHandler:
    """One wake-up per request: the earliest of its deadline, its attempt's timeout, its next retry, and the next word
    to its client while it waits in line."""

    def __init__(self, policy: TimeoutPolicy, word_s: float = math.inf) -> None:
        """word_s: how long the client of a request that waits is left without a word."""
        self._policy = policy
        self._word_s = word_s
        self._timers: Timers[str] = Timers()

    def arm(self, entry: Entry) -> None:
        """Call after every change of the entry's attempt, news or retry time."""
        due = entry.deadline_s
        if entry.attempt is not None:
            due = min(due, entry.attempt.news_s + self._patience_s(entry))
        elif entry.retry_s is not None:
            due = min(due, entry.retry_s)
        else:
            due = min(due, entry.told_s + self._word_s)
        self._timers.set(entry.id, due)

    def disarm(self, entry: Entry) -> None:
        """The request has ended."""
        self._timers.clear(entry.id)

    def due(self, now: float) -> list[str]:
        """Request ids whose time has come; each must be ended, retried or armed again."""
        return self._timers.due(now)

    def next(self) -> float | None:
        """The earliest of all."""
        return self._timers.next()

    def expired(self, entry: Entry, now: float) -> Code | None:
        """What has run out for this request, None when nothing has. The deadline comes before the attempt's own."""
        if now >= entry.deadline_s:
            return Code.DEADLINE_EXCEEDED
        if entry.attempt is not None and now >= entry.attempt.news_s + self._patience_s(entry):
            return Code.FIRST_TOKEN_TIMEOUT if entry.attempt.first_token_s is None else Code.STREAM_STALLED
        return None

    def _patience_s(self, entry: Entry) -> float:
        assert entry.attempt is not None
        started = entry.attempt.first_token_s is not None
        patience_s = self._policy.between_tokens_s if started else self._policy.first_token_s
        return math.inf if patience_s is None else patience_s
