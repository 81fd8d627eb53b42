"""How far the monotonic clock of another host is ahead of ours, and how wrong that may be.

Cristian's algorithm (Distributed Computing 3, 1989): what a host answers to a question was read between its sending and
the answer, so half of the round trip bounds the error, and the shortest round trip tells most. Clocks drift apart, so
the beginning and the end of a run are told separately; a straight line between them is not assumed, and half of what
they differ by is added to the error.
"""

from collections import deque

import msgspec

ROUNDS = 20
"""Questions at the beginning of a run."""
_WINDOW = 30


class ClockAhead(msgspec.Struct, frozen=True):
    """ahead_s: of our clock, seconds. error_s: at most so much more or less.

    drift_s: by how much the difference has grown. questions: how often it was asked.
    """

    ahead_s: float
    error_s: float
    drift_s: float
    questions: int


class _Sample(msgspec.Struct, frozen=True):
    ahead_s: float
    error_s: float


class HostClock:
    """What is known of one host's clock."""

    def __init__(self) -> None:
        self._first: list[_Sample] = []
        self._last: deque[_Sample] = deque(maxlen=_WINDOW)
        self._questions = 0

    def add(self, asked_s: float, told_s: float, answered_s: float) -> None:
        """A question at `asked_s` of our clock was answered at `answered_s` with `told_s` of the host's."""
        assert answered_s >= asked_s
        sample = _Sample(told_s - (asked_s + answered_s) / 2, (answered_s - asked_s) / 2)
        self._questions += 1
        if len(self._first) < _WINDOW:
            self._first.append(sample)
        self._last.append(sample)

    def estimate(self) -> ClockAhead:
        """Raises ValueError when nothing was asked yet."""
        first = min(self._first, key=lambda sample: sample.error_s)
        last = min(self._last, key=lambda sample: sample.error_s)
        drift_s = last.ahead_s - first.ahead_s
        error_s = max(first.error_s, last.error_s) + abs(drift_s) / 2
        return ClockAhead((first.ahead_s + last.ahead_s) / 2, error_s, drift_s, self._questions)
