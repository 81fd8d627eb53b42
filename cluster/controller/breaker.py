"""CircuitBreaker: stops sending work to a worker whose streams go wrong, and probes it with one request at a time.

It is judged by the outcome of streams (first token late, stall, error), not by whether a dispatch could be sent.
"""

from enum import StrEnum

from cluster.policy import BreakerPolicy
from cluster.protocol import AttemptId


class BreakerState(StrEnum):
    """closed: work flows. open: none. half_open: one probe may pass."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class CircuitBreaker:
    """The breaker of one worker. Methods that may change the state return the new state, or None if it stayed.

    While it is not closed, streams that began earlier may still end; only the probe's outcome counts then.
    """

    __slots__ = ("_failures", "_open_s", "_policy", "_probe", "_until", "state", "trips")

    def __init__(self, policy: BreakerPolicy) -> None:
        self._policy = policy
        self._failures = 0
        self._open_s = policy.open_s
        self._until = 0.0
        self._probe: AttemptId | None = None
        self.state = BreakerState.CLOSED
        self.trips = 0

    def ripen(self, now: float) -> BreakerState | None:
        """Let an open breaker become half-open when its time is over."""
        if self.state is BreakerState.OPEN and now >= self._until:
            self.state = BreakerState.HALF_OPEN
            self._probe = None
            return self.state
        return None

    def allows(self) -> bool:
        """Whether a request may go to the worker now."""
        return self.state is BreakerState.CLOSED or (self.state is BreakerState.HALF_OPEN and self._probe is None)

    def dispatched(self, attempt: AttemptId) -> None:
        """A request was sent; in half-open it is the probe."""
        if self.state is BreakerState.HALF_OPEN:
            self._probe = attempt

    def withdrawn(self, attempt: AttemptId) -> None:
        """A stream ended without telling anything about the worker: if it was the probe, another may be."""
        if self._probe == attempt:
            self._probe = None

    def succeeded(self, attempt: AttemptId) -> BreakerState | None:
        """A stream completed."""
        if self.state is BreakerState.HALF_OPEN and self._probe == attempt:
            return self._close()
        if self.state is BreakerState.CLOSED:
            self._failures = 0
        return None

    def failed(self, attempt: AttemptId, now: float) -> BreakerState | None:
        """A stream failed and the worker is to blame."""
        if not self._policy.enabled:
            return None
        if self.state is BreakerState.HALF_OPEN and self._probe == attempt:
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
