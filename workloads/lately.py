"""What a load has gone through lately: of requests that ended in a window of time, and of those in flight."""

import math
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from cluster.node import Ask

_ENDED_MAX = 20_000
"""Ended requests that are remembered: with more in a window, the last of them."""


class Lately(msgspec.Struct, frozen=True):
    """ended: completed, failed and refused requests in the window; bad: how many of them did not complete.

    overdue: how many are in flight beyond their deadline. waited_s: seconds from the intended time to the end of each
    that completed or failed in the window, and until now of each in flight. A cancelled request is nowhere in it.
    """

    ended: int = 0
    bad: int = 0
    overdue: int = 0
    waited_s: tuple[float, ...] = ()


class _Ended(NamedTuple):
    at_s: float
    waited_s: float
    outcome: str


class LoadWindow:
    """Told of every ask and every end. Times on the caller's clock, seconds.

    The window is the last `window_s` seconds of the load and all since: once nothing more is asked it does not move on,
    or the slowest of all requests would soon be the only ones in it.
    """

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._asked_s = -math.inf
        self._open: dict[str, tuple[float, float]] = {}
        self._ended: deque[_Ended] = deque(maxlen=_ENDED_MAX)

    def asked(self, ask: Ask) -> None:
        """A request is in flight, from its intended time."""
        self._asked_s = max(self._asked_s, ask.intended_s)
        self._open[ask.request_id] = (ask.intended_s, ask.intended_s + ask.timeout_s)

    def ended(self, request_id: str, outcome: str, now: float) -> None:
        """It has ended: `completed`, `failed`, `refused` or `cancelled`."""
        intended_s, _ = self._open.pop(request_id, (now, now))
        if outcome != "cancelled":
            self._ended.append(_Ended(now, now - intended_s, outcome))

    def latencies_s(self, now: float) -> tuple[float, ...]:
        """Of what completed in the last `window_s` seconds."""
        since_s = now - self._window_s
        return tuple(each.waited_s for each in self._ended if each.outcome == "completed" and each.at_s >= since_s)

    def seen(self, now: float) -> Lately:
        """As of now."""
        since_s = min(now, self._asked_s) - self._window_s
        while self._ended and self._ended[0].at_s < since_s:
            self._ended.popleft()
        return Lately(
            ended=len(self._ended),
            bad=sum(each.outcome != "completed" for each in self._ended),
            overdue=sum(deadline_s < now for _, deadline_s in self._open.values()),
            waited_s=(
                *(each.waited_s for each in self._ended if each.outcome != "refused"),
                *(now - intended_s for intended_s, _ in self._open.values()),
            ),
        )


def together(parts: Iterable[Lately]) -> Lately:
    """Several clients' as one."""
    several = list(parts)
    return Lately(
        ended=sum(part.ended for part in several),
        bad=sum(part.bad for part in several),
        overdue=sum(part.overdue for part in several),
        waited_s=tuple(waited_s for part in several for waited_s in part.waited_s),
    )
