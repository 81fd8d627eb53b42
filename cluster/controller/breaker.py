"""CircuitBreaker: stops sending work to a worker whose streams go wrong, and probes it with one request at a time.

It is judged by the outcome of streams (first token late, stall, error). A policy may have it judged by the outcome of
dispatches instead, as others do: whether anybody received them. A worker that answers nothing passes that.
"""

from enum import StrEnum

from cluster.errors import Code
from cluster.policy import BreakerPolicy
from cluster.protocol import AttemptId


class BreakerState(StrEnum):
    """closed: work flows. open: none. half_open: one probe may pass."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class CircuitBreaker:
    """The breaker of one worker. Methods that may change the state return the new state, or None if it stayed.

    While it is not closed, streams that began earlier may still end; only the probe's outcome counts then. It closes
    after `successes_to_close` probes in a row, one at a time; one that fails opens it again.

    Judged by `dispatch`: no broker says that a message arrived, only that nobody wanted it. So a probe counts as a
    success once it is sent, WORKER_UNREACHABLE is the only failure, and whatever else becomes of a stream is a success.
    """

    __slots__ = ("_by_dispatch", "_failures", "_open_s", "_policy", "_probe", "_successes", "_until", "state", "trips")

    def __init__(self, policy: BreakerPolicy) -> None:
        self._policy = policy
        self._by_dispatch = policy.judged_by == "dispatch"
        self._failures = 0
        self._successes = 0
        self._open_s = policy.open_s
        self._until = 0.0
        self._probe: AttemptId | None = None
        self.state = BreakerState.CLOSED
        self.trips = 0

    def ripen(self, now: float) -> BreakerState | None:
        """Let an open breaker become half-open when its time is over."""
        if self.state is BreakerState.OPEN and now >= self._until:
            self.state = BreakerState.HALF_OPEN
            self._successes = 0
            return self.state
        return None

    def allows(self) -> bool:
        """Whether a request may go to the worker now."""
        return self.state is BreakerState.CLOSED or (self.state is BreakerState.HALF_OPEN and self._probe is None)

    def dispatched(self, attempt: AttemptId) -> BreakerState | None:
        """A request was sent; in half-open it is a probe, which judged by dispatch may close the breaker at once."""
        if self.state is not BreakerState.HALF_OPEN:
            return None
        if self._by_dispatch:
            return self._probe_succeeded()
        self._probe = attempt
        return None

    def withdrawn(self, attempt: AttemptId) -> None:
        """A stream ended without telling anything about the worker: if it was the probe, another may be."""
        if self._probe == attempt:
            self._probe = None

    def succeeded(self, attempt: AttemptId) -> BreakerState | None:
        """A stream completed."""
        if self.state is BreakerState.HALF_OPEN and self._probe == attempt:
            return self._probe_succeeded()
        if self.state is BreakerState.CLOSED:
            self._failures = 0
        return None

    def failed(self, attempt: AttemptId, code: Code, now: float) -> BreakerState | None:
        """A stream failed with `code` and the worker is to blame. now: seconds, the caller's clock."""
        if not self._policy.enabled:
            return None
        if self._by_dispatch and code is not Code.WORKER_UNREACHABLE:
            return self.succeeded(attempt)
        # By dispatch, a probe was thought a success until now.
        if self.state is BreakerState.HALF_OPEN and (self._by_dispatch or self._probe == attempt):
            self._open_s = min(2 * self._open_s, self._policy.open_max_s)
            return self._open(now)
        if self.state is BreakerState.CLOSED:
            self._failures += 1
            if self._failures >= self._policy.failures_to_open:
                return self._open(now)
        return None

    def pardon(self) -> BreakerState | None:
        """The failures turned out to be somebody else's fault."""
        if self.state is BreakerState.CLOSED:
            self._failures = 0
            return None
        return self._close()

    def _probe_succeeded(self) -> BreakerState | None:
        self._probe = None
        self._successes += 1
        return self._close() if self._successes >= self._policy.successes_to_close else None

    def _close(self) -> BreakerState:
        self.state = BreakerState.CLOSED
        self._failures = 0
        self._probe = None
        self._open_s = self._policy.open_s
        return self.state

    def _open(self, now: float) -> BreakerState:
        self.state = BreakerState.OPEN
        self._until = now + self._open_s
        self._failures = 0
        self._probe = None
        self.trips += 1
        return self.state
